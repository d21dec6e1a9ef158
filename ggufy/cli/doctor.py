"""Looks at the machine: what is installed, how many threads, how much memory and disk; says what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from typing import Any

from ggufy import __version__
from ggufy.core.catalog import BY_NAME
from ggufy.core.errors import ToolError
from ggufy.core.words import human_size
from ggufy.llama import install
from ggufy.system import resources
from ggufy.system.files import free_bytes
from ggufy.system.settings import Settings

PACKAGES = ("torch", "numpy", "gguf", "huggingface_hub", "gradio", "apscheduler", "rwkv", "cmake", "ninja")
_LEAST_MEMORY = 2e9  # bytes; the demo needs far less, a 1.6B model about this
_LEAST_DISK = 2e9


def examine(settings: Settings) -> dict[str, Any]:
    """Everything found, and `problems`: one sentence each, with what to do. `ok` is true when there is none."""
    problems: list[str] = []
    packages = {name: _package_version(name) for name in PACKAGES}
    problems += [f"the package {name} is missing: run `make setup`." for name, found in packages.items() if not found]
    llama = _llama(settings, problems)
    cpus = resources.allowed_cpus()
    memory = resources.memory_limit()
    disk = {"out": free_bytes(settings.out), "cache": free_bytes(settings.cache)}
    if memory < _LEAST_MEMORY:
        problems.append(f"{human_size(memory)} of memory is little: models above 1B parameters will not fit.")
    for name, free in disk.items():
        if free < _LEAST_DISK:
            folder = settings.out if name == "out" else settings.cache
            problems.append(f"only {human_size(free)} are free in {folder}: free some, or set GGUFY_{name.upper()}.")
    return {
        "ok": not problems,
        "problems": problems,
        "ggufy": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "llama.cpp": llama,
        "cpus_allowed": cpus,
        "threads": settings.threads or resources.default_threads(cpus),
        "memory": memory,
        "disk_free": disk,
        "hf_token": settings.hf_token is not None,
        "hf_token_withheld_from": settings.withheld,
        "modelscope_token": settings.modelscope_token is not None,
    }


def report_lines(findings: dict[str, Any]) -> str:
    """The findings as text."""
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in findings["packages"].items())
    free = findings["disk_free"]
    lines = [
        f"ggufy      {findings['ggufy']}, Python {findings['python']}",
        f"packages   {packages}",
        f"llama.cpp  {findings['llama.cpp']}",
        f"threads    {findings['threads']} used, {findings['cpus_allowed']:g} allowed",
        f"memory     {human_size(findings['memory'])}",
        f"disk free  {human_size(free['out'])} for results, {human_size(free['cache'])} for the cache",
        f"HF_TOKEN   {_token(findings)}",
        *(["ModelScope token set"] if findings["modelscope_token"] else []),
        *(f"problem    {problem}" for problem in findings["problems"]),
        *(["all well"] if findings["ok"] else []),
    ]
    return "\n".join(lines)


def _token(findings: dict[str, Any]) -> str:
    if host := findings["hf_token_withheld_from"]:
        return f"not sent to {host} (GGUFY_TOKEN_TO_MIRROR=1 sends it there)"
    return "set" if findings["hf_token"] else "not set (needed for private or gated sources only)"


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _llama(settings: Settings, problems: list[str]) -> str:
    try:
        found = install.find(settings.cache, settings.llama_dir, types=BY_NAME)
    except ToolError as error:
        problems.append(str(error))
        return "not usable"
    if found:
        return f"{found.version} ({found.commit}) in {found.bin}"
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        problems.append("no C++ compiler: install one (Debian, Ubuntu: apt-get install build-essential).")
    problems.append("llama.cpp is not built yet: run `make setup` (about 5 minutes on 2 cores, once).")
    return "not built yet"

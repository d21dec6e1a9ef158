"""The compiler and its helpers: what there is, and what is missing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggufy.core.errors import ToolError
from ggufy.system import child_process


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """The programs that build, each an absolute path; `description` is the compiler's own first line."""

    cc: str
    cxx: str
    cmake: str
    ninja: str
    description: str


def find_toolchain(environment: Mapping[str, str]) -> Toolchain:
    """Compilers from the environment's PATH, cmake and ninja from beside Python or from PATH.

    Raises ToolError that says what to install.
    """
    cc, _ = _compiler(("cc", "gcc", "clang"), environment)
    cxx, description = _compiler(("c++", "g++", "clang++"), environment)
    if not cc or not cxx:
        raise ToolError(
            "llama.cpp has to be built once, and there is no C++ compiler: install one and {AGAIN} (Debian, "
            "Ubuntu: apt-get install build-essential; Fedora: dnf install gcc-c++; macOS: xcode-select --install)."
        )
    places = f"{Path(sys.executable).parent}:{environment['PATH']}"
    cmake, ninja = shutil.which("cmake", path=places), shutil.which("ninja", path=places)
    if not cmake or not ninja:
        raise ToolError("llama.cpp has to be built once, which needs cmake and ninja: run `pip install cmake ninja`.")
    if importlib.util.find_spec("pip") is None:
        raise ToolError("llama.cpp has to be fetched once, which needs pip: run `python -m ensurepip`.")
    return Toolchain(cc=cc, cxx=cxx, cmake=cmake, ninja=ninja, description=description)


def _compiler(names: Sequence[str], environment: Mapping[str, str]) -> tuple[str, str]:
    """(path, first line of --version) of the first of `names` that works; two empty strings if none does."""
    for name in names:
        found = shutil.which(name, path=environment["PATH"])
        if found:
            try:
                done = child_process.run([found, "--version"], cwd=Path("/"), env=environment)
            except subprocess.TimeoutExpired:
                continue
            if done.returncode == 0 and done.stdout:
                return found, done.stdout.splitlines()[0]
    return "", ""

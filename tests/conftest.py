"""What the tests share: the pinned llama.cpp (built once, in the user's own cache) and one undisturbed demo run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ggufy.core.catalog import BY_NAME
from ggufy.llama.install import Llama, ensure
from ggufy.system.settings import Settings

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Finished:
    """What a command left."""

    code: int
    out: str
    err: str


Ggufy = Callable[..., Finished]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs neither llama.cpp nor a browser comes first, and of that what takes moments."""

    def turn(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return 0 if "fast" in marks else 3 if "browser" in marks else 2 if "tools" in marks else 1

    items.sort(key=turn)


@pytest.fixture(scope="session")
def llama() -> Llama:
    """The pinned llama.cpp, with its source; built now if it never was."""
    settings = Settings.from_env()
    return ensure(settings.cache, threads=os.cpu_count() or 1, pip_environment=settings.pip_environment, types=BY_NAME)


@pytest.fixture(scope="session")
def llama_bin(llama: Llama) -> Path:
    """Folder of the tools."""
    return llama.bin


@pytest.fixture(scope="session")
def llama_source(llama: Llama) -> Path:
    """Folder with convert_hf_to_gguf.py and its gguf-py."""
    assert llama.source is not None
    return llama.source


@pytest.fixture(scope="session")
def ggufy_environment(llama: Llama) -> dict[str, str]:
    """Environment of a child `python -m ggufy`: the built tools, the user's cache, no tokens."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG", "TMPDIR") if name in os.environ}
    cache = str(Settings.from_env().cache)
    return kept | {"GGUFY_LLAMA_DIR": str(llama.bin), "GGUFY_CACHE": cache, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def ggufy(ggufy_environment: dict[str, str]) -> Ggufy:
    """Runs `python -m ggufy ...` as a user would and returns exit code, stdout and stderr."""

    def run(*arguments: object, **environment: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "ggufy", *map(str, arguments)],
            env=ggufy_environment | environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def demo_run(ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The demo, all 29 types, undisturbed: its output folder, and what --json said."""
    out = tmp_path_factory.mktemp("demo")
    done = ggufy("quantize", "demo", "--types", "all", "--no-evaluate", "--json", "--out", out)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    return Path(record["folder"]), record

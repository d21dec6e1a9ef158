"""Small models of several families (transformers_models.py), and what llama.cpp makes of them.

from hf_fixture import models, packages  # noqa: F401 - fixtures
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufy.llama.converter import ensure_packages, environment
from ggufy.llama.install import Llama
from ggufy.llama.pin import CONVERTER
from ggufy.llama.tools import ToolRun
from ggufy.system import resources
from ggufy.system.settings import Settings
from tests.conftest import ROOT
from tests.transformers_models import TOKENS


@pytest.fixture(scope="session")
def packages(llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the converter's Python needs; transformers is in it."""
    settings, folder = Settings.from_env(), tmp_path_factory.mktemp("pip")
    run = ToolRun(environment=resources.child_environment(threads=1, home=folder), cwd=folder)
    return ensure_packages(settings.cache, run, settings.pip_environment)


@pytest.fixture(scope="session")
def models(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each family."""
    folder = tmp_path_factory.mktemp("models")
    variables = environment(os.environ, packages, folder) | {"PYTHONPATH": f"{packages}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.transformers_models", str(folder)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def by_hand(llama: Llama, packages: Path, model: Path, target: Path, *words: str) -> Path:
    """The GGUF that the converter makes when somebody calls it."""
    assert llama.source
    command = [sys.executable, llama.source / CONVERTER, model, "--outfile", target, *words]
    subprocess.run(command, env=environment(os.environ, packages, target.parent), check=True, capture_output=True)
    return target


def logits(llama: Llama, model: Path, folder: Path, how: str = "-") -> Any:
    """[tokens, V] of TOKENS, by llama.cpp; `how` is what llama_logits.py takes in place of a session."""
    out, library = folder / "logits.npy", llama.bin / "libllama.so"
    command = [sys.executable, "-m", "tests.llama_logits", library, model, how, out, *map(str, TOKENS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(out)


def read_safetensors(path: Path) -> dict[str, Any]:
    """The F32 tensors of a file, as arrays."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = (start + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[first:last], dtype=np.float32).reshape(entry["shape"]).copy()
    return found

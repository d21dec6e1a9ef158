"""Every hostile file of attacks/ is refused with its sentence, at once, in little memory, and without a trace."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import pytest

from attacks import ATTACKS, checkpoints, ggufs, safetensors
from ggufy.sources.inspect import inspect
from ggufy.system.settings import Settings

pytestmark = pytest.mark.fast
assert checkpoints and ggufs and safetensors  # they register what they have
MOST_BYTES = 64 << 20  # of memory, for any file


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, path = ATTACKS[name], tmp_path / "there" / name
    assert attack.tries.endswith((".", "can.")), "its docstring says what it tries"
    path.parent.mkdir()
    attack.make(path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tracemalloc.start()
    try:
        problem = inspect(str(path), Settings.from_env({"HOME": str(tmp_path)})).problem
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.search(attack.says, problem), problem
    assert problem.isprintable(), "what a file says of itself cannot steer a terminal"
    assert peak < MOST_BYTES
    left = [found for found in tmp_path.rglob("*") if found.is_file()]
    assert left == [path], "nothing was written anywhere"

"""Every hostile file of attacks/ is refused with its sentence, at once, in little memory, and without a trace."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import pytest

from attacks import ATTACKS, adapters, checkpoints, ggufs, rwkvcpp, safetensors
from ggufy.core.errors import SourceError
from ggufy.sources.adapter import AdapterSearch, AdapterWish, check_adapters, pin_adapters
from ggufy.sources.inspect import inspect
from ggufy.sources.rwkv_pth import RwkvPth
from ggufy.system.settings import Settings

pytestmark = pytest.mark.fast
assert adapters and checkpoints and ggufs and rwkvcpp and safetensors  # they register what they have
MOST_BYTES = 64 << 20  # of memory, for any file


def model_problem(path: Path, settings: Settings) -> str:
    return inspect(str(path), settings).problem


def adapter_problem(path: Path, settings: Settings) -> str:
    report = inspect("demo", settings)
    wish = AdapterWish(texts=(f"{path}:1" if path.is_file() else str(path),))
    with pytest.raises(SourceError) as caught:
        check_adapters(pin_adapters(wish, AdapterSearch(settings), RwkvPth()), report)
    return str(caught.value)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, path = ATTACKS[name], tmp_path / "there" / name
    assert attack.tries.endswith((".", "can.")), "its docstring says what it tries"
    path.parent.mkdir()
    attack.make(path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    settings = Settings.from_env({"HOME": str(tmp_path)})
    tracemalloc.start()
    try:
        problem = (adapter_problem if attack.adapter else model_problem)(path, settings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.search(attack.says, problem), problem
    assert problem.isprintable(), "what a file says of itself cannot steer a terminal"
    assert peak < MOST_BYTES
    left = [found for found in tmp_path.rglob("*") if found.is_file() and path not in (found, *found.parents)]
    assert path.exists() and not left, "nothing was written anywhere"

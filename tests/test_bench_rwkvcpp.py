"""The bench of rwkv.cpp's files: its engines run, and plain torch there computes what the engine does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import rwkvcpp_speed
from bench.rwkvcpp_speed import Shape, bench
from ggufy.llama.install import Llama
from ggufy.rwkvcpp.engine import Engine
from tests import tiny
from tests.rwkvcpp_models import file_of


@pytest.mark.tools
def test_every_engine_has_its_line(tmp_path: Path, llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rwkvcpp_speed, "_TOKENS", 2)
    lines = bench(tmp_path, llama, shape=Shape(layers=1, width=64, vocab=70), threads=1, rounds=1)
    assert lines[0].startswith("tokens a second, one at a time: RWKV-4, 1 layers, width 64, 70 tokens, 1 threads")
    assert [line[:14].strip() for line in lines[1:]] == ["rwkv 0.8", "torch", *rwkvcpp_speed.TYPES, "FP32, NumPy"]
    assert all(float(line[14:21]) > 0 for line in lines[1:])


def test_plain_torch_computes_the_same(tmp_path: Path) -> None:
    """It would be no comparison otherwise."""
    checkpoint = tiny.save(tmp_path / "m.pth", tiny.weights("4"))
    script = rwkvcpp_speed._START + rwkvcpp_speed.TORCH + "\nfor token in (1, 2, 3): out = step(token)\n"
    script += "import numpy as np; np.save(llama, out.numpy())\n"
    out = tmp_path / "out.npy"
    subprocess.run([sys.executable, "-c", script, checkpoint, "1", "3", out], check=True, capture_output=True)
    wanted, _ = Engine(file_of(tmp_path, "4"), threads=1).eval([1, 2, 3], None)
    assert np.abs(np.load(out) - wanted).max() < 1e-4

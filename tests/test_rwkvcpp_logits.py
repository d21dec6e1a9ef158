"""What becomes of rwkv.cpp's files, run: one of April 2023, brought up to date, gives the logits of the library that
wrote it, merged adapters those of rwkv.cpp on the files of its own script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufy.rwkvcpp.engine import Engine
from ggufy.rwkvcpp.lora import merge_into_file
from ggufy.rwkvcpp.quantize import quantize
from tests.reference import reference_file
from tests.test_rwkvcpp_convert import MODELS, made
from tests.test_rwkvcpp_source import opened

pytestmark = pytest.mark.fast
PROMPT = tuple(b'"in')


def logits(path: Path) -> Any:
    return Engine(path, threads=1).eval(PROMPT, None)[0]


def far(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max())


def test_a_file_of_2023_says_what_it_said(tmp_path: Path) -> None:
    """Of rwkv.cpp's own type. Where the type is ggml's, that library rounded the activations to 4 bits as well, so
    there the bytes have to do: see test_rwkvcpp_quantize.py."""
    known = np.load(reference_file("rwkvcpp/reference/old.npz"))["4v0-660K/old-Q4_1_O/logits3"]
    quantize(reference_file("rwkvcpp/derived/tiny-rwkv-4v0-660K-v100-Q4_1_O.bin"), tmp_path / "new.bin", "FP32")
    assert far(logits(tmp_path / "new.bin"), known) < 1e-5
    assert far(logits(reference_file("rwkvcpp/upstream/tiny-rwkv-4v0-660K-FP32.bin")), known) > 0.1


@pytest.mark.parametrize("case", ["4v0-FP32", "4v0-FP16", "5v2-FP32", "7v0-FP32"])
def test_merged_files_say_what_rwkv_cpp_s_say(tmp_path: Path, case: str) -> None:
    short, kind = case.split("-")
    model = next(name for name in MODELS if name.startswith(short))
    made(reference_file(f"rwkvcpp/derived/tiny-rwkv-{model}.pth"), tmp_path / "base.bin", kind)
    with opened(tmp_path / "x", reference_file(f"rwkvcpp/derived/adapters/lora-{short}.pth")) as one:
        merge_into_file(tmp_path / "base.bin", tmp_path / "out.bin", one)
    known = np.load(reference_file("rwkvcpp/reference/lora.npz"))[f"{case}/logits3"]
    near = 5e-3 if kind == "FP16" else 1e-5
    assert far(logits(tmp_path / "out.bin"), known) < near < far(logits(tmp_path / "base.bin"), known)

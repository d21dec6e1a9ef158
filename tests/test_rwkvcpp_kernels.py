"""ggml's own kernels on files of rwkv.cpp."""

from __future__ import annotations

from pathlib import Path

import gguf.quants
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggufy.llama import ggml
from ggufy.rwkvcpp import quantize
from ggufy.rwkvcpp.types import QUANTIZED
from tests.test_rwkvcpp_convert import contents
from tests.test_rwkvcpp_quantize import SIMPLE, TWO, base


@pytest.mark.tools
def test_ggml_s_kernels_make_the_same_and_the_k_types(tmp_path: Path, llama_bin: Path) -> None:
    library = ggml.load(llama_bin)
    source = base(tmp_path, "4", width=256, ffn=512)
    for name in SIMPLE:
        ours = quantize.quantize(source, tmp_path / "a.bin", name, ggml=library, control=TWO)
        assert ours == quantize.quantize(source, tmp_path / "b.bin", name)
    for name in QUANTIZED[5:]:
        quantize.quantize(source, tmp_path / "k.bin", name, ggml=library, control=TWO)
        before, after = contents(source), contents(tmp_path / "k.bin")
        for one in (one for one in before if before[one] != after[one]):
            values = np.frombuffer(before[one][2], "<f4").reshape(before[one][1])
            blocks = np.frombuffer(after[one][2], np.uint8).reshape(len(values), -1)
            back = gguf.quants.dequantize(blocks, GGMLQuantizationType[name])
            assert np.abs(back - values).mean() < 0.1 * np.abs(values).mean()

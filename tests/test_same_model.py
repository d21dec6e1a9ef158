"""Which files can be measured against which base: what no quantization changes is the same in both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufy.core.errors import SourceError
from ggufy.formats.same_model import ModelFacts, check_quants

pytestmark = pytest.mark.fast
BASE = ModelFacts(
    architecture="llama", vocab_size=512, shapes={"a": (64, 64)}, norm=np.array([1.0, 2.0], dtype=np.float32)
)
QUANT = replace(BASE, unquantized="F16")


def check(base: ModelFacts, quant: ModelFacts) -> None:
    check_quants(Path("base.gguf"), [Path("q.gguf")], lambda path: base if path.name == "base.gguf" else quant)


def test_a_quant_of_its_base() -> None:
    check(BASE, QUANT)
    check(BASE, replace(QUANT, norm=None))
    check(replace(BASE, norm=None), QUANT)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"architecture": "qwen2"}, "it is qwen2"),
        ({"vocab_size": 511}, "its vocabulary has 511 tokens, not 512"),
        ({"shapes": {"a": (64, 32)}}, "its tensors differ"),
        ({"norm": np.array([1.0, 2.5], dtype=np.float32)}, "its norms, which no quantization changes, differ"),
    ],
)
def test_a_quant_of_another_model(change: dict[str, Any], why: str) -> None:
    with pytest.raises(SourceError) as told:
        check(BASE, replace(QUANT, **change))
    assert str(told.value) == f"q.gguf is no quant of base.gguf ({why}): give the base that it was made from."


def test_what_is_no_base() -> None:
    with pytest.raises(SourceError, match="is quantized already: the base is the F16 file of the same model"):
        check(QUANT, QUANT)
    with pytest.raises(SourceError, match="holds no vocabulary, so it cannot read a text"):
        check(replace(BASE, vocab_size=0), QUANT)

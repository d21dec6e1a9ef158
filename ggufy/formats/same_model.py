"""Whether quants can be measured against a base, in any format of files: it must be unquantized, and they must have
been made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.errors import SourceError
from ggufy.core.messages import Message


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What of a model's file no quantization changes."""

    unquantized: str = ""  # types of the files that can be a base; empty: this one can
    architecture: str
    vocab_size: int  # 0: it has no vocabulary
    shapes: Mapping[str, Any]  # by tensor
    norm: np.ndarray[Any, np.dtype[np.float32]] | None  # the last one's values; None: they are not to be compared


def check_quants(base: Path, quants: Sequence[Path], facts_of: Callable[[Path], ModelFacts]) -> None:
    """Raises SourceError unless the base is unquantized and every quant has its tensors and vocabulary."""
    own = facts_of(base)
    if own.unquantized:
        raise SourceError(
            "{base} is quantized already: the base is the {types} file of the same model.",
            base=base,
            types=own.unquantized,
        )
    if not own.vocab_size:
        raise SourceError("{base} holds no vocabulary, so it cannot read a text: convert the model again.", base=base)
    for path in quants:
        if why := _difference(facts_of(path), own):
            raise SourceError(
                "{path} is no quant of {base} ({why}): give the base that it was made from.",
                path=path,
                base=base.name,
                why=why,
            )


def _difference(quant: ModelFacts, base: ModelFacts) -> str:
    if quant.architecture != base.architecture:
        return Message("it is {architecture}", architecture=quant.architecture)
    if quant.vocab_size != base.vocab_size:
        return Message(
            "its vocabulary has {count} tokens, not {expected}", count=quant.vocab_size, expected=base.vocab_size
        )
    if quant.shapes != base.shapes:
        return Message("its tensors differ")
    if quant.norm is not None and base.norm is not None and not np.array_equal(quant.norm, base.norm):
        return Message("its norms, which no quantization changes, differ")
    return ""

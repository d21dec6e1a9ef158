"""Whether quants can be measured against a base: it must be unquantized, and they must have been made from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ggufy.core.errors import SourceError
from ggufy.core.messages import Message
from ggufy.formats.gguf import GgufHead, read_head, read_tensor

_NORM = "output_norm.weight"  # F32 in every GGUF, so a quant has its base's own


def check_models(base: Path, quants: Sequence[Path]) -> GgufHead:
    """The base's head. Raises SourceError unless it is unquantized and every quant has its tensors and vocabulary."""
    head = read_head(base)
    if head.quantized:
        raise SourceError(
            "{base} is quantized already: the base is the F16, BF16 or F32 file of the same model.", base=base
        )
    if not vocab_size(head):
        raise SourceError("{base} holds no vocabulary, so it cannot read a text: convert the model again.", base=base)
    shapes = {name: tensor.shape for name, tensor in head.tensors.items()}
    for path in quants:
        quant = read_head(path)
        why = ""
        if quant.metadata.get("general.architecture") != head.metadata.get("general.architecture"):
            why = Message("it is {architecture}", architecture=quant.metadata.get("general.architecture", "no model"))
        elif vocab_size(quant) != vocab_size(head):
            why = Message(
                "its vocabulary has {count} tokens, not {expected}", count=vocab_size(quant), expected=vocab_size(head)
            )
        elif {name: tensor.shape for name, tensor in quant.tensors.items()} != shapes:
            why = Message("its tensors differ")
        elif not _same_norm(path, quant, base, head):
            why = Message("its norms, which no quantization changes, differ")
        if why:
            raise SourceError(
                "{path} is no quant of {base} ({why}): give the base that it was made from.",
                path=path,
                base=base.name,
                why=why,
            )
    return head


def vocab_size(head: GgufHead) -> int:
    """Entries of the vocabulary; 0 if the file has none."""
    tokens = head.metadata.get("tokenizer.ggml.tokens", 0)
    return tokens if isinstance(tokens, int) else len(tokens)


def _same_norm(path: Path, quant: GgufHead, base: Path, head: GgufHead) -> bool:
    if any(_NORM not in h.tensors or h.tensors[_NORM].type != "F32" for h in (quant, head)):
        return True  # nothing to compare
    return bool(np.array_equal(read_tensor(path, quant, _NORM), read_tensor(base, head, _NORM)))

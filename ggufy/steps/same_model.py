"""Whether GGUF quants can be measured against a base GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ggufy.core.messages import Message
from ggufy.formats.gguf import GgufHead, read_head, read_tensor
from ggufy.formats.same_model import ModelFacts, check_quants

_NORM = "output_norm.weight"  # F32 in every GGUF, so a quant has its base's own


def check_models(base: Path, quants: Sequence[Path]) -> GgufHead:
    """The base's head. Raises SourceError unless it is unquantized and every quant has its tensors and vocabulary."""
    check_quants(base, quants, _facts)
    return read_head(base)


def vocab_size(head: GgufHead) -> int:
    """Entries of the vocabulary; 0 if the file has none."""
    tokens = head.metadata.get("tokenizer.ggml.tokens", 0)
    return tokens if isinstance(tokens, int) else len(tokens)


def _facts(path: Path) -> ModelFacts:
    head = read_head(path)
    plain = _NORM in head.tensors and head.tensors[_NORM].type == "F32"
    return ModelFacts(
        unquantized=Message("F16, BF16 or F32") if head.quantized else "",
        architecture=str(head.metadata.get("general.architecture", "no model")),
        vocab_size=vocab_size(head),
        shapes={name: tensor.shape for name, tensor in head.tensors.items()},
        norm=read_tensor(path, head, _NORM) if plain else None,
    )

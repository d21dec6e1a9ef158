"""An architecture that nobody has: blocks of a gate and a small matrix. All that ggufy has to know of it is here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ggufy.models.architecture import (
    FLAT,
    TRANSPOSED,
    Architecture,
    Hyperparameters,
    Shapes,
    TensorRow,
    size_of,
)
from ggufy.models.chat_format import ChatFormat

if TYPE_CHECKING:
    from gguf import GGUFWriter


def _sizes(shapes: Shapes, _layers: int) -> dict[str, int]:
    return {"rank": size_of(shapes, "blocks.0.toy.small", 1)}


def _add_metadata(writer: GGUFWriter, model: Hyperparameters) -> None:
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_uint32("toy.rank", model.sizes["rank"])


TOY = Architecture(
    name="toy",
    mark=re.compile(r"\.toy\.gate$"),
    gguf_marks=("toy_gate.weight",),
    before=(TensorRow("token_embd.weight", "emb.weight", "V C"),),
    block=(
        TensorRow("attn_norm.weight", "toy.norm", "C", FLAT),
        TensorRow("toy_gate.weight", "toy.gate", "C C"),
        TensorRow("toy_small.weight", "toy.small", "C rank", TRANSPOSED, role="low_rank_toy"),
    ),
    after=(TensorRow("output.weight", "head.weight", "V C"),),
    read_sizes=_sizes,
    add_metadata=_add_metadata,
    chat=ChatFormat(template="{{ messages }}", sides=frozenset({b"User"})),
    sensitivities={"embedding": 9.0, "head": 3.0, "toy_gate": 1.0},
    harmless=("low_rank_toy",),
)

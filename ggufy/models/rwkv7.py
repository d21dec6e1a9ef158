"""RWKV-7 (x070).

Its sensitivities are derived from published figures of RWKV-7 1.5B and 2.9B (github.com/RafaelUI/rwkv-quant, KLD per
megabyte by role; geometric mean of both models). Their first block carries 1.6 and 14 times the KLD of another one: 5
times, as in the table of RWKV-6. On the embedding the sources differ: 0.76 times `time_mix_output` as published, 16
times in RWKV-6; the geometric mean is taken. The head was published at 8 bits only; its ratio to the embedding is
RWKV-6's.

All its harmless low-rank matrices in Q8_0 cost the demo a KLD of 2e-6, the stock Q6_K file 1.2e-3. Decays are left out
although they cost no more: their errors add up over a long text, and that was a short one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ggufy.models.architecture import (
    FLAT,
    STACKED,
    TRANSPOSED,
    Architecture,
    Hyperparameters,
    Shapes,
    TensorRow,
    size_of,
)
from ggufy.models.chat_format import WORLD
from ggufy.models.rwkv import AFTER, BEFORE, BLOCK, add_common_metadata, common_sizes

if TYPE_CHECKING:
    from gguf import GGUFWriter

_BLOCK = (
    TensorRow("time_mix_lerp_fused.weight", "att.x_r att.x_w att.x_k att.x_v att.x_a att.x_g", "C", STACKED, f32=True),
    TensorRow("time_mix_w0.weight", "att.w0", "C", FLAT),
    TensorRow("time_mix_w1.weight", "att.w1", "C decay", TRANSPOSED, f32=True, role="low_rank_decay"),
    TensorRow("time_mix_w2.weight", "att.w2", "decay C", TRANSPOSED, f32=True, role="low_rank_decay"),
    TensorRow("time_mix_a0.weight", "att.a0", "C", FLAT),
    TensorRow("time_mix_a1.weight", "att.a1", "C iclr", TRANSPOSED, role="low_rank_rate"),
    TensorRow("time_mix_a2.weight", "att.a2", "iclr C", TRANSPOSED, role="low_rank_rate"),
    TensorRow("time_mix_v0.weight", "att.v0", "C", FLAT),
    TensorRow("time_mix_v1.weight", "att.v1", "C value", TRANSPOSED, role="low_rank_value"),
    TensorRow("time_mix_v2.weight", "att.v2", "value C", TRANSPOSED, role="low_rank_value"),
    TensorRow("time_mix_g1.weight", "att.g1", "C gate", TRANSPOSED, role="low_rank_gate"),
    TensorRow("time_mix_g2.weight", "att.g2", "gate C", TRANSPOSED, role="low_rank_gate"),
    TensorRow("time_mix_k_k.weight", "att.k_k", "C", FLAT),
    TensorRow("time_mix_k_a.weight", "att.k_a", "C", FLAT),
    TensorRow("time_mix_r_k.weight", "att.r_k", "H N", FLAT),
    TensorRow("channel_mix_lerp_k.weight", "ffn.x_k", "C", FLAT),
)
# Block 0 has no value residual. llama.cpp's loader wants v0, v1, v2 there all the same, of the ranks of a0, a1, a2,
# and never uses them; whatever a checkpoint holds under their names is ignored.
_FIRST_BLOCK = {
    "time_mix_v0.weight": TensorRow("time_mix_v0.weight", "att.a0", "C", FLAT),
    "time_mix_v1.weight": TensorRow("time_mix_v1.weight", "att.a1", "C iclr", TRANSPOSED),
    "time_mix_v2.weight": TensorRow("time_mix_v2.weight", "att.a2", "iclr C", TRANSPOSED),
}
_SENSITIVITIES = {
    "embedding": 390.0, "head": 155.0,
    "time_mix_value@first": 365.0, "time_mix_value": 73.0,
    "time_mix_output@first": 560.0, "time_mix_output": 112.0,
    "time_mix_receptance@first": 235.0, "time_mix_receptance": 47.0,
    "time_mix_key@first": 220.0, "time_mix_key": 44.0,
    "channel_mix_key@first": 125.0, "channel_mix_key": 25.0,
    "channel_mix_value@first": 120.0, "channel_mix_value": 24.0,
}  # fmt: skip


def _sizes(shapes: Shapes, layers: int) -> dict[str, int]:
    return common_sizes(shapes, "att.r_k") | {
        "decay": size_of(shapes, "blocks.0.att.w1", 1),
        "iclr": size_of(shapes, "blocks.0.att.a1", 1),
        # A single block has no value residual, but the key is required.
        "value": size_of(shapes, "blocks.1.att.v1" if layers > 1 else "blocks.0.att.a1", 1),
        "gate": size_of(shapes, "blocks.0.att.g1", 1),
    }


def _add_metadata(writer: GGUFWriter, model: Hyperparameters) -> None:
    add_common_metadata(writer, model)
    writer.add_decay_lora_rank(model.sizes["decay"])
    writer.add_iclr_lora_rank(model.sizes["iclr"])
    writer.add_value_residual_mix_lora_rank(model.sizes["value"])
    writer.add_gate_lora_rank(model.sizes["gate"])


RWKV7 = Architecture(
    name="rwkv7",
    version="7",
    mark=re.compile(r"\.att\.(?:r_k|k_k|x_r)$"),
    gguf_marks=("time_mix_r_k.weight", "time_mix_a1.weight"),
    before=BEFORE,
    block=BLOCK + _BLOCK,
    after=AFTER,
    first_block=_FIRST_BLOCK,
    read_sizes=_sizes,
    add_metadata=_add_metadata,
    chat=WORLD,
    sensitivities=_SENSITIVITIES,
    measured_at={"V": 65536, "C": 2290, "F": 9160},  # between 1.5B and 2.9B
    harmless=("low_rank_rate", "low_rank_value", "low_rank_gate"),
)

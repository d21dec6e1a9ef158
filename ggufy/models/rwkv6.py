"""RWKV-6 (x060).

Its sensitivities were measured on a trained RWKV-6 of 8.8M weights (8 blocks, 2k tokens): an all-Q4_K file, 26 probes
that each put one group one rung lower (to Q3_K), c = change of the mean KLD / sum of weights × change of error. Of
last blocks only the range 1 to 16 is known; 4 is its middle on a logarithmic scale.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ggufy.models.architecture import (
    FLAT,
    INNER_TRANSPOSED,
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
    TensorRow("time_mix_lerp_x.weight", "att.time_maa_x", "C", FLAT),
    TensorRow(
        "time_mix_lerp_fused.weight",
        "att.time_maa_w att.time_maa_k att.time_maa_v att.time_maa_r att.time_maa_g",
        "C",
        STACKED,
        f32=True,
    ),
    TensorRow("time_mix_w1.weight", "att.time_maa_w1", "C 5mix", TRANSPOSED, f32=True, role="low_rank_mix"),
    TensorRow("time_mix_w2.weight", "att.time_maa_w2", "5 mix C", INNER_TRANSPOSED, f32=True, role="low_rank_mix"),
    TensorRow("time_mix_decay.weight", "att.time_decay", "C", FLAT),
    TensorRow("time_mix_decay_w1.weight", "att.time_decay_w1", "C decay", TRANSPOSED, f32=True, role="low_rank_decay"),
    TensorRow("time_mix_decay_w2.weight", "att.time_decay_w2", "decay C", TRANSPOSED, f32=True, role="low_rank_decay"),
    TensorRow("time_mix_first.weight", "att.time_faaaa", "H N", f32=True),
    TensorRow("time_mix_gate.weight", "att.gate.weight", "C C"),
    TensorRow("channel_mix_lerp_k.weight", "ffn.time_maa_k", "C", FLAT),
    TensorRow("channel_mix_lerp_r.weight", "ffn.time_maa_r", "C", FLAT),
    TensorRow("channel_mix_receptance.weight", "ffn.receptance.weight", "C C"),
)
_SENSITIVITIES = {
    "embedding": 779.0, "head": 309.0,
    "time_mix_value@first": 412.0, "time_mix_value": 157.0, "time_mix_value@last": 4.0,
    "time_mix_output@first": 273.0, "time_mix_output": 49.0, "time_mix_output@last": 4.0,
    "time_mix_gate@first": 226.0, "time_mix_gate": 37.0, "time_mix_gate@last": 4.0,
    "time_mix_receptance@first": 144.0, "time_mix_receptance": 27.0, "time_mix_receptance@last": 4.0,
    "time_mix_key@first": 121.0, "time_mix_key": 18.0, "time_mix_key@last": 4.0,
    "channel_mix_key@first": 46.0, "channel_mix_key": 11.0, "channel_mix_key@last": 4.0,
    "channel_mix_value@first": 25.0, "channel_mix_value": 5.0, "channel_mix_value@last": 4.0,
    "channel_mix_receptance": 0.9,
}  # fmt: skip


def _sizes(shapes: Shapes, _layers: int) -> dict[str, int]:
    mix = size_of(shapes, "blocks.0.att.time_maa_w2", 1)
    ranks = {"mix": mix, "5mix": 5 * mix, "decay": size_of(shapes, "blocks.0.att.time_decay_w1", 1)}
    return common_sizes(shapes, "att.time_faaaa") | ranks


def _add_metadata(writer: GGUFWriter, model: Hyperparameters) -> None:
    add_common_metadata(writer, model)
    writer.add_rescale_every_n_layers(model.rescale_every)
    writer.add_time_mix_extra_dim(model.sizes["mix"])
    writer.add_time_decay_extra_dim(model.sizes["decay"])


RWKV6 = Architecture(
    name="rwkv6",
    version="6",
    mark=re.compile(r"\.att\.time_maa_"),
    gguf_marks=("time_mix_decay_w1.weight",),
    before=BEFORE,
    block=BLOCK + _BLOCK,
    after=AFTER,
    read_sizes=_sizes,
    add_metadata=_add_metadata,
    rescale_every=6,  # what every published RWKV-6 GGUF has
    divided=("time_mix_output.weight", "channel_mix_value.weight"),
    chat=WORLD,
    keyed_state=True,
    sensitivities=_SENSITIVITIES,
    measured_at={"V": 2048, "C": 256, "F": 896},
)

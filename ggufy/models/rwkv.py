"""What all RWKVs that can be converted have in common, by BlinkDL's names; and the names of older ones.

Names, layouts and the tensors that stay F32 are those of llama.cpp's converter (conversion/rwkv.py and
conversion/base.py), whose graphs read these files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggufy.models.architecture import FLAT, Hyperparameters, Shapes, TensorRow, size_of, squeezed

if TYPE_CHECKING:
    from gguf import GGUFWriter

CONTEXT_LENGTH = 1 << 20  # RWKV has no limit of its own; the official converter writes this of every model.
LAYER_NORM_EPS = 1e-5

BEFORE = (
    TensorRow("token_embd.weight", "emb.weight", "V C"),
    TensorRow("token_embd_norm.weight", "blocks.0.ln0.weight", "C", FLAT),
    TensorRow("token_embd_norm.bias", "blocks.0.ln0.bias", "C", FLAT),
)
AFTER = (
    TensorRow("output_norm.weight", "ln_out.weight", "C", FLAT),
    TensorRow("output_norm.bias", "ln_out.bias", "C", FLAT),
    TensorRow("output.weight", "head.weight", "V C"),
)
BLOCK = (
    TensorRow("attn_norm.weight", "ln1.weight", "C", FLAT),
    TensorRow("attn_norm.bias", "ln1.bias", "C", FLAT),
    TensorRow("attn_norm_2.weight", "ln2.weight", "C", FLAT),
    TensorRow("attn_norm_2.bias", "ln2.bias", "C", FLAT),
    TensorRow("time_mix_receptance.weight", "att.receptance.weight", "C C"),
    TensorRow("time_mix_key.weight", "att.key.weight", "C C"),
    TensorRow("time_mix_value.weight", "att.value.weight", "C C"),
    TensorRow("time_mix_output.weight", "att.output.weight", "C C"),
    TensorRow("time_mix_ln.weight", "att.ln_x.weight", "C", FLAT),
    TensorRow("time_mix_ln.bias", "att.ln_x.bias", "C", FLAT),
    TensorRow("channel_mix_key.weight", "ffn.key.weight", "F C"),
    TensorRow("channel_mix_value.weight", "ffn.value.weight", "C F"),
)


def common_sizes(shapes: Shapes, head: str) -> dict[str, int]:
    """F, the width of the channel mix, and N, the size of a head: the last one of the tensor `head` of block 0."""
    return {"N": size_of(shapes, f"blocks.0.{head}", -1), "F": size_of(shapes, "blocks.0.ffn.key.weight", 0)}


def add_common_metadata(writer: GGUFWriter, model: Hyperparameters) -> None:
    """Writes what the graphs of both read."""
    writer.add_context_length(model.context or CONTEXT_LENGTH)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.layers)
    writer.add_layer_norm_eps(LAYER_NORM_EPS)
    writer.add_wkv_head_size(model.sizes["N"])
    writer.add_feed_forward_length(model.sizes["F"])
    writer.add_head_count(0)  # Required by llama.cpp's loader, unused.


def older_version(shapes: Shapes) -> str:
    """The version of an RWKV that llama.cpp cannot run: 4, 5, 5.1 or 5.2, or nothing if it is none of these.

    The versions 5.x are told apart as the package `rwkv` does: 5.1 added a gate, 5.2 a decay for each channel.
    """
    if not any(name.endswith(".att.time_mix_k") for name in shapes):
        return ""
    if not any(".att.ln_x." in name for name in shapes):
        return "4"
    if any(name.endswith(".att.time_decay") and len(squeezed(shape)) > 1 for name, shape in shapes.items()):
        return "5.2"
    return "5.1" if any(name.endswith(".att.gate.weight") for name in shapes) else "5"

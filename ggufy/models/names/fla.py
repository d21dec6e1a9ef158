"""flash-linear-attention's names (fla-hub/rwkv7-*, `RWKV7ForCausalLM`, and the PyPI package rwkv7-hf), RWKV-7 and 6.

Its low-rank matrices are those of torch's linear layers, so rows and columns are exchanged. RWKV-7 files of early 2025
have one tensor `x_x` for six vectors. In RWKV-6 five low ranks stand in one matrix, in the order r w k v g; BlinkDL's
is w k v r g (fla-org/flash-linear-attention, utils/convert_from_rwkv7.py and convert_from_rwkv6.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from ggufy.models.names.table import add, name_table, named_by
from ggufy.models.origin import Origin

if TYPE_CHECKING:
    import torch

_COMMON = name_table("""
    embeddings.weight                    emb.weight
    lm_head.weight                       head.weight
    norm.*                               ln_out.*
    layers.N.pre_norm.*                  blocks.N.ln0.*
    layers.N.attn_norm.*                 blocks.N.ln1.*
    layers.N.ffn_norm.*                  blocks.N.ln2.*
    layers.N.attn.o_proj.weight          blocks.N.att.output.weight
    layers.N.attn.g_norm.*               blocks.N.att.ln_x.*
    layers.N.ffn.value.weight            blocks.N.ffn.value.weight
""")
_RWKV_7 = _COMMON + name_table("""
    layers.N.attn.r_proj.weight          blocks.N.att.receptance.weight
    layers.N.attn.k_proj.weight          blocks.N.att.key.weight
    layers.N.attn.v_proj.weight          blocks.N.att.value.weight
    layers.N.attn.*_lora.lora.0.weight   blocks.N.att.*1    turned
    layers.N.attn.*_lora.lora.2.weight   blocks.N.att.*2    turned
    layers.N.attn.*_lora.lora.2.bias     blocks.N.att.*0
    layers.N.attn.*                      blocks.N.att.*
    layers.N.ffn.*                       blocks.N.ffn.*
""")
_RWKV_6 = _COMMON + name_table("""
    layers.N.attn.r_proj.linear.weight   blocks.N.att.receptance.weight
    layers.N.attn.k_proj.linear.weight   blocks.N.att.key.weight
    layers.N.attn.v_proj.linear.weight   blocks.N.att.value.weight
    layers.N.attn.g_proj.linear.weight   blocks.N.att.gate.weight
    layers.N.attn.x_proj.0.mu            blocks.N.att.time_maa_x
    layers.N.attn.w_proj.linear.lora.0.weight   blocks.N.att.time_decay_w1    turned
    layers.N.attn.w_proj.linear.lora.2.weight   blocks.N.att.time_decay_w2    turned
    layers.N.attn.w_proj.linear.lora.2.bias     blocks.N.att.time_decay
    layers.N.attn.bonus                  blocks.N.att.time_faaaa
    layers.N.ffn.key.linear.weight       blocks.N.ffn.key.weight
    layers.N.ffn.key.mu                  blocks.N.ffn.time_maa_k
    layers.N.ffn.receptance.linear.weight   blocks.N.ffn.receptance.weight
    layers.N.ffn.receptance.mu           blocks.N.ffn.time_maa_r
""")
_FUSED_7 = re.compile(r"layers\.([0-9]{1,6})\.attn\.x_x")
_FUSED_6 = re.compile(r"layers\.([0-9]{1,6})\.attn\.(x_bias|x_proj\.0\.linear\.weight|x_proj\.2\.weight)")
_ORDER_7, _ORDER_6 = "rwkvag", "rwkvg"
_REORDERED = [_ORDER_6.index(letter) for letter in "wkvrg"]


def from_fla_7(tensors: Mapping[str, Origin]) -> dict[str, Origin]:
    """The tensors of an RWKV-7 by BlinkDL's names."""
    fused = {name: match[1] for name in tensors if (match := _FUSED_7.fullmatch(name))}
    found = named_by(_RWKV_7, {name: one for name, one in tensors.items() if name not in fused})
    for name, block in fused.items():
        for letter, origin in _vectors(tensors[name], _ORDER_7).items():
            add(found, f"blocks.{block}.att.x_{letter}", origin)
    return found


def from_fla_6(tensors: Mapping[str, Origin]) -> dict[str, Origin]:
    """The tensors of an RWKV-6 by BlinkDL's names."""
    fused = {name: match for name in tensors if (match := _FUSED_6.fullmatch(name))}
    found = named_by(_RWKV_6, {name: one for name, one in tensors.items() if name not in fused})
    for name, match in fused.items():
        for target, origin in _parted(match[2], tensors[name]).items():
            add(found, f"blocks.{match[1]}.att.time_maa_{target}", origin)
    return found


def _parted(kind: str, origin: Origin) -> dict[str, Origin]:
    """What BlinkDL has for one of the tensors that hold five things; a wrong shape stays, to be named later."""
    if kind == "x_bias":
        return _vectors(origin, _ORDER_6)
    target = "w1" if kind == "x_proj.0.linear.weight" else "w2"
    if len(origin.shape) != 2 or origin.shape[target == "w2"] % len(_ORDER_6):
        return {target: origin}
    if target == "w1":
        return {target: Origin(origin.sources, origin.shape[::-1], _first_low_rank)}
    width, ranks = origin.shape
    return {target: Origin(origin.sources, (len(_ORDER_6), ranks // len(_ORDER_6), width), _second_low_rank)}


def _vectors(origin: Origin, order: str) -> dict[str, Origin]:
    """The vectors that are stacked in one tensor [n, C], by their letters; none if it is of another shape."""
    if origin.shape[:1] != (len(order),):
        return {}
    return {
        letter: Origin(origin.sources, origin.shape[1:], partial(_one_of, number))
        for number, letter in enumerate(order)
    }


def _one_of(number: int, stacked: torch.Tensor) -> torch.Tensor:
    return stacked[number]


def _first_low_rank(matrix: torch.Tensor) -> torch.Tensor:
    """[5R, C] to [C, 5R], the five groups in BlinkDL's order."""
    groups = matrix.reshape(len(_ORDER_6), -1, matrix.shape[1])
    return groups[_REORDERED].reshape(matrix.shape).t()


def _second_low_rank(matrix: torch.Tensor) -> torch.Tensor:
    """[C, 5R] to [5, R, C], the five groups in BlinkDL's order."""
    return matrix.t().reshape(len(_ORDER_6), -1, matrix.shape[0])[_REORDERED]

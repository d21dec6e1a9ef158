"""The names of rwkv-rs (rwkv-rs/rwkv7-g1-st, since August 2026): a transformer's, with `linear_attn` for the time mix.

Nothing is turned, and the first block lacks v0, v1 and v2. Its older files have BlinkDL's names.
"""

from __future__ import annotations

from collections.abc import Mapping

from ggufy.models.names.table import name_table, named_by
from ggufy.models.origin import Origin

_RWKV_7 = name_table("""
    embed_tokens.weight                   emb.weight
    lm_head.weight                        head.weight
    embedding_norm.*                      blocks.0.ln0.*
    norm.*                                ln_out.*
    layers.N.input_layernorm.*            blocks.N.ln1.*
    layers.N.post_attention_layernorm.*   blocks.N.ln2.*
    layers.N.linear_attn.r_proj.weight    blocks.N.att.receptance.weight
    layers.N.linear_attn.k_proj.weight    blocks.N.att.key.weight
    layers.N.linear_attn.v_proj.weight    blocks.N.att.value.weight
    layers.N.linear_attn.o_proj.weight    blocks.N.att.output.weight
    layers.N.linear_attn.g_norm.*         blocks.N.att.ln_x.*
    layers.N.linear_attn.*                blocks.N.att.*
    layers.N.mlp.*                        blocks.N.ffn.*
""")


def from_rwkv_rs(tensors: Mapping[str, Origin]) -> dict[str, Origin]:
    """The tensors of an RWKV-7 by BlinkDL's names."""
    return named_by(_RWKV_7, tensors)

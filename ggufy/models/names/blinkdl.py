"""BlinkDL's own names, and those that spell them out: the model of the Hugging Face transformers and of SmerkyG for
RWKV-7, of BBuf for RWKV-6 and 5 (`RWKV/v6-Finch-*-HF`), of transformers for RWKV-4, and chinoll's.

web-rwkv and Ai00 (`.st`) exchange the last two dimensions of all low-rank matrices, and have names of their own in
RWKV-6 and 5 (cryscan/web-rwkv, assets/scripts/convert_safetensors.py). The shape of one such matrix tells, since a
rank is never the model's width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ggufy.models.names.table import any_ends, name_table, named_by, turned
from ggufy.models.origin import Origin

BLINKDL = "BlinkDL"  # the title of the layout that all others are brought to
_SPELT_OUT = name_table("""
    embeddings.weight                           emb.weight
    lm_head.weight                              head.weight
    pre_ln.*                                    blocks.0.ln0.*
    blocks.N.pre_ln.*                           blocks.N.ln0.*
    blocks.N.attention.time_mix_key             blocks.N.att.time_mix_k
    blocks.N.attention.time_mix_value           blocks.N.att.time_mix_v
    blocks.N.attention.time_mix_receptance      blocks.N.att.time_mix_r
    blocks.N.attention.time_mix_gate            blocks.N.att.time_mix_g
    blocks.N.feed_forward.time_mix_key          blocks.N.ffn.time_mix_k
    blocks.N.feed_forward.time_mix_receptance   blocks.N.ffn.time_mix_r
    blocks.N.attention.*                        blocks.N.att.*
    blocks.N.feed_forward.*                     blocks.N.ffn.*
    layers.N.attention.*                        blocks.N.att.*
    layers.N.feed_forward.*                     blocks.N.ffn.*
    layers.N.pre_ln.*                           blocks.N.ln0.*
    layers.N.ln1.*                              blocks.N.ln1.*
    layers.N.ln2.*                              blocks.N.ln2.*
""")
_WEB_RWKV_6 = name_table("""
    blocks.N.att.time_mix_*    blocks.N.att.time_maa_*
    blocks.N.ffn.time_mix_*    blocks.N.ffn.time_maa_*
    blocks.N.att.time_first    blocks.N.att.time_faaaa
""")
_WEB_RWKV_5 = name_table("""
    blocks.N.att.time_first    blocks.N.att.time_faaaa
""")
_LOW_RANK = re.compile(r"blocks\.[0-9]+\.att\.(?:[wagv][12]|time_(?:maa|decay)_w[12])")
# One of them of every model, [C, R] as BlinkDL has it.
_TELLING = ("blocks.0.att.w1", "blocks.0.att.time_decay_w1")


def from_blinkdl(tensors: Mapping[str, Origin]) -> tuple[str, dict[str, Origin]]:
    """The layout's name, and the tensors by BlinkDL's names; those given have lost what stands before every name."""
    title = "Hugging Face (attention, feed_forward)" if any(".attention." in name for name in tensors) else BLINKDL
    found = named_by(_SPELT_OUT, tensors)
    if any_ends(found, ".att.time_mix_w1"):
        title, found = "web-rwkv", named_by(_WEB_RWKV_6, found)
    elif any(name.endswith(".att.time_first") and min((0, 0, *one.shape)[-2:]) > 1 for name, one in found.items()):
        title, found = "web-rwkv", named_by(_WEB_RWKV_5, found)
    if _exchanged(found):
        title = "web-rwkv"
        found = {name: turned(origin) if _LOW_RANK.fullmatch(name) else origin for name, origin in found.items()}
    return title, found


def _exchanged(found: Mapping[str, Origin]) -> bool:
    embedding = found["emb.weight"].shape if "emb.weight" in found else ()
    shape = next((found[name].shape for name in _TELLING if name in found), ())
    return len(embedding) == len(shape) == 2 and shape[1] == embedding[1] != shape[0]

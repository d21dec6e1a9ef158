"""How the tensors of a file are named and laid out, told from their names and shapes alone.

What wrappers put before every name is taken off first (`_orig_mod.` of torch.compile, `model.` of transformers and
Lightning, …). Then some name tells the family, in the order of `_FAMILIES`; the families are in names/, a file each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ggufy.core.errors import CheckpointError
from ggufy.models.architecture import Shapes, brief
from ggufy.models.names.blinkdl import from_blinkdl
from ggufy.models.names.fla import from_fla_6, from_fla_7
from ggufy.models.names.rwkv_rs import from_rwkv_rs
from ggufy.models.names.table import add
from ggufy.models.origin import Origin

_WRAPPERS = re.compile(r"^(?:(?:_orig_mod|_forward_module|module|model|rwkv7|rwkv)\.)+")
_ADAPTER = re.compile(r"\.(?:lora_[AB]|lora_magnitude_vector|miss_block|bone|disha)(?:\.|$)")
_HYBRIDS = {
    ".self_attn.time_mixer.": "ARWKV (RwkvHybridForCausalLM)",
    ".self_attn.time_maa_w1": "RWKV6Qwen2 (QRWKV6)",
}


@dataclass(frozen=True)
class Layout:
    """How the tensors of one file are named and laid out."""

    title: str  # whose names they are, for people; the same in every language
    origins: dict[str, Origin]  # by BlinkDL's name


def _family(title: str, read: Callable[[Mapping[str, Origin]], dict[str, Origin]]) -> Callable[..., Layout]:
    return lambda tensors: Layout(title, read(tensors))


# What finds a name that no other family has, and what reads it; files without any have BlinkDL's names, if any.
_FAMILIES: tuple[tuple[re.Pattern[str], Callable[[Mapping[str, Origin]], Layout]], ...] = (
    (re.compile(r"\.linear_attn\.(?:r_proj\.|w1$)"), _family("rwkv-rs (linear_attn)", from_rwkv_rs)),
    (re.compile(r"\.attn\.w_lora\.lora\.0\.weight$"), _family("fla RWKV-7", from_fla_7)),
    (re.compile(r"\.attn\.x_proj\.0\.mu$"), _family("fla RWKV-6", from_fla_6)),
)


def recognize(shapes: Shapes) -> Layout:
    """The layout of a file with these tensors. A tensor that it does not know keeps its own name.

    Raises CheckpointError for an adapter, a hybrid with a transformer, and two tensors that are one.
    """
    tensors: dict[str, Origin] = {}
    for name, shape in shapes.items():
        bare = _WRAPPERS.sub("", name)
        add(tensors, name if bare in shapes else bare, Origin((name,), shape))  # a copy beside the plain one is not it
    if adapter := next(filter(_ADAPTER.search, shapes), None):
        if any(name.endswith("emb.weight") for name in shapes):
            raise CheckpointError(
                "this model was saved with an adapter ({name}) that is not merged into it: merge it with the "
                "trainer's own script first.",
                name=brief(adapter),
            )
        raise CheckpointError("this is an adapter, not a model: give its base model, and the adapter with {LORA}.")
    for mark, title in _HYBRIDS.items():
        if any(mark in name for name in shapes):
            raise CheckpointError(
                "this is {title}, a transformer with RWKV in it: convert it with llama.cpp's convert_hf_to_gguf.py, "
                "and give the GGUF.",
                title=title,
            )
    read = next((read for mark, read in _FAMILIES if any(map(mark.search, tensors))), None)
    layout = read(tensors) if read else Layout(*from_blinkdl(tensors))
    if "head.weight" not in layout.origins and "emb.weight" in layout.origins:
        layout.origins["head.weight"] = layout.origins["emb.weight"]  # tied
    return layout


def origins_of(shapes: Shapes) -> dict[str, Origin]:
    """Where each tensor under BlinkDL's name comes from, in a file with these tensors. Raises as `recognize`."""
    return recognize(shapes).origins

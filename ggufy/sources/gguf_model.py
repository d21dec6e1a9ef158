"""Whether a GGUF holds a whole, unquantized model, told from its head: the one check for every way in.

That all tensors of an architecture are there is for llama.cpp to say, which loads the model before a job works on it
(steps/forecast.py): blocks differ in many architectures, and only it knows how. RWKV's are all alike.
"""

from __future__ import annotations

import re
from typing import Any

from ggufy.core.errors import SourceError
from ggufy.core.messages import Message
from ggufy.formats.gguf import GgufHead

# What other GGUFs are, by a word of their type or architecture, or the end of their first tensor's name.
_OTHERS = {
    "adapter": Message("an adapter (LoRA)"),
    ".lora_a": Message("an adapter (LoRA)"),
    "imatrix": Message("an imatrix"),
    ".in_sum2": Message("an imatrix"),
    "mmproj": Message("the part of a model that sees or hears (mmproj)"),
    "clip": Message("the part of a model that sees or hears (mmproj)"),
    "controlvector": Message("a control vector"),
}
_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.(.+)")


def check_model(head: GgufHead, name: str) -> None:
    """Raises SourceError, with what to do next, for what cannot be quantized; `name` is the file's."""
    said = head.metadata
    if number(said, "split.count") > 1:  # first: the parts behind the first one have hardly any metadata
        raise SourceError(
            "{name} is one part of several: join them with llama-gguf-split --merge, and give the whole.", name=name
        )
    kind, arch = str(said.get("general.type", "model")), said.get("general.architecture")
    ends = tuple(end for end in _OTHERS if end.startswith("."))
    found = next((end for end in ends if any(tensor.endswith(end) for tensor in head.tensors)), "")
    for word in (kind, arch, found):
        if word in _OTHERS:
            raise SourceError(
                "{name} is {what}, not a model: give an unquantized .gguf of a model, or a .pth.",
                name=name,
                what=_OTHERS[word],
            )
    if kind != "model" or not isinstance(arch, str) or not head.tensors:
        raise SourceError(
            "{name} is a GGUF without a model in it: give an unquantized .gguf of a model, or a .pth.", name=name
        )
    if head.quantized:
        raise SourceError(
            "{name} is quantized already: start from its F16, BF16 or F32 GGUF, or from the .pth.", name=name
        )
    if lost := _lost(head, arch):
        raise SourceError("{name} lacks tensors, such as {tensor}: fetch or convert it again.", name=name, tensor=lost)


def rwkv_version(architecture: str) -> str:
    """`6` or `7`; empty for other models than RWKV."""
    return match[1] if (match := re.match(r"a?rwkv([67])", architecture)) else ""


def number(metadata: dict[str, Any], key: str) -> int:
    """A whole number of the metadata; 0 if there is none."""
    value = metadata.get(key, 0)
    return value if isinstance(value, int) else 0


def _lost(head: GgufHead, arch: str) -> str:
    """A tensor that has to be there and is not; empty if none is known to be."""
    if "token_embd.weight" not in head.tensors:
        return "token_embd.weight"
    blocks: dict[int, set[str]] = {}
    for match in filter(None, map(_BLOCK.search, head.tensors)):
        blocks.setdefault(int(match[1]), set()).add(match[2])
    # Blocks that only predict further tokens are left out by some converters.
    count = number(head.metadata, f"{arch}.block_count") - number(head.metadata, f"{arch}.nextn_predict_layers")
    if count > 0 and max(blocks, default=-1) < count - 1:
        return f"blk.{count - 1}.*"
    if not rwkv_version(arch):
        return ""
    alike = set().union(*(names for at, names in blocks.items() if at))
    missing = [f"blk.{at}.{name}" for at in range(1, count) for name in sorted(alike - blocks.get(at, set()))]
    if arch in ("rwkv6", "rwkv7"):  # of their hybrids with transformers, some use the embedding as the head
        missing += [name for name in ("output_norm.weight", "output.weight") if name not in head.tensors]
    return missing[0] if missing else ""

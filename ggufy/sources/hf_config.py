"""What the config.json of a Hugging Face model says of it, and what llama.cpp's converter makes of that: read before
anything is downloaded, and never believed where weights say otherwise.

Which architectures and pre-tokenizers the pinned converter knows stands in hf_converter.json, which
`python -m tools.converter_names` writes from its source.
"""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ggufy.core.errors import CheckpointError, SourceError
from ggufy.core.messages import Message
from ggufy.models.architecture import brief
from ggufy.models.names.config import read_config
from ggufy.system.isolated import IsolatedFailure, run_isolated

# Transformers with RWKV in them, which llama.cpp has graphs for; other RWKVs have formats of their own.
_HYBRIDS = frozenset({"RWKV6Qwen2ForCausalLM", "RwkvHybridForCausalLM"})
# What has text_config's architecture for a part of the model only; as in get_model_architecture of the converter.
_WHOLE = frozenset(
    {
        "StepVLForConditionalGeneration",
        "Sarashina2VisionForCausalLM",
        "Exaone4_5_ForConditionalGeneration",
        "Step3p7ForConditionalGeneration",
        "KimiK3ForConditionalGeneration",
    }
)
# Quantized weights that the converter reads, back as numbers; all others it refuses.
READ_METHODS = frozenset({"gptq", "fp8", "compressed-tensors", "modelopt", "bitnet", "mxfp4"})
_SIZES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "head_size": ("head_dim",),
    "vocab_size": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
}
_LARGEST = 1 << 40
_HEADS = re.compile(r"(?:^|\.)mtp\.|^(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d{1,6})\.")
_CPU_S, _MEMORY = 20, 4 << 30  # of a fingerprint; a vocabulary of 262 thousand tokens takes some 0.5 GB


@functools.cache
def known() -> dict[str, Any]:
    """What the pinned converter knows: `text`, `mmproj` and `mtp` are names of architectures, `pre` is fingerprint to
    name of a pre-tokenizer."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("hf_converter.json").read_text(encoding="utf-8"))
    return content


def is_transformer(config: bytes) -> bool:
    """Whether a config.json is of a model that goes through llama.cpp's converter: it names an architecture, which is
    no plain RWKV."""
    try:
        name = architecture_of(read_config(config))
    except CheckpointError:
        return False
    return bool(name) and ("rwkv" not in name.lower() or name in _HYBRIDS)


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class of the part that reads and writes text, as the converter finds it; empty if none is named."""
    name = _first(config)
    return name if name in _WHOLE else _first(config.get("text_config")) or name


def sees(config: Mapping[str, Any]) -> bool:
    """Whether a part of the model sees or hears, of which the converter makes a file of its own."""
    name = _first(config.get("vision_config")) or _first(config)
    told = any("vision" in key or "audio" in key for key in config)  # some names are of texts alone, too
    return name in known()["mmproj"] and (told or not name.endswith("ForCausalLM"))


def has_heads(architecture: str, names: Iterable[str], layers: int) -> bool:
    """Whether a model has heads for several tokens at once that the converter can part from it, by the names of its
    tensors: those of `mtp`, or of blocks behind the last of `layers`."""
    if architecture not in known()["mtp"]:
        return False
    found = (_HEADS.search(name) for name in names)
    return any(one is not None and (one[1] is None or int(one[1]) >= layers) for one in found)


def describe_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields of a Report. Raises SourceError for what the converter refuses, when it is known by now; `name` is the
    model's."""
    architecture = architecture_of(config)
    if architecture not in known()["text"]:
        raise SourceError(
            "{name} is {architecture}, which llama.cpp's converter does not know: choose another model, or one of its "
            "GGUFs.",
            name=name,
            architecture=brief(architecture),
        )
    text = config.get("text_config")
    merged = {**config, **(text if isinstance(text, dict) else {})}
    found: dict[str, Any] = {field: _number(merged, keys) for field, keys in _SIZES.items()}
    if not found["head_size"] and found["heads"]:
        found["head_size"] = found["width"] // found["heads"]
    quantized = _quantized(config, name)
    notes = []
    if quantized:
        notes.append(Message("its weights were quantized by {method}: they are made numbers again", method=quantized))
    if merged.get("tie_word_embeddings") is True:
        notes.append(Message("the embedding is the head too"))
    if any(isinstance(config.get(key), dict) for key in ("vision_config", "audio_config")):
        notes.append(
            Message("what sees or hears becomes a file of its own (mmproj)")
            if sees(config)
            else Message("what sees or hears is left out: the GGUF is of the text part")
        )
    if "auto_map" in config:
        notes.append(Message("its own programs are not run"))
    return found | {"architecture": architecture, "mmproj": sees(config), "notes": tuple(notes)}


def pre_tokenizer(text: bytes) -> str | None:
    """The name of a tokenizer.json's pre-tokenizer; empty if the converter does not know it, None where it does not
    ask, or where none can be told. Raises SourceError for what is no JSON."""
    content = _read_json(text, "tokenizer.json")
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback"):
        return None
    if b"ByteLevel" not in text:
        return None
    with tempfile.TemporaryDirectory(prefix="ggufy-") as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(text)
        script = Path(__file__).with_name("hf_fingerprint.py").absolute()
        try:
            fingerprint = run_isolated(script, [str(path)], cpu_s=_CPU_S, memory=_MEMORY)
        except IsolatedFailure:
            return None
    names: Mapping[str, str] = known()["pre"]
    return names.get(fingerprint, "")


def without_programs(text: bytes, name: str) -> bytes:
    """A JSON file of a model without what names programs (`auto_map`), as it is if it names none. Raises SourceError
    for what is no JSON."""
    content = _read_json(text, name)
    cleaned = _without(content)
    return text if cleaned == content else json.dumps(cleaned, ensure_ascii=False, indent=1).encode()


def _read_json(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError("{name} is damaged: fetch it again.", name=name) from error


def _without(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without(value) for key, value in content.items() if key != "auto_map"}
    return [_without(value) for value in content] if isinstance(content, list) else content


def _first(config: Any) -> str:
    names = config.get("architectures") if isinstance(config, dict) else None
    name = names[0] if isinstance(names, list) and names else ""
    return name if isinstance(name, str) else ""


def _number(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    values = (config.get(key) for key in keys)
    return next((value for value in values if type(value) is int and 0 < value < _LARGEST), 0)


def _quantized(config: Mapping[str, Any], name: str) -> str:
    """How a model's weights were quantized; empty: they were not."""
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, dict) else None
    if said is None:
        return ""
    if not isinstance(method, str) or method not in READ_METHODS:
        raise SourceError(
            "{name} was quantized by {method}, which llama.cpp's converter cannot read: choose the model that it was "
            "made from.",
            name=name,
            method=brief(str(method)),
        )
    return method

"""adapter_config.json, which Hugging Face's PEFT saves beside an adapter: how its tensors are meant."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ggufy.core.errors import SourceError

LARGEST = 1e6  # of a rank, alpha or scale that makes sense
_LONGEST = 1 << 20  # bytes; they have one or two thousand
# Fields of adapter_config.json that, with any value but nothing, change what merging would have to do.
_REFUSED = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "use_qalora", "use_bdlora",
    "layer_replication", "fan_in_fan_out", "alora_invocation_tokens", "target_parameters", "trainable_token_indices",
    "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
# Other ways to begin (PiSSA, OLoRA, …) change the model that the adapter is then trained beside.
_BEGINNINGS = ("bat", "mini", "gaussian", "eva", "orthogonal", True, False, None)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What merging needs to know of it."""

    scale: float | None  # of B A; None: it is none of LoRA
    mini: int  # columns of D that stand for all; 0: it has all


def parse_config(text: bytes, name: str) -> AdapterConfig:
    """Reads the adapter_config.json of the adapter called `name`. Raises SourceError for what makes no sense, and what
    ggufy cannot merge."""
    try:
        config = json.loads(text) if len(text) <= _LONGEST else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        _refuse(name)
    _check(config, name)
    mini = config.get("init_weights") == "mini"
    return AdapterConfig(scale=_scale(config, name), mini=int(_number(config, "mini_r", name)) if mini else 0)


def _check(config: Mapping[str, Any], name: str) -> None:
    """Refuses what would have to be merged in another way."""
    kind = config.get("peft_type", "LORA")
    if kind not in ("LORA", "MISS", "BONE"):
        raise SourceError(
            "{name} is an adapter of the type {kind}, which ggufy cannot merge: merge it with PEFT, and give the "
            "result as the source.",
            name=name,
            kind=tame(str(kind)),
        )
    wrong = next((field for field in _REFUSED if config.get(field)), None)
    if config.get("bias", "none") not in ("none", None):
        wrong = "bias"
    for field in ("init_lora_weights", "init_weights"):
        if not any(config.get(field) is known or config.get(field) == known for known in _BEGINNINGS):
            wrong = f"{field}: {tame(str(config[field]))}"
    if wrong:
        raise SourceError(
            "{name} was trained with {option} (see its adapter_config.json), which ggufy cannot merge: merge it with "
            "PEFT, and give the result as the source.",
            name=name,
            option=wrong,
        )


def _scale(config: Mapping[str, Any], name: str) -> float | None:
    """alpha / r, or alpha / sqrt(r) of rank-stabilized LoRA."""
    if "lora_alpha" not in config:
        return None
    r, alpha = _number(config, "r", name), _number(config, "lora_alpha", name)
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _number(config: Mapping[str, Any], field: str, name: str) -> float:
    number = config.get(field)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= LARGEST:
        _refuse(name)
    return number


def _refuse(name: str) -> NoReturn:
    raise SourceError("the adapter_config.json of {name} makes no sense: fetch or save it again.", name=name)


def tame(text: str) -> str:
    """A stranger's text, as part of a sentence."""
    return repr(text[:80])[1:-1]

"""What a config.json beside a model is good for: refusing what its tensors do not tell. Sizes come from the shapes.

`vocab_size` and the ids of special tokens are often wrong in published files, and are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ggufy.core.errors import CheckpointError
from ggufy.models.architecture import Hyperparameters

CONFIG_FILE = "config.json"
LONGEST_CONFIG = 1 << 20  # bytes
# Keys that llama.cpp's graphs have no way for if they are not as here, where they are given at all. An embedding that
# is normalized already would be normalized again, and no weight of that norm undoes it.
_NEEDED = {"embedding_layer_norm_fused": False, "attn": None, "norm_first": True, "norm_bias": True}


def read_config(text: bytes) -> dict[str, Any]:
    """A config.json; raises CheckpointError for what is none."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError("{name} is damaged: fetch it again, or leave it out.", name=CONFIG_FILE)
    return config


def other_architecture(config: Mapping[str, Any]) -> str:
    """What a config says that its model is, if that is no RWKV; empty if it says nothing."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else config.get("model_type")
    return repr(name[:80])[1:-1] if isinstance(name, str) and "rwkv" not in name.lower() else ""


def check_config(config: Mapping[str, Any], model: Hyperparameters) -> None:
    """Raises CheckpointError if a config tells of something that cannot be converted, or of another model."""
    for key, needed in _NEEDED.items():
        if key in config and config[key] != needed:
            _refuse(key, config[key])
    values = config.get("value_dim")
    if any(one != model.width for one in (values if isinstance(values, list) else [values]) if one is not None):
        _refuse("value_dim", values)
    for key, size in (("hidden_size", model.width), ("num_hidden_layers", model.layers)):
        if isinstance(config.get(key), int) and config[key] != size:
            raise CheckpointError(
                "{name} is of another model ({key} is {said}, the tensors have {found}): fetch the folder again.",
                name=CONFIG_FILE,
                key=key,
                said=config[key],
                found=size,
            )


def _refuse(key: str, value: Any) -> None:
    raise CheckpointError(
        "{name} says {key} {value}, which llama.cpp's RWKV cannot do: choose another checkpoint.",
        name=CONFIG_FILE,
        key=key,
        value=repr(json.dumps(value)[:80])[1:-1],
    )

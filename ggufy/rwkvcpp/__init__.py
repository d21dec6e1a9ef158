"""rwkv.cpp's world: its files made from an RWKV's tensors, quantized, merged with adapters and brought up to date, and
whatever runs them. What stands in a file is parsed in `formats`.

Imports core, system, formats, models and llama.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggufy.rwkvcpp.model import RWKVModel, load_rwkv_shared_library

__all__ = ["RWKVModel", "load_rwkv_shared_library"]


def __getattr__(name: str) -> Any:
    """Loads what scripts import from here, and with it the engine, at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module("ggufy.rwkvcpp.model"), name)

"""The blocks of rwkv.cpp's files of version 100 (April and May 2023), which ggml has changed since: their values.

In all types of 4 and 5 bits a byte holds two neighbours, the first in its low half; today's blocks have the second
half of a block there. A fifth bit has the number of its value. Layouts are those of ggml at that time, and Q4_1_O
rwkv.cpp's own: the value of largest magnitude stands beside the others, by its number in the block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ggufy.formats.rwkvcpp import OLD_TYPES

F32Array = np.ndarray[Any, np.dtype[np.float32]]
_Blocks = np.ndarray[Any, np.dtype[Any]]  # structured: [blocks]

_LAYOUTS: dict[str, list[tuple[str, ...] | tuple[str, str, tuple[int]]]] = {
    "Q4_0": [("d", "<f4"), ("q", "u1", (16,))],
    "Q4_1": [("d", "<f4"), ("m", "<f4"), ("q", "u1", (16,))],
    "Q4_1_O": [("d", "<f2"), ("m", "<f2"), ("place", "<u2"), ("outlier", "<f2"), ("q", "u1", (16,))],
    "Q4_2": [("d", "<f2"), ("q", "u1", (8,))],
    "Q4_3": [("d", "<f2"), ("m", "<f2"), ("q", "u1", (8,))],
    "Q5_0": [("d", "<f2"), ("high", "u1", (4,)), ("q", "u1", (16,))],
    "Q5_1": [("d", "<f2"), ("m", "<f2"), ("high", "u1", (4,)), ("q", "u1", (16,))],
    "Q8_0": [("d", "<f4"), ("q", "i1", (32,))],
}


def dequantize(raw: bytes, type_name: str) -> F32Array:
    """The values, flat, of whole blocks of a type of version 100."""
    blocks = np.frombuffer(raw, dtype=np.dtype(_LAYOUTS[type_name]))
    values = _INTEGERS[type_name[:2]](blocks).astype(np.float32) * _column(blocks, "d")
    if "m" in blocks.dtype.names:  # type: ignore[operator]
        values += _column(blocks, "m")
    if type_name == "Q4_1_O":
        values[np.arange(len(blocks)), blocks["place"] % OLD_TYPES[type_name].block] = blocks["outlier"]
    return values.reshape(-1)


def _column(blocks: _Blocks, name: str) -> F32Array:
    return blocks[name].astype(np.float32)[:, None]


def _four_bits(blocks: _Blocks) -> _Blocks:
    """[blocks, values], from -8 where there is no minimum."""
    halves = np.stack((blocks["q"] & 15, blocks["q"] >> 4), axis=-1).reshape(len(blocks), -1).astype(np.int8)
    return halves if "m" in (blocks.dtype.names or ()) else halves - np.int8(8)


def _five_bits(blocks: _Blocks) -> _Blocks:
    """[blocks, values], from -16 where there is no minimum."""
    halves = np.stack((blocks["q"] & 15, blocks["q"] >> 4), axis=-1).reshape(len(blocks), -1).astype(np.int8)
    fifth = np.unpackbits(blocks["high"], axis=1, bitorder="little").astype(np.int8) << 4
    return halves + fifth - np.int8(0 if "m" in (blocks.dtype.names or ()) else 16)


_INTEGERS: dict[str, Callable[[_Blocks], _Blocks]] = {
    "Q4": _four_bits,
    "Q5": _five_bits,
    "Q8": lambda blocks: blocks["q"],
}

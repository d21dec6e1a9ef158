"""What a format of blocks whose weights have a code each is for those who choose the codes.

Blocks are given as planes, U8 [bytes of a block, rows]: one block of each row, byte by byte, so that every operation
runs over many rows at once. Codes are U8 [weights of a block, rows].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

F32Array = np.ndarray[Any, np.dtype[np.float32]]
ByteArray = np.ndarray[Any, np.dtype[Any]]  # U8

# What the 4-bit codes of IQ4_NL and IQ4_XS stand for, in units of their scale (ggml-common.h, kvalues_iq4nl).
NONLINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Scales:
    """A code c stands for scale * level(c) + offset; see CodeFormat.levels."""

    scale: F32Array  # [groups, rows]
    offset: F32Array | None = None  # [groups, rows]; None: 0


@dataclass(frozen=True, kw_only=True)
class CodeFormat(ABC):
    """One tensor type. Layouts are those of ggml-common.h, decoding that of dequantize_row_* in ggml-quants.c."""

    name: str
    block: int  # weights
    size: int  # bytes of a block
    group: int  # neighbouring weights that share a scale
    halves: tuple[int, ...]  # where the F16s begin that a block's values are multiples of
    levels: F32Array  # what each code stands for in units of the scale, rising
    lowest: int = 0  # the first code that may be chosen
    even: bool = True  # whether the levels are whole numbers without gaps

    @abstractmethod
    def scales(self, planes: ByteArray) -> Scales: ...

    @abstractmethod
    def unpack(self, planes: ByteArray) -> ByteArray:
        """The codes in the blocks."""

    @abstractmethod
    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        """Writes codes into the blocks, and leaves the rest of them as it is."""

    def decode(self, planes: ByteArray) -> F32Array:
        """What the blocks stand for, F32 [weights, rows]: the same bits as ggml's.

        Products of a scale (an F16, times 6 bits at most) and a level (8 bits at most) are whole in an F32, so it does
        not matter whether ggml was built with fused multiplication and addition.
        """
        found = self.scales(planes)
        values = self.levels[self.unpack(planes)].reshape(self.block // self.group, self.group, -1)
        values = values * found.scale[:, None]
        if found.offset is not None:
            values += found.offset[:, None]
        return np.asarray(values.reshape(self.block, -1), dtype=np.float32)


def whole_levels(zero: int, count: int) -> F32Array:
    """Levels of `count` codes of which `zero` stands for 0."""
    return np.arange(count, dtype=np.float32) - np.float32(zero)


def half(planes: ByteArray, at: int) -> F32Array:
    """The F16 that begins at a byte of each block, F32 [1, rows]."""
    pairs = np.ascontiguousarray(planes[at : at + 2].T)
    return np.asarray(pairs.view("<f2").T, dtype=np.float32)


def nibbles(planes: ByteArray, run: int) -> ByteArray:
    """Bytes whose low halves are `run` codes, and whose high halves the `run` codes behind them -> codes."""
    low = planes.reshape(-1, 1, run, planes.shape[1])
    return np.concatenate([low & 15, low >> 4], axis=1).reshape(-1, planes.shape[1])


def into_nibbles(codes: ByteArray, run: int) -> ByteArray:
    """The opposite of `nibbles`; only the low four bits of the codes are taken."""
    pairs = (codes & 15).reshape(-1, 2, run, codes.shape[1])
    return (pairs[:, 0] | pairs[:, 1] << 4).reshape(-1, codes.shape[1])


def crumbs(planes: ByteArray, run: int) -> ByteArray:
    """The same for four codes of two bits in a byte."""
    bytes_of = planes.reshape(-1, 1, run, planes.shape[1])
    return np.concatenate([bytes_of >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).reshape(-1, planes.shape[1])


def into_crumbs(codes: ByteArray, run: int) -> ByteArray:
    """The opposite of `crumbs`; only the low two bits of the codes are taken."""
    four = (codes & 3).reshape(-1, 4, run, codes.shape[1])
    made = four[:, 0] | four[:, 1] << 2 | four[:, 2] << 4 | four[:, 3] << 6
    return np.asarray(made.reshape(-1, codes.shape[1]))


def bits(planes: ByteArray) -> ByteArray:
    """Bytes [run, rows] whose bit k belongs to code k * run + byte -> bits [8 * run, rows]."""
    return np.concatenate([np.asarray(planes >> shift & 1) for shift in range(8)])


def into_bits(ones: ByteArray) -> ByteArray:
    """The opposite of `bits`."""
    eight = ones.reshape(8, -1, ones.shape[1])
    made: ByteArray = np.zeros_like(eight[0])
    for shift in range(8):
        made |= eight[shift] << shift
    return made

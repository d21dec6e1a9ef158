"""Super-blocks of 256 weights that are points of a lattice: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S.

A point is a vector of a small grid, whose numbers are positive, times a scale, with a sign for each of its numbers.
Where a format keeps seven of eight signs, the number of minus signs is even.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from gguf import quants

from ggufy.quantize.codes.code_format import ByteArray, F32Array, half, into_crumbs, nibbles

BLOCK = 256
SIGNS = 8  # weights whose signs are in one byte


@dataclass(frozen=True, kw_only=True)
class LatticeFormat(ABC):
    """One tensor type; planes are those of CodeFormat."""

    name: str
    size: int  # bytes of a block
    width: int  # weights of a point
    span: int  # neighbouring weights that share a scale
    even_signs: bool

    @property
    def grid(self) -> F32Array:
        """The vectors, [count, width]."""
        return _grid(self.name)

    @abstractmethod
    def scales(self, planes: ByteArray) -> F32Array:
        """[256 / span, rows]; none is negative."""

    @abstractmethod
    def pack(self, points: ByteArray, signs: ByteArray, planes: ByteArray) -> None:
        """Writes numbers of vectors, U16 [256 / width, rows], and signs, U8 [32, rows], into the blocks; bit k is the
        sign of the k-th of eight weights."""


@functools.cache
def _grid(name: str) -> F32Array:
    kind = getattr(quants, name)
    kind.init_grid()
    return np.asarray(kind.grid.reshape(-1, kind.grid.shape[-1]), dtype=np.float32)


def _scale_words(signs: ByteArray, planes: ByteArray, at: int, step: int) -> None:
    """Puts four times seven signs into each of the eight words of 32 bits that begin so many bytes apart, and leaves
    their scales, the upper four bits."""
    seven = (signs & 127).astype(np.uint32).reshape(8, 4, -1)
    low = seven[:, 0] | seven[:, 1] << 7 | seven[:, 2] << 14 | seven[:, 3] << 21
    for word in range(8):
        first = at + word * step
        planes[first : first + 3] = [low[word] >> shift & 255 for shift in (0, 8, 16)]
        planes[first + 3] = low[word] >> 24 | planes[first + 3] & 240


@dataclass(frozen=True, kw_only=True)
class IQ2XXS(LatticeFormat):
    """d, then for each 32 weights the numbers of four vectors and a word of signs and scale."""

    def scales(self, planes: ByteArray) -> F32Array:
        return half(planes, 0) * (np.float32(0.5) + (planes[9::8] >> 4).astype(np.float32)) * np.float32(0.25)

    def pack(self, points: ByteArray, signs: ByteArray, planes: ByteArray) -> None:
        planes[2:].reshape(8, 8, -1)[:, :4] = points.reshape(8, 4, -1)
        _scale_words(signs, planes, 6, 8)


@dataclass(frozen=True, kw_only=True)
class IQ2XS(LatticeFormat):
    """d, words of 9 bits for the vector and 7 signs, scales 8 of 4 bits."""

    def scales(self, planes: ByteArray) -> F32Array:
        return half(planes, 0) * (np.float32(0.5) + nibbles(planes[66:74], 1).astype(np.float32)) * np.float32(0.25)

    def pack(self, points: ByteArray, signs: ByteArray, planes: ByteArray) -> None:
        planes[2:66:2] = points & 255
        planes[3:66:2] = points >> 8 | (signs & 127) << 1


@dataclass(frozen=True, kw_only=True)
class IQ2S(LatticeFormat):
    """d, low bytes of the vectors' numbers 32, signs 32, their upper two bits 8, scales 8 of 4 bits."""

    def scales(self, planes: ByteArray) -> F32Array:
        return half(planes, 0) * (np.float32(0.5) + nibbles(planes[74:82], 1).astype(np.float32)) * np.float32(0.25)

    def pack(self, points: ByteArray, signs: ByteArray, planes: ByteArray) -> None:
        planes[2:34], planes[34:66] = points & 255, signs
        planes[66:74] = into_crumbs(points >> 8, 1)


@dataclass(frozen=True, kw_only=True)
class IQ3XXS(LatticeFormat):
    """d, numbers of the vectors 64, and for each 32 weights a word of signs and scale."""

    def scales(self, planes: ByteArray) -> F32Array:
        return half(planes, 0) * (np.float32(0.5) + (planes[69::4] >> 4).astype(np.float32)) * np.float32(0.5)

    def pack(self, points: ByteArray, signs: ByteArray, planes: ByteArray) -> None:
        planes[2:66] = points
        _scale_words(signs, planes, 66, 4)


@dataclass(frozen=True, kw_only=True)
class IQ3S(LatticeFormat):
    """d, low bytes of the vectors' numbers 64, their ninth bits 8, signs 32, scales 4 of 4 bits."""

    def scales(self, planes: ByteArray) -> F32Array:
        return half(planes, 0) * (np.float32(1) + 2 * nibbles(planes[106:110], 1).astype(np.float32))

    def pack(self, points: ByteArray, signs: ByteArray, planes: ByteArray) -> None:
        planes[2:66], planes[74:106] = points & 255, signs
        ninth = (points >> 8).astype(np.uint8).reshape(8, 8, -1)
        planes[66:74] = np.packbits(ninth, axis=1, bitorder="little")[:, 0]


LATTICE_FORMATS: tuple[LatticeFormat, ...] = (
    IQ2XXS(name="IQ2_XXS", size=66, width=8, span=32, even_signs=True),
    IQ2XS(name="IQ2_XS", size=74, width=8, span=16, even_signs=True),
    IQ2S(name="IQ2_S", size=82, width=8, span=16, even_signs=False),
    IQ3XXS(name="IQ3_XXS", size=98, width=4, span=32, even_signs=True),
    IQ3S(name="IQ3_S", size=110, width=4, span=32, even_signs=False),
)

"""Blocks of 32 weights with one scale each: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and IQ4_NL."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ggufy.quantize.codes.code_format import (
    NONLINEAR,
    ByteArray,
    CodeFormat,
    Scales,
    half,
    into_nibbles,
    nibbles,
    whole_levels,
)


@dataclass(frozen=True, kw_only=True)
class SmallFormat(CodeFormat):
    """An F16 scale, an F16 offset if there is one, the fifth bits if there are any, and the codes."""

    block: int = 32
    group: int = 32
    offset: bool = False
    fifth: bool = False

    def scales(self, planes: ByteArray) -> Scales:
        return Scales(scale=half(planes, 0), offset=half(planes, 2) if self.offset else None)

    def unpack(self, planes: ByteArray) -> ByteArray:
        codes = nibbles(planes[-16:], 16)
        return codes | np.unpackbits(planes[-20:-16], axis=0, bitorder="little") << 4 if self.fifth else codes

    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        planes[-16:] = into_nibbles(codes, 16)
        if self.fifth:
            planes[-20:-16] = np.packbits(codes >> 4, axis=0, bitorder="little")


@dataclass(frozen=True, kw_only=True)
class EightBits(SmallFormat):
    """Signed bytes; code 128 stands for 0, and -128 is never chosen, as in the kernel."""

    def unpack(self, planes: ByteArray) -> ByteArray:
        return planes[2:] ^ np.uint8(128)

    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        planes[2:] = codes ^ np.uint8(128)


SMALL_FORMATS: tuple[CodeFormat, ...] = (
    SmallFormat(name="Q4_0", size=18, halves=(0,), levels=whole_levels(8, 16)),
    SmallFormat(name="Q4_1", size=20, halves=(0, 2), levels=whole_levels(0, 16), offset=True),
    SmallFormat(name="Q5_0", size=22, halves=(0,), levels=whole_levels(16, 32), fifth=True),
    SmallFormat(name="Q5_1", size=24, halves=(0, 2), levels=whole_levels(0, 32), offset=True, fifth=True),
    EightBits(name="Q8_0", size=34, halves=(0,), levels=whole_levels(128, 256), lowest=1),
    SmallFormat(name="IQ4_NL", size=18, halves=(0,), levels=NONLINEAR, even=False),
)

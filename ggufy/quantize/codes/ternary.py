"""Three values and one scale for 256 weights: TQ1_0 and TQ2_0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ggufy.quantize.codes.code_format import (
    ByteArray,
    CodeFormat,
    Scales,
    crumbs,
    half,
    into_crumbs,
    whole_levels,
)

_RUNS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))  # of TQ1_0: first byte, bytes, codes a byte


@dataclass(frozen=True, kw_only=True)
class Ternary(CodeFormat):
    """TQ2_0: codes 64 of two bits, d."""

    block: int = 256
    group: int = 256

    def scales(self, planes: ByteArray) -> Scales:
        return Scales(scale=half(planes, self.size - 2))

    def unpack(self, planes: ByteArray) -> ByteArray:
        return crumbs(planes[:64], 32)

    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        planes[:64] = into_crumbs(codes, 32)


@dataclass(frozen=True, kw_only=True)
class Base3(Ternary):
    """TQ1_0: bytes of five codes, as a fraction of 256 whose digits in base 3 they are, then d."""

    def unpack(self, planes: ByteArray) -> ByteArray:
        found = []
        for first, count, digits in _RUNS:
            rest = planes[first : first + count]
            for _ in range(digits):
                found.append((rest.astype(np.uint16) * 3 >> 8).astype(np.uint8))
                rest = rest * np.uint8(3)  # without what is more than a byte
        return np.concatenate(found)

    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        at = 0
        for first, count, digits in _RUNS:
            number = np.zeros((count, codes.shape[1]), dtype=np.uint32)
            for place in range(5):
                number *= 3
                if place < digits:
                    number += codes[at : at + count]
                    at += count
            planes[first : first + count] = (number * 256 + 242) // 243  # rounded up, so that no digit is lost


TERNARY_FORMATS: tuple[CodeFormat, ...] = (
    Base3(name="TQ1_0", size=54, halves=(52,), levels=whole_levels(1, 3)),
    Ternary(name="TQ2_0", size=66, halves=(64,), levels=whole_levels(1, 3)),
)

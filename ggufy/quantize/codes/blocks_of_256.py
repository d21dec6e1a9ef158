"""Super-blocks of 256 weights: an F16 scale for all, and one of few bits for each group of 16 or 32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ggufy.quantize.codes.code_format import (
    NONLINEAR,
    ByteArray,
    CodeFormat,
    Scales,
    bits,
    crumbs,
    half,
    into_bits,
    into_crumbs,
    into_nibbles,
    nibbles,
    whole_levels,
)


@dataclass(frozen=True, kw_only=True)
class KFormat(CodeFormat):
    block: int = 256


@dataclass(frozen=True, kw_only=True)
class Q2K(KFormat):
    """scales 16 (low half: scale, high half: minimum), codes 64, d, dmin."""

    def scales(self, planes: ByteArray) -> Scales:
        packed = planes[:16]
        return Scales(scale=half(planes, 80) * (packed & 15), offset=-(half(planes, 82) * (packed >> 4)))

    def unpack(self, planes: ByteArray) -> ByteArray:
        return crumbs(planes[16:80], 32)

    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        planes[16:80] = into_crumbs(codes, 32)


@dataclass(frozen=True, kw_only=True)
class Q3K(KFormat):
    """third bits 32, codes 64, scales 12 of 6 bits, d."""

    def scales(self, planes: ByteArray) -> Scales:
        packed = planes[96:108]
        low = np.concatenate([packed[:8] & 15, packed[:8] >> 4])
        high = np.concatenate([packed[8:] >> shift & 3 for shift in (0, 2, 4, 6)])
        return Scales(scale=half(planes, 108) * ((low | high << 4).astype(np.float32) - np.float32(32)))

    def unpack(self, planes: ByteArray) -> ByteArray:
        codes: ByteArray = crumbs(planes[32:96], 32) | bits(planes[:32]) << 2
        return codes

    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        planes[:32] = into_bits(codes >> 2)
        planes[32:96] = into_crumbs(codes, 32)


@dataclass(frozen=True, kw_only=True)
class Q4K(KFormat):
    """d, dmin, scales and minima 12 of 6 bits, [fifth bits 32,] codes 128."""

    fifth: bool = False

    def scales(self, planes: ByteArray) -> Scales:
        a, b, c = planes[4:8], planes[8:12], planes[12:16]
        scale = np.concatenate([a & 63, c & 15 | a >> 6 << 4])
        least = np.concatenate([b & 63, c >> 4 | b >> 6 << 4])
        return Scales(scale=half(planes, 0) * scale, offset=-(half(planes, 2) * least))

    def unpack(self, planes: ByteArray) -> ByteArray:
        codes = nibbles(planes[-128:], 32)
        return codes | bits(planes[16:48]) << 4 if self.fifth else codes

    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        planes[-128:] = into_nibbles(codes, 32)
        if self.fifth:
            planes[16:48] = into_bits(codes >> 4)


@dataclass(frozen=True, kw_only=True)
class Q6K(KFormat):
    """low halves 128, high bits 64, scales 16 signed bytes, d."""

    def scales(self, planes: ByteArray) -> Scales:
        return Scales(scale=half(planes, 208) * planes[192:208].view(np.int8))

    def unpack(self, planes: ByteArray) -> ByteArray:
        codes: ByteArray = nibbles(planes[:128], 64) | crumbs(planes[128:192], 32) << 4
        return codes

    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        planes[:128] = into_nibbles(codes, 64)
        planes[128:192] = into_crumbs(codes >> 4, 32)


@dataclass(frozen=True, kw_only=True)
class IQ4XS(KFormat):
    """d, high bits of the scales 2, low halves of the scales 4, codes 128."""

    def scales(self, planes: ByteArray) -> Scales:
        low = nibbles(planes[4:8], 1)
        high = np.concatenate([planes[2:4, None] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1).reshape(8, -1)
        return Scales(scale=half(planes, 0) * ((low | high << 4).astype(np.float32) - np.float32(32)))

    def unpack(self, planes: ByteArray) -> ByteArray:
        return nibbles(planes[8:], 16)

    def pack(self, codes: ByteArray, planes: ByteArray) -> None:
        planes[8:] = into_nibbles(codes, 16)


K_FORMATS: tuple[CodeFormat, ...] = (
    Q2K(name="Q2_K", size=84, group=16, halves=(80, 82), levels=whole_levels(0, 4)),
    Q3K(name="Q3_K", size=110, group=16, halves=(108,), levels=whole_levels(4, 8)),
    Q4K(name="Q4_K", size=144, group=32, halves=(0, 2), levels=whole_levels(0, 16)),
    Q4K(name="Q5_K", size=176, group=32, halves=(0, 2), levels=whole_levels(0, 32), fifth=True),
    Q6K(name="Q6_K", size=210, group=16, halves=(208,), levels=whole_levels(32, 64)),
    IQ4XS(name="IQ4_XS", size=136, group=32, halves=(0,), levels=NONLINEAR, even=False),
)

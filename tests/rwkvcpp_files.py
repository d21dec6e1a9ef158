"""Files of rwkv.cpp written field by field, as its FILE_FORMAT.md describes them, so that a test can also lie."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Written:
    """One record; sizes are innermost first, as in the file."""

    name: bytes
    type: int
    sizes: Sequence[int]
    data: bytes
    dimensions: int | None = None
    length: int | None = None

    @property
    def packed(self) -> bytes:
        dimensions = len(self.sizes) if self.dimensions is None else self.dimensions
        length = len(self.name) if self.length is None else self.length
        start = struct.pack("<3i", dimensions, length, self.type)
        return start + struct.pack(f"<{len(self.sizes)}i", *self.sizes) + self.name + self.data


def write(
    path: Path,
    records: Sequence[Written],
    *,
    magic: int = 0x67676D66,
    version: int = 101,
    tokens: int = 5,
    width: int = 64,
    layers: int = 1,
    type_number: int = 0,
) -> Path:
    header = struct.pack("<I5i", magic, version, tokens, width, layers, type_number)
    path.write_bytes(header + b"".join(record.packed for record in records))
    return path

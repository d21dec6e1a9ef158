"""Files that many threads read from and write to, each at its own place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggufy.core.errors import SourceError
from ggufy.llama.ggml import ByteArray


@dataclass(frozen=True)
class OpenFile:
    """A file to read from at any place; of one that shrinks meanwhile, a mapping in memory would end the process."""

    path: Path
    descriptor: int

    def read(self, offset: int, size: int) -> ByteArray:
        data = os.pread(self.descriptor, size, offset)
        while len(data) < size:
            more = os.pread(self.descriptor, size - len(data), offset + len(data))
            if not more:
                raise SourceError("{path} became shorter while it was read: {AGAIN}.", path=self.path)
            data += more
        return np.frombuffer(data, dtype=np.uint8)


def write_at(file: int, data: bytes | memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written

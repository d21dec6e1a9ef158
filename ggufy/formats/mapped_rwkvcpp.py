"""An unquantized file of rwkv.cpp on this machine: its values are mapped, and read when they are used."""

from __future__ import annotations

import mmap
import warnings
from pathlib import Path
from types import TracebackType

import torch

from ggufy.core.errors import SourceError
from ggufy.formats.rwkvcpp import RwkvcppHead

_DTYPES = {"FP32": torch.float32, "FP16": torch.float16}


class MappedRwkvcpp:
    """The tensors of a file whose head was read, by name; a context manager.

    `shapes` and `dtypes` cost no reading. Raises SourceError for a quantized file, and one that changed since.
    """

    def __init__(self, path: Path, head: RwkvcppHead):
        if head.quantized:
            raise SourceError(
                "{name} is quantized already: start from its FP32 or FP16 file, or from the .pth.", name=path.name
            )
        self.name = path.name
        self.shapes = {name: record.shape for name, record in head.records.items()}
        self.dtypes = {name: _DTYPES[record.type] for name, record in head.records.items()}
        self._records = head.records
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._map) != head.file_size:
            raise SourceError("{name} changed while it was read: {AGAIN}.", name=path.name)

    def __enter__(self) -> MappedRwkvcpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Views given out before stay valid."""
        del self._map

    def tensor(self, name: str) -> torch.Tensor:
        """Its values, contiguous, of the shape `shapes[name]`. Never write to them."""
        record, dtype = self._records[name], self.dtypes[name]
        with warnings.catch_warnings(action="ignore"):  # of memory that must not be written to: nobody does
            data = torch.frombuffer(self._map, dtype=torch.uint8, count=record.size, offset=record.offset)
        if record.offset % dtype.itemsize:
            data = data.clone()  # records lie anywhere, and not all processors read a value that lies so
        return data.view(dtype).view(record.shape)

    def release(self, name: str) -> None:
        """Takes the pages of a tensor out of this process's memory; they come back from the file if used again."""
        record = self._records[name]
        first = -(-record.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (record.offset + record.size) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, length)

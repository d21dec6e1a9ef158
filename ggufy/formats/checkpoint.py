"""RWKV checkpoints (.pth), opened without reading and without running anything in them.

`open_checkpoint` reads the list of tensors (see pickled.py) and maps the file into memory. A tensor is a view on its
record; it is read from the disk when its values are first used, and `release` gives its pages back.
"""

from __future__ import annotations

import mmap
import warnings
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from ggufy.core.errors import CheckpointError
from ggufy.formats.pickle_machine import PickledTensor
from ggufy.formats.pickled import LOCAL_HEADER, Archive, read_archive

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
}


class Checkpoint:
    """The tensors of one open .pth, by name; a context manager.

    `shapes` and `dtypes` are known at once and cost no reading. Made by `open_checkpoint`.
    """

    def __init__(self, name: str, archive: Archive, data: mmap.mmap) -> None:
        self.name = name
        self.shapes = {name: tensor.shape for name, tensor in archive.tensors.items()}
        self.dtypes = {name: DTYPES[tensor.dtype] for name, tensor in archive.tensors.items()}
        self._archive, self._data = archive, data

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the mapping; views given out before stay valid."""
        vars(self).pop("_data", None)  # closing it would take it from them: torch keeps it, but not as a buffer

    def tensor(self, name: str) -> torch.Tensor:
        """A view on the mapped file: its shape is `shapes[name]`, its strides are the file's. Never write to it.

        Raises CheckpointError if its record makes no sense.
        """
        tensor, dtype = self._archive.tensors[name], self.dtypes[name]
        if not tensor.elements:
            return torch.empty(tensor.shape, dtype=dtype)
        start, stop = self._place(tensor)
        count = (stop - start) // tensor.width
        data: mmap.mmap | bytearray = self._data
        if start % tensor.width:  # as in files before PyTorch 1.6: not all processors read a value that lies so
            data, start = bytearray(memoryview(self._data)[start:stop]), 0
        with warnings.catch_warnings(action="ignore"):  # of memory that must not be written to: nobody does
            values = torch.frombuffer(data, dtype=dtype, count=count, offset=start)
        return values.as_strided(tensor.shape, tensor.strides)

    def release(self, name: str) -> None:
        """Takes the pages of a tensor out of this process's memory; they come back from the file if used again."""
        tensor = self._archive.tensors[name]
        start, stop = self._place(tensor) if tensor.elements else (0, 0)
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = stop // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED, first, length)

    def _place(self, tensor: PickledTensor) -> tuple[int, int]:
        """First byte of a tensor within the file, and the byte after its last."""
        record = self._archive.records[tensor.key]
        lead = record.lead(self._data[record.begin : min(record.end, record.begin + LOCAL_HEADER)], self.name)
        low, high = span_of(tensor)
        return record.begin + lead + low, record.begin + lead + high


def span_of(tensor: PickledTensor) -> tuple[int, int]:
    """First byte of a tensor within its record, and the byte after its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    return tensor.offset * tensor.width, (tensor.offset + last + 1) * tensor.width


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a .pth; raises CheckpointError, saying what the file holds instead, if it is not all named tensors."""
    with _opened(path) as file:
        archive = read_archive(file, path.name)
        # Not ACCESS_COPY: Linux refuses it for a file that is larger than its memory.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Checkpoint(path.name, archive, data)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError("{path} does not exist: give the path of a .pth file.", path=path) from error
    except IsADirectoryError as error:
        raise CheckpointError("{path} is a folder: give the path of a .pth file.", path=path) from error
    except OSError as error:
        raise CheckpointError(
            "{path} cannot be read ({reason}): check its permissions.", path=path, reason=error.strerror
        ) from error

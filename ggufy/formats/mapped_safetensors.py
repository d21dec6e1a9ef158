"""A safetensors model on this machine, in one file or several: its values are mapped, and read when they are used."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from ggufy.core.errors import CheckpointError
from ggufy.formats.checkpoint import DTYPES
from ggufy.formats.safetensors import StoredTensor, is_shard, read_tensors


class MappedSafetensors:
    """The tensors of `paths`, by name, as their lists say; a context manager. Made by `open_safetensors`.

    `shapes` and `dtypes` cost no reading.
    """

    def __init__(self, paths: Sequence[Path], tensors: Mapping[str, StoredTensor]):
        self.name = paths[0].name
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.dtypes = {name: DTYPES[tensor.dtype] for name, tensor in tensors.items()}
        self._tensors = tensors
        self._maps = {path.name: _mapped(path) for path in paths}
        for tensor in tensors.values():
            if tensor.stop > len(self._maps[tensor.file]):
                raise CheckpointError("{name} changed while it was read: {AGAIN}.", name=tensor.file)

    def __enter__(self) -> MappedSafetensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the mappings; views given out before stay valid."""
        self._maps = {}

    def tensor(self, name: str) -> torch.Tensor:
        """A view on the mapped file, contiguous, of the shape `shapes[name]`. Never write to it."""
        stored, dtype = self._tensors[name], self.dtypes[name]
        count = stored.stop - stored.start
        if not count:
            return torch.empty(stored.shape, dtype=dtype)
        with warnings.catch_warnings(action="ignore"):  # of memory that must not be written to: nobody does
            data = torch.frombuffer(self._maps[stored.file], dtype=torch.uint8, count=count, offset=stored.start)
        if stored.start % dtype.itemsize:
            data = data.clone()  # the list may have any length, and not all processors read a value that lies so
        return data.view(dtype).view(stored.shape)

    def release(self, name: str) -> None:
        """Takes the pages of a tensor out of this process's memory; they come back from the file if used again."""
        stored = self._tensors[name]
        first = -(-stored.start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = stored.stop // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[stored.file].madvise(mmap.MADV_DONTNEED, first, length)


def _mapped(path: Path) -> mmap.mmap:
    try:
        with _opened(path) as file:
            # Not ACCESS_COPY: Linux refuses it for a file that is larger than its memory.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise _unreadable(path, error) from error


def open_safetensors(paths: Sequence[Path]) -> MappedSafetensors:
    """Opens a model on this machine: its only file, or its index first and then its parts; others are left alone.

    Raises CheckpointError, saying what is wrong, if it is not all named tensors.
    """
    first, *others = paths
    parts = {path.name: path for path in others if is_shard(path.name)}
    with _opened(first) as file:
        tensors = read_tensors(file, first.name, lambda part: _opened(parts[part]), parts)
    return MappedSafetensors([*parts.values()] if parts else [first], tensors)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) else error
    return CheckpointError("{path} cannot be read ({reason}): check its permissions.", path=path, reason=reason)

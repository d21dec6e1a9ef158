"""RWKV checkpoints (.pth), opened without reading and without running anything in them.

A .pth is a zip archive: one pickle that lists the tensors, and one record of raw bytes for each. `open_checkpoint`
reads the list with `read_tensors` first, which runs nothing, cannot be kept busy, and has a sentence for every kind of
wrong file; only what that takes goes to torch, which unpickles it once more with `weights_only=True` and maps the
records into memory. A tensor is read from the disk when its values are first used, and `release` gives its pages back.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import struct
import zipfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from ggufy.core.errors import CheckpointError
from ggufy.formats.pickle_machine import AGAIN
from ggufy.formats.pickled import read_tensors

# torch has no common class for "this archive makes no sense".
_NONSENSE = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, EOFError,
    OSError, struct.error, pickle.UnpicklingError,
)  # fmt: skip


class Checkpoint:
    """The tensors of one open .pth, by name; a context manager.

    `shapes` and `dtypes` are known at once and cost no reading. Made by `open_checkpoint`.
    """

    def __init__(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        self.name = path.name
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes: dict[str, torch.dtype] = {name: tensor.dtype for name, tensor in tensors.items()}
        self._tensors = tensors

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the mapping; views given out before stay valid."""
        self._tensors = {}

    def tensor(self, name: str) -> torch.Tensor:
        """A view on the mapped file: its shape is `shapes[name]`, its strides are the file's. Never write to it."""
        return self._tensors[name]

    def release(self, name: str) -> None:
        """Takes the pages of a tensor out of this process's memory; they come back from the file if used again."""
        storage = self._tensors[name].untyped_storage()
        _drop_pages(storage.data_ptr(), storage.nbytes())


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a .pth; raises CheckpointError, saying what the file holds instead, if it is not all named tensors."""
    with _opened(path) as file:
        listed = read_tensors(file, path.name)
    _check_entries(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        shapes = {name: tuple(tensor.shape) for name, tensor in content.items()}
    except _NONSENSE as error:
        first_line = repr(str(error).partition("\n")[0].strip().rstrip(".")[:200])[1:-1]
        raise CheckpointError(
            "{name} cannot be read as a PyTorch checkpoint ({reason}): {advice}.",
            name=path.name,
            reason=first_line,
            advice=AGAIN,
        ) from error
    if shapes != {name: tensor.shape for name, tensor in listed.items()}:
        raise CheckpointError("{name} holds two lists of tensors that differ: {again}.", name=path.name, again=AGAIN)
    return Checkpoint(path, {name: tensor.detach() for name, tensor in content.items()})


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


def _check_entries(path: Path) -> None:
    """Refuses what torch reads in another way than `read_tensors`: doubled names, of whatever case."""
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename.lower() for entry in archive.infolist()]
    if len(set(names)) < len(names):
        raise CheckpointError(
            "{name} is damaged (two of its records have one name): {again}.", name=path.name, again=AGAIN
        )


def _drop_pages(address: int, size: int) -> None:
    """madvise(MADV_DONTNEED) on the whole pages inside a range of a private, never written mapping of a file."""
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or length <= 0:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    madvise(first, length, advice)  # Only advice: an error would mean that memory stays in use a little longer.

"""RWKV checkpoints (.pth), opened without reading and without running anything in them.

A .pth is a zip archive: one pickle that lists the tensors, and one record of raw bytes for each. `open_checkpoint`
looks at the archive first, so that every kind of wrong file gets its own sentence; then torch unpickles the list with
`weights_only=True`, which knows tensors and plain containers and refuses everything else, and maps the records into
memory. A tensor is read from the disk when its values are first used, and `release` gives its pages back.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import re
import struct
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ggufy.errors import CheckpointError

_ZIP_MAGIC = b"PK\x03\x04"
# The first bytes of a pickle of protocol 2 to 5: torch.save wrote bare pickles until version 1.6.
_PICKLE_MAGICS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
# torch has no common class for "this archive makes no sense".
_NONSENSE = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError, OSError, struct.error
)  # fmt: skip
_DOWNLOAD_AGAIN = "download or copy it again"


class Checkpoint:
    """The tensors of one open .pth, by name; a context manager.

    `shapes` and `dtypes` are known at once and cost no reading. Made by `open_checkpoint`.
    """

    def __init__(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        self.path = path
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
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} was refused: it holds {_refused(error)}, which may run code when loaded, and nothing of it "
            "was run; use a .pth that holds tensors only."
        ) from error
    except _NONSENSE as error:
        first_line = str(error).partition("\n")[0].strip().rstrip(".")
        raise CheckpointError(
            f"{path.name} cannot be read as a PyTorch checkpoint ({first_line}): {_DOWNLOAD_AGAIN}."
        ) from error
    return Checkpoint(path, _named_tensors(path, content))


def _check_archive(path: Path) -> None:
    magic = _first_bytes(path)
    if not magic:
        raise CheckpointError(f"{path.name} is empty: {_DOWNLOAD_AGAIN}.")
    if magic.startswith(_PICKLE_MAGICS):
        raise CheckpointError(
            f"{path.name} is in the format that PyTorch had before version 1.6: if you trust it, load it and save it "
            "again with torch.save."
        )
    if magic != _ZIP_MAGIC:
        raise CheckpointError(f"{path.name} is not a PyTorch checkpoint: give a .pth file saved with torch.save.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path.name} is cut short or damaged: {_DOWNLOAD_AGAIN}.") from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(
            f"{path.name} is a zip archive but not a PyTorch checkpoint: give a .pth file saved with torch.save."
        )


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} does not exist: give the path of a .pth file.") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path} is a folder: give the path of a .pth file.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error


def _refused(error: pickle.UnpicklingError) -> str:
    """What torch met in the pickle, in as few words as can be found in its message."""
    match = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"class (\S+) ", str(error))
    return match.group(1) if match else "something other than tensors"


def _named_tensors(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The loaded object, if it is what an RWKV trainer saves: a dict from names to strided floating-point tensors."""
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} holds a {_kind(content)}, not a dict of tensors: save the model's state_dict() with "
            "torch.save."
        )
    if not content:
        raise CheckpointError(f"{path.name} holds no tensors: save the model's state_dict() with torch.save.")
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path.name} holds a {_kind(value)} under {name!r}, where only tensors belong: save the model's "
                "state_dict() alone with torch.save."
            )
        if value.layout is not torch.strided or value.device.type != "cpu" or not value.is_floating_point():
            raise CheckpointError(
                f"{name} in {path.name} is {_kind(value)}, not a tensor of floating-point weights: save the "
                "checkpoint again in bf16, f16 or f32."
            )
        tensors[name] = value.detach()
    return tensors


def _kind(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    kind = str(value.dtype).removeprefix("torch.")
    return kind if value.layout is torch.strided else f"sparse {kind}"


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

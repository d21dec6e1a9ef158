"""The list of tensors in a .pth, read without torch and without Python's unpickler, so that nothing in it can run.

A .pth is a zip archive: a pickle that lists the tensors (`data.pkl`), and one record of raw bytes for each storage.
Only the end of the archive and that one member are read, so the file may lie behind HTTP. The pickle is carried out
by a machine of our own (see pickle_machine.py).
"""

from __future__ import annotations

import bisect
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from ggufy.core.errors import CheckpointError
from ggufy.formats.pickle_machine import AGAIN, PickledTensor, PickleMachine, Storage, kind_of, shown

_LONGEST_LIST = 2_000_000  # bytes of data.pkl; RWKV-7 of 14B parameters has about 300 kB
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGICS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_LOCAL_HEADER = 30  # bytes before an entry's name
# What the standard library raises when an archive or a pickle makes no sense.
_NONSENSE = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, LookupError, NotImplementedError, EOFError)


@dataclass(frozen=True)
class Record:
    """The raw bytes of one storage, uncompressed, within the file."""

    begin: int  # of its local header, bytes from the start of the file
    end: int  # where the next entry, or the archive's directory, begins
    size: int  # bytes of its data, which lies somewhere between the two
    crc: int  # CRC-32 of its data; 0 if whoever saved the file did not compute it


@dataclass(frozen=True)
class Archive:
    """All that a .pth says of its tensors, without their values."""

    tensors: dict[str, PickledTensor]
    records: dict[str, Record]  # by the key that tensors name


def read_tensors(file: BinaryIO, name: str) -> dict[str, PickledTensor]:
    """The tensors of the .pth in `file` (seekable), by name; `name` is the file's, for the sentences.

    Raises CheckpointError for anything that `open_checkpoint` would refuse, and for records that are missing, cut or
    compressed. Weights are not read.
    """
    return read_archive(file, name).tensors


def read_archive(file: BinaryIO, name: str) -> Archive:
    """As `read_tensors`, with where in the file the values are."""
    _check_magic(file, name)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            root = next(iter(entries), "").partition("/")[0]
            listing, order = entries.get(f"{root}/data.pkl"), entries.get(f"{root}/byteorder")
            if listing is None:
                raise CheckpointError(
                    "{name} is a zip archive but not a PyTorch checkpoint: give a .pth file saved with torch.save.",
                    name=name,
                )
            pickled = _content(archive, listing, _LONGEST_LIST + 1, name)
            if order is not None and _content(archive, order, 16, name) != b"little":
                raise CheckpointError(
                    "{name} was not saved on a little-endian machine: save it again with torch.save.", name=name
                )
            ends = sorted([*(entry.header_offset for entry in entries.values()), archive.start_dir])
    except (*_NONSENSE, OSError, RuntimeError) as error:  # a place before the file's start, a password
        raise CheckpointError("{name} is cut short or damaged: {advice}.", name=name, advice=AGAIN) from error
    if len(pickled) > _LONGEST_LIST:
        raise CheckpointError(
            "{name} lists more tensors than any RWKV has: choose an RWKV-6 or RWKV-7 .pth.", name=name
        )
    machine = PickleMachine(name)
    tensors = _named_tensors(machine.run(pickled), name)
    records = {
        storage.key: _record(entries.get(f"{root}/data/{storage.key}"), storage, ends, name)
        for storage in machine.storages.values()
    }
    return Archive(tensors, records)


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int, name: str) -> bytes:
    """At most `limit` bytes of an entry of the archive `name`."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others swell without limit
        raise CheckpointError("{name} was compressed: save it again with torch.save.", name=name)
    if entry.CRC == 0:
        del entry.CRC  # torch can be told not to compute it; without the attribute zipfile does not compare
    with archive.open(entry) as member:
        return member.read(limit)


def _check_magic(file: BinaryIO, name: str) -> None:
    file.seek(0)
    magic = file.read(4)
    if not magic:
        raise CheckpointError("{name} is empty: {advice}.", name=name, advice=AGAIN)
    if magic.startswith(_PICKLE_MAGICS):
        raise CheckpointError(
            "{name} is in the format that PyTorch had before version 1.6: if you trust it, load it and save it "
            "again with torch.save.",
            name=name,
        )
    if magic != _ZIP_MAGIC:
        raise CheckpointError("{name} is not a PyTorch checkpoint: give a .pth file saved with torch.save.", name=name)


def _record(entry: zipfile.ZipInfo | None, storage: Storage, ends: list[int], name: str) -> Record:
    if entry is None or entry.file_size != storage.size:
        raise CheckpointError(
            "{name} is damaged (its record {record} is missing or of another size): {advice}.",
            name=name,
            record=storage.key,
            advice=AGAIN,
        )
    if entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            "{name} was compressed, so its weights cannot be mapped: save it with torch.save.", name=name
        )
    following = bisect.bisect_right(ends, entry.header_offset)
    end = ends[following] if following < len(ends) else -1
    if entry.header_offset < 0 or end - entry.header_offset < _LOCAL_HEADER + storage.size:
        raise CheckpointError(
            "{name} is damaged (its record {record} overlaps the next): {advice}.",
            name=name,
            record=storage.key,
            advice=AGAIN,
        )
    return Record(entry.header_offset, end, storage.size, entry.CRC)


def _named_tensors(content: object, name: str) -> dict[str, PickledTensor]:
    """The list, if it is what an RWKV trainer saves: a dict from names to tensors of floating-point weights."""
    if not isinstance(content, dict):
        raise CheckpointError(
            "{name} holds a {kind}, not a dict of tensors: save the model's state_dict() with torch.save.",
            name=name,
            kind=kind_of(content),
        )
    if not content:
        raise CheckpointError("{name} holds no tensors: save the model's state_dict() with torch.save.", name=name)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, PickledTensor):
            raise CheckpointError(
                "{name} holds a {kind} under {key}, where only tensors belong: save the model's state_dict() "
                "alone with torch.save.",
                name=name,
                kind=kind_of(value),
                key=repr(str(key)[:80]),
            )
        if not value.dtype.startswith(("f", "bf")):
            raise CheckpointError(
                "{key} in {name} is {kind}, not a tensor of floating-point weights: save the checkpoint again in "
                "bf16, f16 or f32.",
                key=shown(key),
                name=name,
                kind=value.dtype,
            )
    return content

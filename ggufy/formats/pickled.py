"""The list of tensors in a .pth, read without torch and without Python's unpickler, so that nothing in it can run.

A .pth is a zip archive: a pickle that lists the tensors (`data.pkl`), and one record of raw bytes for each storage.
Before PyTorch 1.6 it was five pickles in a row (a magic number, a version, the machine, the list, the keys of the
storages) and then the storages in the order of those keys, each after its number of values. Only the list and what
says where the rest lies are read, so the file may lie behind HTTP. Pickles are carried out by a machine of our own
(see pickle_machine.py).

Trainers save more than weights: what they wrap them in is looked into, and what lies beside them is left out.
"""

from __future__ import annotations

import bisect
import io
import logging
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from ggufy.core.errors import CheckpointError
from ggufy.formats.pickle_machine import AGAIN, PickledTensor, PickleMachine, Storage, kind_of, shown

logger = logging.getLogger(__name__)
_LONGEST_LIST = 2_000_000  # bytes of data.pkl; RWKV-7 of 14B parameters has about 300 kB
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGICS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_OLD_MAGIC, _OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001
LOCAL_HEADER, LONGEST_NAMES = 30, 2 * 65535  # bytes of a zip entry: before its name, and its name and extra field
_COUNT = 8  # bytes of the number of values before a storage
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # what trainers call the weights among other things
_DEEPEST = 4  # of wrappers in wrappers
# What the standard library raises when an archive or a pickle makes no sense.
_NONSENSE = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, LookupError, NotImplementedError, EOFError)


@dataclass(frozen=True)
class Record:
    """The raw bytes of one storage, uncompressed, within the file."""

    begin: int  # of what stands before its data, bytes from the start of the file
    end: int  # where the next record, or the archive's directory, begins
    size: int  # bytes of its data, which lies somewhere between the two
    crc: int  # CRC-32 of its data; 0 if whoever saved the file did not compute it
    count: int = -1  # of a file without an archive: of its values, which stands before them

    def lead(self, head: bytes | bytearray, name: str) -> int:
        """Bytes of what stands before its data, of which `head` are the first LOCAL_HEADER, or all if those are
        fewer. Raises CheckpointError if they make no sense; `name` is the file's."""
        if self.count >= 0:
            size, sound = _COUNT, int.from_bytes(head[:_COUNT], "little") == self.count
        else:
            lengths = struct.unpack("<HH", head[26:30]) if len(head) >= LOCAL_HEADER else (0, 0)
            size, sound = LOCAL_HEADER + sum(lengths), head[:4] == _ZIP_MAGIC
        if not sound or self.begin + size + self.size > self.end:
            raise CheckpointError(
                "{name} is damaged (a record's header makes no sense): choose another one.", name=name
            )
        return size


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
    file.seek(0)
    magic = file.read(4)
    if not magic:
        raise CheckpointError("{name} is empty: {advice}.", name=name, advice=AGAIN)
    machine = PickleMachine(name)
    if magic.startswith(_PICKLE_MAGICS):
        content, records = _old_file(file, machine)
    elif magic == _ZIP_MAGIC:
        content, records = _zip_archive(file, machine)
    else:
        raise CheckpointError("{name} is not a PyTorch checkpoint: give a .pth file saved with torch.save.", name=name)
    return Archive(_named_tensors(content, name), records)


def _old_file(file: BinaryIO, machine: PickleMachine) -> tuple[Any, dict[str, Record]]:
    """What a file from before PyTorch 1.6 lists, and where its storages are."""
    name = machine.name
    file.seek(0)
    head = io.BytesIO(file.read(_LONGEST_LIST))
    size = file.seek(0, io.SEEK_END)
    if machine.run(head) != _OLD_MAGIC or machine.run(head) != _OLD_VERSION:
        raise CheckpointError(
            "{name} is a pickle, but not of torch.save: give a .pth file saved with torch.save.", name=name
        )
    made_on = machine.run(head)
    if not isinstance(made_on, dict) or made_on.get("little_endian") is not True:
        raise CheckpointError(
            "{name} was not saved on a little-endian machine: save it again with torch.save.", name=name
        )
    content, keys = machine.run(head), machine.run(head)
    storages = machine.storages
    if not isinstance(keys, list) or len(keys) != len(storages) or any(key not in keys for key in storages):
        machine.damaged()
    records, begin = {}, head.tell()
    for storage in map(storages.__getitem__, keys):
        end = begin + _COUNT + storage.size
        records[storage.key] = Record(begin, end, storage.size, crc=0, count=storage.count)
        begin = end
    if begin > size:
        raise CheckpointError("{name} is cut short or damaged: {advice}.", name=name, advice=AGAIN)
    return content, records


def _zip_archive(file: BinaryIO, machine: PickleMachine) -> tuple[Any, dict[str, Record]]:
    """What an archive lists, and where its records are."""
    name = machine.name
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if len(entries) < len(archive.infolist()):
                raise CheckpointError(
                    "{name} is damaged (two of its records have one name): {again}.", name=name, again=AGAIN
                )
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
    content = machine.run(pickled)
    records = {
        storage.key: _record(entries.get(f"{root}/data/{storage.key}"), storage, ends, name)
        for storage in machine.storages.values()
    }
    return content, records


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int, name: str) -> bytes:
    """At most `limit` bytes of an entry of the archive `name`."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others swell without limit
        raise CheckpointError("{name} was compressed: save it again with torch.save.", name=name)
    if entry.CRC == 0:
        del entry.CRC  # torch can be told not to compute it; without the attribute zipfile does not compare
    with archive.open(entry) as member:
        return member.read(limit)


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
    if entry.header_offset < 0 or end - entry.header_offset < LOCAL_HEADER + storage.size:
        raise CheckpointError(
            "{name} is damaged (its record {record} overlaps the next): {advice}.",
            name=name,
            record=storage.key,
            advice=AGAIN,
        )
    return Record(entry.header_offset, end, storage.size, entry.CRC)


def _named_tensors(content: object, name: str) -> dict[str, PickledTensor]:
    """The list, if it is what a trainer saves: a dict from names to tensors of floating-point weights, perhaps in
    another dict, and beside other things."""
    if not isinstance(content, dict):
        raise CheckpointError(
            "{name} holds a {kind}, not a dict of tensors: save the model's state_dict() with torch.save.",
            name=name,
            kind=kind_of(content),
        )
    if "_strategy" in content:
        raise CheckpointError(
            "{name} was converted for a strategy of the package rwkv, which changes the weights: take the .pth that "
            "it was made from.",
            name=name,
        )
    content = _unwrapped(content)
    tensors = {key: value for key, value in content.items() if isinstance(value, PickledTensor)}
    if not tensors:
        raise CheckpointError("{name} holds no tensors: save the model's state_dict() with torch.save.", name=name)
    for key, tensor in tensors.items():
        _check_weight(key, tensor, name)
    weights = {key: tensor for key, tensor in tensors.items() if tensor.dtype.startswith(("f", "bf"))}
    if others := [shown(str(key)) for key in content if key not in weights]:
        logger.info("%s: %s: no weights, left out", name, ", ".join(others[:8]))
    return weights


def _unwrapped(content: dict[Any, Any]) -> dict[Any, Any]:
    """The dict in which the tensors are."""
    for _ in range(_DEEPEST):
        if any(isinstance(value, PickledTensor) and value.shape for value in content.values()):
            break
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    return content


def _check_weight(key: Any, tensor: PickledTensor, name: str) -> None:
    """A single whole number, such as a count of steps, is none, and does no harm."""
    if not isinstance(key, str):
        raise CheckpointError(
            "{name} holds a tensor under {key}, where a name belongs: save the model's state_dict() alone with "
            "torch.save.",
            name=name,
            key=repr(str(key)[:80]),
        )
    if not tensor.dtype.startswith(("f", "bf")) and tensor.elements > 1:
        raise CheckpointError(
            "{key} in {name} is {kind}, not a tensor of floating-point weights: save the checkpoint again in "
            "bf16, f16 or f32.",
            key=shown(key),
            name=name,
            kind=tensor.dtype,
        )

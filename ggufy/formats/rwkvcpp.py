"""Files of rwkv.cpp (`.bin`): their head, which is all but the values, read without trusting it and written.

A file is a header of six numbers and then records, without padding, up to its end (docs/FILE_FORMAT.md and
rwkv_file_format.inc of RWKV/rwkv.cpp); all numbers are int32, little endian:

    header   magic 0x67676d66 | version 100 or 101 | tokens | width | layers | type of most tensors
    record*  dimensions, 1 to 3 | bytes of its name | type | sizes, innermost first | name in UTF-8 | values

Version 101 changed the blocks of every quantized type; FP32 and FP16 files are the same in both. Names are BlinkDL's,
see ggufy/rwkvcpp. Nothing is allocated or skipped before it was compared with the size of the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from ggufy.core.errors import SourceError
from ggufy.core.messages import Message

MAGIC = 0x67676D66
OLD, VERSION = 100, 101  # of the file format
_HEADER = struct.Struct("<Ii4i")
_START = struct.Struct("<3i")  # of a record
HEADER_SIZE = _HEADER.size  # bytes
_MOST_DIMENSIONS = 3
_LONGEST_NAME = 255  # bytes
_MOST_RECORDS = 1 << 16
_MOST_LAYERS = 1 << 12


@dataclass(frozen=True)
class DataType:
    """A type of tensors; `size` bytes hold a block of `block` values, and a row is whole blocks."""

    number: int  # in the file
    name: str  # as rwkv.cpp spells it
    block: int
    size: int

    @property
    def ggml(self) -> str:
        """The type's name in ggml and GGUF files; its number there is another one."""
        return self.name.replace("FP", "F")

    @property
    def quantized(self) -> bool:
        return self.block > 1

    def bytes_of(self, values: int) -> int:
        """Bytes of so many values in whole blocks."""
        return values // self.block * self.size


@dataclass(frozen=True)
class RemovedType:
    """A type that rwkv.cpp has no more."""

    number: int
    date: str  # of the commit that removed it
    instead: str  # a type of today


FP32, FP16 = DataType(0, "FP32", 1, 4), DataType(1, "FP16", 1, 2)


def _named(*types: DataType) -> dict[str, DataType]:
    return {one.name: one for one in types}


#: By name. 10 and 16 (Q8_1, Q8_K) are types of activations, and in no file.
TYPES = _named(
    FP32, FP16,
    DataType(2, "Q4_0", 32, 18), DataType(3, "Q4_1", 32, 20), DataType(7, "Q5_0", 32, 22), DataType(8, "Q5_1", 32, 24),
    DataType(9, "Q8_0", 32, 34), DataType(11, "Q2_K", 256, 84), DataType(12, "Q3_K", 256, 110),
    DataType(13, "Q4_K", 256, 144), DataType(14, "Q5_K", 256, 176), DataType(15, "Q6_K", 256, 210),
)  # fmt: skip
#: The same in files of version 100.
OLD_TYPES = _named(
    FP32, FP16,
    DataType(2, "Q4_0", 32, 20), DataType(3, "Q4_1", 32, 24), DataType(4, "Q4_1_O", 32, 24),
    DataType(5, "Q4_2", 16, 10), DataType(6, "Q4_3", 16, 12), DataType(7, "Q5_0", 32, 22), DataType(8, "Q5_1", 32, 24),
    DataType(9, "Q8_0", 32, 36),
)  # fmt: skip
#: By name; commits 1198892 and dea929f of rwkv.cpp, when ggml had got the types of five bits.
REMOVED = {
    "Q4_1_O": RemovedType(4, "2023-04-29", "Q5_1"),
    "Q4_2": RemovedType(5, "2023-05-27", "Q5_0"),
    "Q4_3": RemovedType(6, "2023-04-29", "Q5_1"),
}


@dataclass(frozen=True)
class Record:
    """One tensor."""

    name: str
    type: str  # FP32, FP16, Q4_0, …
    shape: tuple[int, ...]  # torch's: outermost first
    offset: int  # bytes from the start of the file to its values
    size: int  # bytes of its values

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class RwkvcppHead:
    """What a file says about itself."""

    version: int  # of the file format
    vocab_size: int
    width: int
    layers: int
    type: str  # of most tensors: FP32, FP16, Q4_0, …
    records: Mapping[str, Record]  # in the order of the file
    file_size: int  # bytes

    @property
    def elements(self) -> int:
        return sum(record.elements for record in self.records.values())

    @property
    def bpw(self) -> float:
        """Bits per weight of all tensors."""
        return sum(record.size for record in self.records.values()) * 8 / self.elements

    @property
    def quantized(self) -> bool:
        return any(record.type not in ("FP32", "FP16") for record in self.records.values())

    @property
    def outdated(self) -> bool:
        """It has blocks of version 100, which neither rwkv.cpp nor ggml reads any more."""
        return self.version == OLD and self.quantized

    @property
    def rwkv(self) -> str:
        """The version of RWKV as rwkv.cpp's loader tells it: 4, 5.1, 5.2, 6 or 7."""
        for version, mark in _MARKS.items():
            if f"blocks.0.att.{mark}" in self.records:
                return version
        return "4"


_MARKS = {"7": "r_k", "6": "time_maa_x", "5.2": "gate.weight", "5.1": "ln_x.weight"}


def is_rwkvcpp(path: Path) -> bool:
    """Whether a file starts as these do. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def read_head(path: Path) -> RwkvcppHead:
    """Reads the header and every record but its values. Raises SourceError, with one sentence, for anything that is no
    sound file of rwkv.cpp."""
    try:
        with path.open("rb") as file:
            return read_head_of(file, path)
    except FileNotFoundError:
        raise SourceError("{path} does not exist: check the path.", path=path) from None


def read_head_of(file: BinaryIO, name: Path | str, *, until: str = "") -> RwkvcppHead:
    """The same of an open, seekable file; `name` is for the sentences. Of a file far away, which costs a request for
    each record, only those before the first whose name starts with `until` are read."""
    return _Reader(file, name, until).head()


def packed_header(*, vocab_size: int, width: int, layers: int, type_name: str) -> bytes:
    """The header of a file of version 101."""
    return _HEADER.pack(MAGIC, VERSION, vocab_size, width, layers, TYPES[type_name].number)


def packed_record(name: str, type_name: str, shape: tuple[int, ...]) -> bytes:
    """What stands before the values of a tensor of this shape (outermost first)."""
    text = name.encode()
    start = _START.pack(len(shape), len(text), TYPES[type_name].number)
    return start + struct.pack(f"<{len(shape)}i", *shape[::-1]) + text


def values_size(type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of the values of a tensor."""
    return TYPES[type_name].bytes_of(math.prod(shape))


def record_size(name: str, type_name: str, shape: tuple[int, ...]) -> int:
    """Bytes of a whole record."""
    return _START.size + 4 * len(shape) + len(name.encode()) + values_size(type_name, shape)


class _Reader:
    """A cursor over the file that never reads past its end."""

    def __init__(self, file: BinaryIO, name: Path | str, until: str):
        self.file, self.name, self.until = file, name, until
        self.size = file.seek(0, 2)
        file.seek(0)

    def head(self) -> RwkvcppHead:
        magic, version, vocab_size, width, layers, number = _HEADER.unpack(self._take(_HEADER.size))
        if magic != MAGIC:
            self._refuse(Message("it does not start as one"))
        if version not in (OLD, VERSION):
            self._refuse(Message("version {version} is not supported", version=version))
        self.types = {one.number: one for one in (OLD_TYPES if version == OLD else TYPES).values()}
        if min(vocab_size, width, layers) < 1 or layers > _MOST_LAYERS:
            self._refuse(
                Message(
                    "it announces {tokens} tokens, a width of {width} and {layers} layers",
                    tokens=vocab_size,
                    width=width,
                    layers=layers,
                )
            )
        kind = self._type(number, Message("it is of the unknown type {type}", type=number))
        records = self._records()
        if not records:
            self._refuse(Message("it has no tensors"))
        return RwkvcppHead(
            version=version,
            vocab_size=vocab_size,
            width=width,
            layers=layers,
            type=kind.name,
            records=records,
            file_size=self.size,
        )

    def _records(self) -> dict[str, Record]:
        records: dict[str, Record] = {}
        while self.file.tell() < self.size:
            record = self._record()
            if self.until and record.name.startswith(self.until):
                break
            if record.name in records:
                self._refuse(Message("tensor {name} is listed twice", name=_shown(record.name)))
            if len(records) == _MOST_RECORDS:
                self._refuse(Message("it has more than {most} tensors", most=_MOST_RECORDS))
            records[record.name] = record
        return records

    def _record(self) -> Record:
        dimensions, length, number = _START.unpack(self._take(_START.size))
        if not 1 <= dimensions <= _MOST_DIMENSIONS or not 1 <= length <= _LONGEST_NAME:
            self._refuse(
                Message(
                    "a tensor has {count} dimensions and a name of {length} bytes", count=dimensions, length=length
                )
            )
        shape = struct.unpack(f"<{dimensions}i", self._take(4 * dimensions))[::-1]
        try:
            name = self._take(length).decode()
        except UnicodeDecodeError:
            self._refuse(Message("the name of a tensor is no text"))
        unknown = Message("tensor {name} has the unknown type {type}", name=_shown(name), type=number)
        kind = self._type(number, unknown)
        if min(shape) < 1:
            self._refuse(
                Message("tensor {name} has the impossible shape {shape}", name=_shown(name), shape=list(shape))
            )
        if shape[-1] % kind.block:
            self._refuse(
                Message(
                    "tensor {name} has rows of {columns} values, which are no whole blocks of {type}",
                    name=_shown(name),
                    columns=shape[-1],
                    type=kind.name,
                )
            )
        offset, size = self.file.tell(), kind.bytes_of(math.prod(shape))
        if size > self.size - offset:
            self._refuse(Message("it is cut off within {name}", name=_shown(name)))
        self.file.seek(size, 1)
        return Record(name, kind.name, shape, offset, size)

    def _type(self, number: int, unknown: str) -> DataType:
        """Raises SourceError if this version of the format has no such type."""
        if number not in self.types:
            self._refuse_type(number, unknown)
        return self.types[number]

    def _refuse_type(self, number: int, unknown: str) -> NoReturn:
        if gone := next((name for name, one in REMOVED.items() if one.number == number), None):
            raise SourceError(
                "{name} is of the type {type}, which rwkv.cpp removed on {date}: make it again as {instead}.",
                name=self.name,
                type=gone,
                date=REMOVED[gone].date,
                instead=REMOVED[gone].instead,
            )
        self._refuse(unknown)

    def _take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            self._refuse(Message("it ends in the middle of its head"))
        return data

    def _refuse(self, why: str) -> NoReturn:
        raise SourceError(
            "{name} is not a sound file of rwkv.cpp ({why}): fetch or convert it again.", name=self.name, why=why
        )


def _shown(name: str) -> str:
    """A stranger's text for a sentence: on one line and not long."""
    return repr(name[:80])

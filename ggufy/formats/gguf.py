"""Reads the head of a GGUF file: metadata and the list of tensors, with every count and offset checked.

Layout (ggml's docs/gguf.md, version 3, little endian): magic "GGUF", version u32, tensor count u64, key count u64; per
key: string, type u32, value; per tensor: string, dimension count u32, dimensions u64 (fastest first), type u32, offset
u64 from the data section, which starts at the next multiple of the alignment.

A file from a stranger may lie about anything, so nothing is allocated or skipped before it was compared with the size
of the file.
"""

from __future__ import annotations

import math
import shutil
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ggufy.core.errors import SourceError
from ggufy.core.messages import Message

MAGIC = b"GGUF"
ALIGNMENT = 32
UNQUANTIZED = ("F32", "F16", "BF16")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_STRING = 1 << 24  # bytes; the longest real value is a chat template of some kB
_LONG_ARRAY = 4096  # arrays above this (vocabularies) are counted and skipped


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor's entry."""

    name: str
    shape: tuple[int, ...]  # ggml order: fastest dimension first
    type: str  # ggml type, upper case: F16, Q4_K, …
    offset: int  # bytes from the start of the data section
    size: int  # bytes

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def number(self) -> int:
        """The type as a GGUF file numbers it."""
        return int(GGMLQuantizationType[self.type])


@dataclass(frozen=True, kw_only=True)
class GgufHead:
    """What a GGUF file says about itself."""

    metadata: dict[str, Any]  # arrays of more than 4096 entries are given as their length
    tensors: dict[str, TensorInfo]
    metadata_end: int  # where the tensor entries begin, bytes
    data_start: int  # where the data section begins, bytes
    file_size: int  # bytes
    entries: dict[str, tuple[int, int]] = field(default_factory=dict)  # where each key's entry begins and ends, bytes
    alignment: int = ALIGNMENT  # of the tensors' data, bytes

    @property
    def elements(self) -> int:
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def infos_size(self) -> int:
        """Bytes of the tensors' entries."""
        return sum(8 + len(t.name.encode()) + 4 + 8 * len(t.shape) + 4 + 8 for t in self.tensors.values())

    @property
    def bpw(self) -> float:
        """Bits per weight of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values()) * 8 / self.elements

    @property
    def quantized(self) -> bool:
        return any(tensor.type not in UNQUANTIZED for tensor in self.tensors.values())

    @property
    def outtype(self) -> str:
        """The type of most matrices, as an outtype: f16, bf16 or f32 (of an unquantized file)."""
        types = [tensor.type for tensor in self.tensors.values() if len(tensor.shape) > 1]
        return max(sorted(set(types)), key=types.count).lower() if types else "f32"


def read_head(path: Path) -> GgufHead:
    """Reads metadata and tensor entries. Raises SourceError, with one sentence, for anything that is no sound GGUF."""
    try:
        with path.open("rb") as file:
            return read_head_of(file, path)
    except FileNotFoundError:
        raise SourceError("{path} does not exist: check the path.", path=path) from None


def read_head_of(file: BinaryIO, name: Path | str) -> GgufHead:
    """The same from an open, seekable file, of which nothing behind the head is read; `name` is for the sentences."""
    try:
        return _Reader(file, name).head()
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise SourceError(
            "{name} is not a sound GGUF file ({why}): fetch or convert it again.", name=name, why=error
        ) from error


def read_tensor(path: Path, head: GgufHead, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A small F32 tensor as a flat array. Raises SourceError if it is of another type."""
    info = head.tensors[name]
    if info.type != "F32":
        raise SourceError("{path}: tensor {name} is {type}, expected F32.", path=path, name=name, type=info.type)
    return np.fromfile(path, dtype="<f4", count=info.elements, offset=head.data_start + info.offset)


def check_unquantized(tensor: TensorInfo, base: Path | str) -> None:
    """Raises SourceError if a tensor of `base`, as a sentence is to call it, is quantized."""
    if tensor.type not in UNQUANTIZED:
        raise SourceError(
            "{base} is quantized already ({tensor} is {type}): take the F16, BF16 or F32 file instead.",
            base=base,
            tensor=tensor.name,
            type=tensor.type,
        )


def read_items(path: Path, head: GgufHead, key: str, numbers: Collection[int]) -> dict[int, str]:
    """Texts of an array of texts by their numbers, however long it is; those that are not there are left out."""
    wanted = set(numbers)
    with path.open("rb") as file:
        reader = _Reader(file, path)
        file.seek(head.entries[key][0] if key in head.entries else head.file_size)
        if not wanted or key not in head.entries or (reader.string(), *reader.unpack("II")) != (key, _ARRAY, _STRING):
            return {}
        found = {}
        for number in range(min(reader.unpack("Q")[0], max(wanted) + 1)):
            (length,) = reader.unpack("Q")
            if number in wanted:
                found[number] = reader.take(length).decode(errors="replace")
            else:
                reader.skip(length)
        return found


def copy_with_metadata(source: Path, target: Path, metadata: dict[str, str | int | list[str]]) -> None:
    """The same tensors under other metadata: texts, lists of texts, and u32 numbers."""
    head = read_head(source)
    entries = [packed_entry(key, value) for key, value in metadata.items()]
    start = MAGIC + struct.pack("<IQQ", 3, len(head.tensors), len(entries)) + b"".join(entries)
    with source.open("rb") as old, target.open("wb") as new:
        old.seek(head.metadata_end)
        start += old.read(head.infos_size)
        new.write(start.ljust(padded(len(start)), b"\0"))
        old.seek(head.data_start)
        shutil.copyfileobj(old, new)


def packed_entry(key: str, value: str | int | list[str]) -> bytes:
    """One key of the metadata as it stands in a file: a text, a list of texts, or a u32."""
    return packed_text(key) + _value(value)


def packed_text(text: str) -> bytes:
    """A text as it stands in a file: its length in bytes, then UTF-8."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int | list[str]) -> bytes:
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + packed_text(value)
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(packed_text, value))


def tensor_bytes(shape: tuple[int, ...], type_name: str) -> int:
    """Bytes of a tensor of this shape (fastest dimension first) and ggml type."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    return math.prod(shape) // int(block) * int(size)


def type_of_most(tensors: Iterable[tuple[str, int]]) -> str:
    """The type of most values, from the type and the number of values of each tensor."""
    counts: dict[str, int] = {}
    for kind, count in tensors:
        counts[kind] = counts.get(kind, 0) + count
    return max(counts, key=lambda kind: counts[kind], default="")


def padded(size: int, alignment: int = ALIGNMENT) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // alignment) * alignment


def _shown(value: Any) -> str:
    """A stranger's text for a sentence: on one line and not long."""
    return repr(value[:80] if isinstance(value, str | list) else value)[:200]


class _Reader:
    """A cursor over the file that never reads past its end."""

    def __init__(self, file: BinaryIO, name: Path | str):
        self.file, self.name = file, name
        self.size = file.seek(0, 2)
        file.seek(0)

    def head(self) -> GgufHead:
        if self.take(4) != MAGIC:
            self.refuse(Message("it does not start with GGUF"))
        version, tensor_count, key_count = self.unpack("IQQ")
        if version in (2 << 24, 3 << 24):
            raise SourceError(
                "{name} is for big-endian machines: fetch or convert one for little-endian ones.", name=self.name
            )
        if version not in (2, 3):
            self.refuse(Message("version {version} is not supported", version=version))
        if key_count > self.size // 13 or tensor_count > self.size // 24:
            self.refuse(Message("it announces more entries than it has bytes"))
        metadata, entries = {}, {}
        for _ in range(key_count):
            start = self.file.tell()
            key = self.string()
            if key in metadata:
                self.refuse(Message("the key {key} is listed twice", key=_shown(key)))
            metadata[key] = self.value(self.unpack("I")[0])
            entries[key] = (start, self.file.tell())
        metadata_end = self.file.tell()
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            self.refuse(Message("its alignment is {alignment}", alignment=_shown(alignment)))
        tensors = self.tensors(tensor_count)
        data_start = padded(self.file.tell(), alignment)
        self.check_data(tensors, data_start, alignment)
        return GgufHead(
            metadata=metadata,
            tensors=tensors,
            metadata_end=metadata_end,
            data_start=data_start,
            file_size=self.size,
            entries=entries,
            alignment=alignment,
        )

    def tensors(self, count: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for _ in range(count):
            name = self.string()
            (dimensions,) = self.unpack("I")
            if not 1 <= dimensions <= _MAX_DIMENSIONS:
                self.refuse(Message("tensor {name} has {count} dimensions", name=_shown(name), count=dimensions))
            shape = self.unpack(f"{dimensions}Q")
            type_number, offset = self.unpack("IQ")
            try:
                kind = GGMLQuantizationType(type_number)
            except ValueError:
                self.refuse(Message("tensor {name} has the unknown type {type}", name=_shown(name), type=type_number))
            block = GGML_QUANT_SIZES[kind][0]
            if 0 in shape or shape[0] % block or math.prod(shape) > self.size * 64:
                self.refuse(
                    Message("tensor {name} has the impossible shape {shape}", name=_shown(name), shape=list(shape))
                )
            if name in tensors:
                self.refuse(Message("tensor {name} is listed twice", name=_shown(name)))
            size = tensor_bytes(shape, kind.name)
            tensors[name] = TensorInfo(name=name, shape=shape, type=kind.name, offset=offset, size=size)
        return tensors

    def check_data(self, tensors: dict[str, TensorInfo], data_start: int, alignment: int) -> None:
        end = 0
        for tensor in sorted(tensors.values(), key=lambda t: t.offset):
            if tensor.offset % alignment:
                self.refuse(Message("tensor {tensor} is not aligned", tensor=_shown(tensor.name)))
            if tensor.offset < end:
                self.refuse(Message("tensor {name} overlaps another one", name=_shown(tensor.name)))
            end = tensor.offset + tensor.size
        if data_start + end > self.size:
            self.refuse(
                Message(
                    "it is cut off: {size} bytes, its tensors need {needed}", size=self.size, needed=data_start + end
                )
            )

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            self.refuse(Message("a value has the unknown type {type}", type=kind))
        item, count = self.unpack("IQ")
        if count > self.size:
            self.refuse(Message("an array is longer than the file"))
        if item == _STRING:
            if count > _LONG_ARRAY:
                for _ in range(count):
                    self.skip(self.unpack("Q")[0])
                return count
            return [self.string() for _ in range(count)]
        if item not in _SCALARS:
            self.refuse(Message("an array has the unknown type {type}", type=item))
        if count > _LONG_ARRAY:
            self.skip(count * struct.calcsize("<" + _SCALARS[item]))
            return count
        return list(self.unpack(f"{count}{_SCALARS[item]}"))

    def string(self) -> str:
        (length,) = self.unpack("Q")
        if length > _MAX_STRING:
            self.refuse(Message("a text of {count} bytes is announced", count=length))
        return self.take(length).decode()

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def take(self, count: int) -> bytes:
        data = self.file.read(count) if count <= self.size else b""
        if len(data) != count:
            self.refuse(Message("it ends in the middle of its head"))
        return data

    def skip(self, count: int) -> None:
        if self.file.tell() + count > self.size:
            self.refuse(Message("it ends in the middle of its head"))
        self.file.seek(count, 1)

    def refuse(self, why: str) -> NoReturn:
        raise SourceError(
            "{name} is not a sound GGUF file ({why}): fetch or convert it again.", name=self.name, why=why
        )

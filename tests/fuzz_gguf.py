"""Hostile GGUF files: a sound description, distorted, written out, and damaged where its numbers stand."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz_bytes import BOUNDARIES, Field, poke, scramble

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64, _F64 = 4, 5, 6, 7, 8, 9, 10, 11, 12
_LAYOUTS = {0: "B", 1: "b", 2: "H", 3: "h", _U32: "I", _I32: "i", _F32: "f", _BOOL: "B"}
_LAYOUTS |= {_U64: "Q", _I64: "q", _F64: "d"}
ABSURD = (
    b"", b"\0", b"\n", b"a\nb\r\x1b[31m", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"../../etc/passwd", b"/dev/zero",
    "\u202egguf\u2028".encode(), "\U0010ffff".encode(), b"%s%n{0}", b"x" * 65, b"\n" * 4000, b"\0" * 1_000_000,
)  # fmt: skip
WIDTH = 64  # columns of the imatrix's tensors
NAMES = [b"blk.0.ffn_up.weight", b"blk.0.ffn_down.weight", b"output.weight"]


@dataclass
class Tensor:
    name: bytes
    shape: list[int]
    kind: int = 0  # F32
    data: bytes = b""
    offset: int | None = None  # where the data comes, unless given


@dataclass
class Made:
    """A file to be written, and where its numbers will stand."""

    entries: list[tuple[bytes, int, Any]]
    tensors: list[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    data: bytearray = field(default_factory=bytearray)
    fields: list[Field] = field(default_factory=list)

    def number(self, layout: str, value: Any) -> None:
        self.fields.append((len(self.data), struct.calcsize("<" + layout)))
        if layout in "fd":
            value = float(value)
        else:
            value, layout = value % (1 << 8 * struct.calcsize("<" + layout)), layout.upper()
        self.data += struct.pack("<" + layout, value)

    def text(self, text: bytes) -> None:
        self.number("Q", len(text))
        self.data += text

    def value(self, kind: int, value: Any) -> None:
        self.number("I", kind)
        self.content(kind, value)

    def content(self, kind: int, value: Any) -> None:
        if kind == _STRING:
            self.text(value)
        elif isinstance(value, bytes):
            self.data += value
        elif kind == _ARRAY:
            item, values = value
            self.number("I", item)
            self.number("Q", len(values))
            for one in values:
                self.content(item, one)
        else:
            self.number(_LAYOUTS[kind], value)

    def write(self) -> bytearray:
        self.data += self.magic
        self.number("I", self.version)
        self.number("Q", len(self.tensors))
        self.number("Q", len(self.entries))
        for key, kind, value in self.entries:
            self.text(key)
            self.value(kind, value)
        place, body = 0, bytearray()
        for tensor in self.tensors:
            self.text(tensor.name)
            self.number("I", len(tensor.shape))
            for dimension in tensor.shape:
                self.number("Q", dimension)
            self.number("I", tensor.kind)
            self.number("Q", place if tensor.offset is None else tensor.offset)
            body += tensor.data.ljust(-(-len(tensor.data) // self.alignment) * self.alignment, b"\0")
            place = len(body)
        self.data += bytes(-len(self.data) % self.alignment) + body
        return self.data


def model() -> Made:
    """A small sound model with values of every type."""
    entries = [
        (b"general.architecture", _STRING, b"rwkv7"), (b"general.name", _STRING, "中文".encode()),
        (b"general.alignment", _U32, 32), (b"rwkv7.block_count", _U32, 2), (b"rwkv7.embedding_length", _U32, 64),
        (b"rwkv7.wkv.head_size", _U64, 64), (b"tokenizer.ggml.model", _STRING, b"rwkv"),
        (b"tokenizer.ggml.tokens", _ARRAY, (_STRING, [b"t%d" % i for i in range(300)])),
        (b"tokenizer.ggml.scores", _ARRAY, (_F32, [0.5] * 40)), (b"split.count", 2, 1),
        *((b"all.%d" % kind, kind, 1) for kind in _LAYOUTS), (b"array.i64", _ARRAY, (_I64, [-1, 1])),
        (b"array.bool", _ARRAY, (_BOOL, [0, 1])), (b"array.empty", _ARRAY, (_U32, [])),
    ]  # fmt: skip
    tensors = [
        Tensor(b"token_embd.weight", [64, 4], 0, struct.pack("<256f", *range(256))),
        Tensor(b"blk.0.ln.weight", [64], 0, bytes(256)),
        Tensor(b"blk.0.att.weight", [64, 2, 3], 1, bytes(768)),
        Tensor(b"blk.0.ffn.weight", [256, 2], 12, bytes(288)),  # Q4_K
        Tensor(b"output.weight", [64, 4], 30, bytes(512)),  # BF16
    ]
    return Made(entries, tensors)


def imatrix() -> Made:
    """An imatrix with data for `NAMES`."""
    entries = [
        (b"general.type", _STRING, b"imatrix"), (b"imatrix.datasets", _ARRAY, (_STRING, [b"text.txt"])),
        (b"imatrix.chunk_count", _U32, 10), (b"imatrix.chunk_size", _U32, 512),
    ]  # fmt: skip
    tensors = []
    for name in NAMES:
        tensors.append(Tensor(name + b".in_sum2", [WIDTH, 1], 0, struct.pack(f"<{WIDTH}f", *range(WIDTH))))
        tensors.append(Tensor(name + b".counts", [1, 1], 0, struct.pack("<f", 512)))
    return Made(entries, tensors)


def mutated(rng: random.Random, sound: Made) -> bytes:
    """`sound`, with at least one thing wrong with it."""
    ways = rng.choice(((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 1, 1)))
    if ways[0]:
        for _ in range(rng.choice((1, 1, 2, 3))):
            if sound.tensors:
                rng.choice(_DISTORTIONS)(rng, sound)
    data = sound.write()
    if ways[1]:
        poke(rng, data, sound.fields)
    if ways[2]:
        scramble(rng, data)
    return bytes(data)


def _absurd_value(rng: random.Random) -> tuple[int, Any]:
    kind = rng.choice((_STRING, _ARRAY, *_LAYOUTS))
    if kind == _STRING:
        return kind, rng.choice(ABSURD)
    if kind != _ARRAY:
        return kind, rng.choice((float("nan"), float("inf")) if kind in (_F32, _F64) else BOUNDARIES)
    item = rng.choice((_STRING, *_LAYOUTS))
    count = rng.choice((0, 1, 3, 4096, 4097, 5000))
    small = (b"", b"\xff", b"ab") if item == _STRING else (0, 1, -1)
    return kind, (item, rng.choices(small, k=count))


def _nested(rng: random.Random, made: Made) -> None:
    levels = struct.pack("<IQ", _ARRAY, rng.choice((1, 1, 1 << 20))) * rng.choice((1, 2, 30, 100_000))
    inner = levels + struct.pack("<IQI", _U32, 1, 7)
    made.entries.insert(rng.randrange(len(made.entries) + 1), (b"nested", _ARRAY, inner))


def _new_key(rng: random.Random, made: Made) -> None:
    made.entries.insert(rng.randrange(len(made.entries) + 1), (rng.choice(ABSURD), *_absurd_value(rng)))


def _new_value(rng: random.Random, made: Made) -> None:
    place = rng.randrange(len(made.entries))
    made.entries[place] = (made.entries[place][0], *_absurd_value(rng))


def _same_key(rng: random.Random, made: Made) -> None:
    key = rng.choice(made.entries)[0]
    made.entries.append((key, *_absurd_value(rng)))


def _alignment(rng: random.Random, made: Made) -> None:
    made.entries = [entry for entry in made.entries if entry[0] != b"general.alignment"]
    value = rng.choice((1, 2, 16, 64, 4096, 1 << 20, 1 << 21))
    made.alignment = min(value, 4096)
    made.entries.append((b"general.alignment", *rng.choice((_absurd_value(rng), (_U32, value), (_U64, value)))))


def _same_tensor(rng: random.Random, made: Made) -> None:
    made.tensors.append(rng.choice(made.tensors))


def _tensor_name(rng: random.Random, made: Made) -> None:
    rng.choice(made.tensors).name = rng.choice((*ABSURD, rng.choice(made.tensors).name))


def _tensor_offset(rng: random.Random, made: Made) -> None:
    rng.choice(made.tensors).offset = rng.choice((*BOUNDARIES, 32, 33, 64, 1024, 1056, 2048))


def _tensor_shape(rng: random.Random, made: Made) -> None:
    tensor = rng.choice(made.tensors)
    tensor.shape = [rng.choice((1, 2, 32, 64, 256, *BOUNDARIES)) for _ in range(rng.choice((0, 1, 2, 3, 4, 5, 8)))]


def _tensor_kind(rng: random.Random, made: Made) -> None:
    rng.choice(made.tensors).kind = rng.choice((*range(45), *BOUNDARIES))


def _tensor_data(rng: random.Random, made: Made) -> None:
    tensor = rng.choice(made.tensors)
    patterns = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\1\0\x80\x7f", bytes(4), b"\0\0\x80\xbf")
    tensor.data = rng.choice((b"", tensor.data[:-4], rng.choice(patterns) * (len(tensor.data) // 4)))


def _no_tensors(rng: random.Random, made: Made) -> None:
    del made.tensors[rng.randrange(len(made.tensors)) :]


def _edition(rng: random.Random, made: Made) -> None:
    made.version = rng.choice((1, 2, 4, 3 << 24, *BOUNDARIES))


_DISTORTIONS = (
    _nested, _new_key, _new_value, _same_key, _alignment, _same_tensor, _tensor_name, _tensor_offset, _tensor_shape,
    _tensor_kind, _tensor_data, _no_tensors, _edition,
)  # fmt: skip

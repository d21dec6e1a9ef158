"""Hostile GGUF files, written by hand: a head that lies."""

from __future__ import annotations

import struct
from pathlib import Path

from attacks import attack

_UINT32, _STRING, _ARRAY = 4, 8, 9


def string(value: str, *, length: int | None = None) -> bytes:
    """With its true length, or another."""
    data = value.encode()
    return struct.pack("<Q", len(data) if length is None else length) + data


def gguf(*, tensors: int, pairs: list[bytes], infos: list[bytes], values: bytes = bytes(64), count: int = -1) -> bytes:
    """A file of version 3; `count` is how many pairs of metadata it says that it has."""
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(pairs) if count < 0 else count)
    data = head + b"".join(pairs) + b"".join(infos)
    return data + bytes(-len(data) % 32) + values


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...], *, kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = pair("general.architecture", _STRING, string("rwkv7"))


@attack("many-tensors.gguf", "announces more entries than it has bytes")
def many_tensors(path: Path) -> None:
    """Says that 2^60 tensors follow: a list of so many would take all memory."""
    path.write_bytes(gguf(tensors=1 << 60, pairs=[ARCHITECTURE], infos=[]))


@attack("many-pairs.gguf", "announces more entries than it has bytes")
def many_pairs(path: Path) -> None:
    """The same with metadata."""
    path.write_bytes(gguf(tensors=0, pairs=[ARCHITECTURE], infos=[], count=1 << 60))


@attack("long-string.gguf", "a text of 9223372036854775807 bytes is announced")
def long_string(path: Path) -> None:
    """A text of 2^63 - 1 bytes."""
    liar = pair("general.name", _STRING, string("x", length=(1 << 63) - 1))
    path.write_bytes(gguf(tensors=0, pairs=[ARCHITECTURE, liar], infos=[]))


@attack("arrays.gguf", "an array has the unknown type 9")
def arrays_in_arrays(path: Path) -> None:
    """An array of an array of an array, a hundred thousand deep."""
    deep = struct.pack("<IQ", _ARRAY, 1) * 100_000 + struct.pack("<IQI", _UINT32, 1, 7)
    path.write_bytes(gguf(tensors=0, pairs=[ARCHITECTURE, pair("x", _ARRAY, deep)], infos=[]))


@attack("dimensions.gguf", "has the impossible shape")
def dimensions(path: Path) -> None:
    """Four dimensions whose product is 0 in 64 bits."""
    made = info("token_embd.weight", (1 << 32, 1 << 32, 1 << 32, 1 << 32))
    path.write_bytes(gguf(tensors=1, pairs=[ARCHITECTURE], infos=[made]))


@attack("beyond.gguf", "it is cut off")
def beyond(path: Path) -> None:
    """A tensor that lies behind the end of the file."""
    made = info("token_embd.weight", (4, 4), offset=1 << 40)
    path.write_bytes(gguf(tensors=1, pairs=[ARCHITECTURE], infos=[made]))


@attack("twice.gguf", "is listed twice")
def twice(path: Path) -> None:
    """Two tensors of one name: programs differ in which one counts."""
    made = info("token_embd.weight", (4, 4))
    path.write_bytes(gguf(tensors=2, pairs=[ARCHITECTURE], infos=[made, made]))


@attack("alignment.gguf", "its alignment is 0")
def alignment(path: Path) -> None:
    """An alignment of 0, for whoever divides by it."""
    zero = pair("general.alignment", _UINT32, struct.pack("<I", 0))
    path.write_bytes(gguf(tensors=1, pairs=[ARCHITECTURE, zero], infos=[info("token_embd.weight", (4, 4))]))


@attack("unknown-type.gguf", "has the unknown type 4000000000")
def unknown_type(path: Path) -> None:
    """A tensor of a type that does not exist, an index into nothing."""
    made = info("token_embd.weight", (4, 4), kind=4_000_000_000)
    path.write_bytes(gguf(tensors=1, pairs=[ARCHITECTURE], infos=[made]))


@attack("shell-name.gguf", "lacks tensors")
def shell_name(path: Path) -> None:
    """A model whose name is a path and a command, for whoever makes a file name or a command line of it."""
    name = pair("general.name", _STRING, string("../../x; touch ggufy-attack-was-here #`reboot`$(reboot)\n"))
    path.write_bytes(gguf(tensors=1, pairs=[ARCHITECTURE, name], infos=[info("token_embd.weight", (4, 4))]))

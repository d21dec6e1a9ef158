"""Hostile files of rwkv.cpp, written by hand: records that lie."""

from __future__ import annotations

import struct
from pathlib import Path

from attacks import attack

_REFUSED = r"is not a sound file of rwkv\.cpp"


def written(path: Path, *records: bytes, tokens: int = 8, width: int = 32, layers: int = 1) -> None:
    path.write_bytes(struct.pack("<I5i", 0x67676D66, 101, tokens, width, layers, 0) + b"".join(records))


def record(name: bytes, sizes: tuple[int, ...], data: bytes, *, kind: int = 0, length: int = -1) -> bytes:
    start = struct.pack("<3i", len(sizes), len(name) if length < 0 else length, kind)
    return start + struct.pack(f"<{len(sizes)}i", *sizes) + name + data


@attack("many-layers.bin", _REFUSED)
def many_layers(path: Path) -> None:
    """Says that it has two billion blocks: whoever makes a list of them first has no memory left."""
    written(path, record(b"emb.weight", (32, 8), bytes(1024)), layers=(1 << 31) - 1)


@attack("few-tensors.bin", "it has no tensor blocks.0")
def few_tensors(path: Path) -> None:
    """The largest number of blocks that is believed, and the tensors of none."""
    ends = [record(name, (32, 8), bytes(1024)) for name in (b"emb.weight", b"head.weight")]
    norms = [record(b"ln_out." + end, (32,), bytes(128)) for end in (b"weight", b"bias")]
    written(path, *ends, *norms, layers=4096)


@attack("huge-sizes.bin", "it is cut off within")
def huge_sizes(path: Path) -> None:
    """Sizes whose product is 0 in 64 bits, and 4 in 32."""
    written(path, record(b"emb.weight", (1 << 30, 1 << 30, 16), b""))


@attack("long-name.bin", "a name of 2147483647 bytes")
def long_name(path: Path) -> None:
    """A name as long as the number allows."""
    written(path, record(b"emb.weight", (32, 8), bytes(1024), length=(1 << 31) - 1))


@attack("negative-sizes.bin", "impossible shape")
def negative_sizes(path: Path) -> None:
    """Sizes below zero: their product is one that fits."""
    written(path, record(b"emb.weight", (-32, -8), bytes(1024)))


@attack("many-records.bin", "has more than 65536 tensors")
def many_records(path: Path) -> None:
    """A quarter of a million tensors of one value each."""
    written(path, *(record(b"%06d" % number, (1,), bytes(4)) for number in range(250_000)))


@attack("steering-name.bin", "is listed twice")
def steering_name(path: Path) -> None:
    """A tensor whose name clears the terminal, and writes a line of its own."""
    twice = record(b"\x1b[2J\r\nggufy: all is well\xe2\x80\xae", (1,), bytes(4))
    written(path, twice, twice)


@attack("wide-width.bin", _REFUSED)
def wide_width(path: Path) -> None:
    """Heads that are more than the width has values, so that a head has none."""
    key = record(b"blocks.0.att.r_k", (1, 1 << 20), bytes(4 << 20))
    written(path, record(b"emb.weight", (32, 8), bytes(1024)), key)

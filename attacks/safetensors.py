"""Hostile safetensors files, written by hand: a list that lies."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from attacks import attack


def written(path: Path, text: bytes, values: bytes = bytes(64), *, length: int = -1) -> None:
    """A file with that list; `length` is how long it says that the list is."""
    path.write_bytes(struct.pack("<Q", len(text) if length < 0 else length) + text + values)


def listed(**tensors: Any) -> bytes:
    return json.dumps(tensors).encode()


def entry(shape: tuple[int, ...], start: int, stop: int, *, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@attack("long-list.safetensors", "cut short or damaged")
def long_list(path: Path) -> None:
    """Says that its list has 2^63 bytes: whoever makes room for it first has none left."""
    written(path, b"{}", length=1 << 63)


@attack("large-list.safetensors", "lists more tensors than any RWKV has")
def large_list(path: Path) -> None:
    """A list of 90 MB, which is less than the format allows, and a gigabyte when it is read."""
    written(path, b'{"a":[' + b"[]," * 30_000_000 + b"0]}")


@attack("small-lists.safetensors", "what it says of a makes no sense")
def small_lists(path: Path) -> None:
    """Within the limit, as many lists in lists as fit."""
    written(path, b'{"a":[' + b"[]," * 600_000 + b"0]}")


@attack("deep.safetensors", "has a damaged list of tensors")
def deep(path: Path) -> None:
    """A list in a list, a million times: whoever reads by recursion falls."""
    written(path, b'{"a":' + b"[" * 1_000_000)


@attack("long-number.safetensors", "has a damaged list of tensors")
def long_number(path: Path) -> None:
    """A number of a million digits, which takes minutes to read."""
    written(path, b'{"a":' + b"9" * 1_000_000 + b"}")


@attack("product.safetensors", "makes no sense")
def product(path: Path) -> None:
    """Dimensions whose product is 0 in 64 bits."""
    written(path, listed(a=entry((1 << 32, 1 << 32), 0, 0)), b"")


@attack("overlap.safetensors", "its tensors overlap")
def overlap(path: Path) -> None:
    """A thousand tensors in the same bytes: a small file that becomes a large one."""
    written(path, listed(**{f"blocks.{number}.x": entry((16,), 0, 64) for number in range(1000)}))


@attack("gap.safetensors", "bytes that belong to no tensor")
def gap(path: Path) -> None:
    """Bytes between the tensors, in which another file can hide."""
    written(path, listed(a=entry((4,), 0, 16), b=entry((4,), 48, 64)))


@attack("behind.safetensors", "cut short or damaged")
def behind(path: Path) -> None:
    """A tensor that ends behind the file: a mapping of it ends the process."""
    written(path, listed(a=entry((1 << 30,), 0, 4 << 30)))


@attack("negative.safetensors", "makes no sense")
def negative(path: Path) -> None:
    """A tensor that begins before the values."""
    written(path, listed(a=entry((16,), -64, 0)))


@attack("two-names.safetensors", "two of its entries have one name")
def two_names(path: Path) -> None:
    """Two tensors of one name: programs differ in which one counts."""
    one = json.dumps(entry((16,), 0, 64)).encode()
    written(path, b'{"emb.weight":' + one + b',"emb.weight":' + one + b"}")


@attack("two-layouts.safetensors", "are both emb.weight")
def two_layouts(path: Path) -> None:
    """The embedding under two names of different layouts."""
    names = {"emb.weight": entry((4, 2), 0, 32), "model.embeddings.weight": entry((4, 2), 32, 64)}
    written(path, listed(**names))


@attack("signs.safetensors", r"not an RWKV checkpoint .*\\x1b")
def signs(path: Path) -> None:
    """Names of tensors that clear a terminal, and are HTML for a page."""
    written(path, listed(**{"\x1b[2J<img src=x onerror=alert(1)>": entry((16,), 0, 64)}))


@attack("half-letter.safetensors", "has a damaged list of tensors")
def half_letter(path: Path) -> None:
    """A name with half of a letter, which nobody can write into a record or a page."""
    written(path, listed(**{"\ud800": entry((16,), 0, 64)}))


@attack("elsewhere.safetensors.index.json", "is no name of a part")
def elsewhere(path: Path) -> None:
    """An index whose parts are files elsewhere on this machine."""
    path.write_text(json.dumps({"weight_map": {"emb.weight": "../../../../etc/passwd"}}))


@attack("parts.safetensors.index.json", "which is not beside it")
def parts(path: Path) -> None:
    """An index of ten thousand parts, for whoever asks the server for each."""
    names = {f"t{number}": f"parts-{number:05}-of-10000.safetensors" for number in range(10_000)}
    path.write_text(json.dumps({"weight_map": names}))

"""The list of tensors in a safetensors file, and the index of a model of several, read without trusting them.

A file is the length of its list (u64, little endian), the list as JSON, and the values: for each tensor its type, its
shape (outermost first) and where its values begin and end, counted from the end of the list. The values lie one after
the other without gaps, each tensor's in the order of its shape (https://github.com/huggingface/safetensors, "Format").
A large model has an index, `model.safetensors.index.json`: a dict from each tensor to the file that holds it.

Only the list is read, so the file may lie behind HTTP. Nothing is allocated before it was compared with what there is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NoReturn

from ggufy.core.errors import CheckpointError
from ggufy.core.messages import Message
from ggufy.formats.pickle_machine import AGAIN, shown

INDEX_SUFFIX = ".safetensors.index.json"
# Short names and bytes of one value of the types that weights have; others are named and refused.
DTYPES = {
    "F64": ("f64", 8),
    "F32": ("f32", 4),
    "F16": ("f16", 2),
    "BF16": ("bf16", 2),
    "F8_E4M3": ("f8_e4m3", 1),
    "F8_E5M2": ("f8_e5m2", 1),
}
# Of quantized weights too; llama.cpp's converter reads them.
ANY_DTYPES = DTYPES | {
    "F8_E8M0": ("f8_e8m0", 1),
    **{
        f"{kind}{8 * width}": (f"{word}{8 * width}", width)
        for kind, word in (("I", "int"), ("U", "uint"))
        for width in (1, 2, 4, 8)
    },
    "BOOL": ("bool", 1),
}
OpenPart = Callable[[str], AbstractContextManager[BinaryIO]]
_LONGEST_LIST = 2_000_000  # bytes; RWKV-7 of 14B parameters has about 300 kB
_MOST_VALUES = 1 << 48
_MOST_DIMENSIONS = 8
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as the list describes it."""

    shape: tuple[int, ...]  # torch's order
    dtype: str  # f32, f16, bf16, …
    file: str  # name of the file that holds its values
    start: int  # bytes from the start of that file to its first value
    stop: int  # and to the end of its last

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def is_index(name: str) -> bool:
    """True for the name of the index of a model of several files."""
    return name.endswith(INDEX_SUFFIX)


def is_shard(name: str) -> bool:
    """True for the name of one file of several, such as `model-00001-of-00003.safetensors`."""
    return _SHARD.fullmatch(PurePosixPath(name).name) is not None


def is_shard_of(name: str, index: str) -> bool:
    """True if a file belongs to the model of an index, by their names; folders count."""
    match = _SHARD.fullmatch(name)
    return match is not None and match[1] == index.removesuffix(INDEX_SUFFIX)


def read_header(file: BinaryIO, name: str) -> dict[str, StoredTensor]:
    """The tensors of the safetensors file in `file` (seekable), by name; `name` is the file's, for the sentences.

    Raises CheckpointError for anything that is no sound file of floating-point weights. Weights are not read.
    """
    return _read_header(file, name, DTYPES)


def read_any_header(file: BinaryIO, name: str) -> dict[str, StoredTensor]:
    """The same of a file with weights of any type."""
    return _read_header(file, name, ANY_DTYPES)


def _read_header(file: BinaryIO, name: str, dtypes: Mapping[str, tuple[str, int]]) -> dict[str, StoredTensor]:
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(8)
    if not start:
        raise CheckpointError("{name} is empty: {advice}.", name=name, advice=AGAIN)
    length = int.from_bytes(start, "little")
    first = file.read(1)
    if len(start) < 8 or first != b"{":
        raise CheckpointError("{name} is not a safetensors file: give one that was saved with safetensors.", name=name)
    if length > size - 8:
        _cut_short(name)
    if length > _LONGEST_LIST:
        raise CheckpointError(
            "{name} lists more tensors than any RWKV has: choose an RWKV-6 or RWKV-7 .pth.", name=name
        )
    listed = _json(first + file.read(length - 1), name)
    listed.pop("__metadata__", None)
    if not listed:
        raise CheckpointError("{name} holds no tensors: save the model's weights in it.", name=name)
    tensors = {key: _tensor(key, entry, 8 + length, name, dtypes) for key, entry in listed.items()}
    _check_places(tensors, 8 + length, size, name)
    return tensors


def packed_header(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> tuple[bytes, int]:
    """What a file of tensors (name, dtype as the file says it, shape, bytes) begins with, whose values come one after
    the other, and how many bytes of these follow."""
    listed, end = {}, 0
    for name, dtype, shape, size in tensors:
        start, end = end, end + size
        listed[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(listed).encode()
    return len(text).to_bytes(8, "little") + text, end


def read_tensors(file: BinaryIO, name: str, open_part: OpenPart, parts: Collection[str]) -> dict[str, StoredTensor]:
    """The tensors of a model, from its only file or its index; `open_part` opens one of `parts`, the names of those
    that are beside it. Raises CheckpointError, and what `open_part` raises."""
    if not is_index(name):
        return read_header(file, name)
    index = read_index(file, name)
    lists = {}
    for part in sorted({*index.values()} & {*parts}):
        with open_part(part) as opened:
            lists[part] = read_header(opened, part)
    return _joined(index, lists, name)


def read_index(file: BinaryIO, name: str, *, is_part: Callable[[str], bool] = is_shard) -> dict[str, str]:
    """Each tensor's file, which lies beside the index and is called as parts are.

    Raises CheckpointError for what is no sound index."""
    text = file.read(_LONGEST_LIST + 1)
    if len(text) > _LONGEST_LIST:
        raise CheckpointError(
            "{name} lists more tensors than any RWKV has: choose an RWKV-6 or RWKV-7 .pth.", name=name
        )
    places = _json(text, name).get("weight_map")
    if not isinstance(places, dict) or not places:
        _damaged(name, Message("it has no weight_map"))
    for place in places.values():
        if not isinstance(place, str) or not is_part(place) or "/" in place:
            _damaged(name, Message("{file} is no name of a part", file=shown(str(place))))
    return places


def _joined(
    index: Mapping[str, str], lists: Mapping[str, Mapping[str, StoredTensor]], name: str
) -> dict[str, StoredTensor]:
    """The tensors of all files of an index called `name`, whose own lists are given by their names.

    Raises CheckpointError if these are not the files and tensors that the index names.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in sorted({*index.values()}):
        if file not in lists:
            raise CheckpointError(
                "{name} names {file}, which is not beside it: {advice}.", name=name, file=file, advice=AGAIN
            )
        if {key for key, place in index.items() if place == file} != set(lists[file]):
            raise CheckpointError(
                "{name} and {file} list different tensors: {advice}.", name=name, file=file, advice=AGAIN
            )
        tensors |= lists[file]
    return tensors


def _json(text: bytes, name: str) -> dict[str, Any]:
    """The dict in a text. Raises CheckpointError if it is none, or if a name stands in it twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        "".join(entries).encode()  # half of a letter is no text: ValueError
        if len(entries) < len(pairs):
            _damaged(name, Message("two of its entries have one name"))
        return entries

    def no_number(word: str) -> NoReturn:
        raise ValueError(word)  # Infinity and NaN are not JSON

    try:
        content = json.loads(text.decode(), object_pairs_hook=once, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("{name} has a damaged list of tensors: {advice}.", name=name, advice=AGAIN) from error
    if not isinstance(content, dict):
        _damaged(name, Message("it lists no tensors"))
    return content


def _tensor(key: str, entry: Any, data: int, name: str, dtypes: Mapping[str, tuple[str, int]]) -> StoredTensor:
    """One entry of the list; the values of the file begin at byte `data`."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]}:
            numbers = (*shape, start, stop)
        case _:
            _wrong_entry(key, name)
    if len(shape) > _MOST_DIMENSIONS or not all(type(one) is int and 0 <= one < _MOST_VALUES for one in numbers):
        _wrong_entry(key, name)
    if dtype not in dtypes:
        raise CheckpointError(
            "{key} in {name} is {kind}, not a tensor of floating-point weights: save the checkpoint again in bf16, "
            "f16 or f32.",
            key=shown(key),
            name=name,
            kind=shown(dtype),
        )
    short, width = dtypes[dtype]
    if math.prod(shape) * width != stop - start:
        _wrong_entry(key, name)
    return StoredTensor(tuple(shape), short, PurePosixPath(name).name, data + start, data + stop)


def _check_places(tensors: Mapping[str, StoredTensor], data: int, size: int, name: str) -> None:
    """Raises CheckpointError unless the tensors fill the file, one after the other."""
    end = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != end:
            _damaged(name, Message("its tensors overlap") if tensor.start < end else _UNUSED)
        end = tensor.stop
    if end > size:
        _cut_short(name)
    if end < size:
        _damaged(name, _UNUSED)


_UNUSED = Message("it has bytes that belong to no tensor")


def _cut_short(name: str) -> NoReturn:
    raise CheckpointError("{name} is cut short or damaged: {advice}.", name=name, advice=AGAIN)


def _wrong_entry(key: str, name: str) -> NoReturn:
    _damaged(name, Message("what it says of {key} makes no sense", key=shown(key)))


def _damaged(name: str, what: str) -> NoReturn:
    raise CheckpointError("{name} is damaged ({what}): {advice}.", name=name, what=what, advice=AGAIN)

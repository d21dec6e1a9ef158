"""The reader of rwkv.cpp's files: on sound ones, and on files that lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ggufy.core.errors import SourceError
from ggufy.formats import rwkvcpp
from ggufy.formats.rwkvcpp import Record, read_head
from tests.reference import reference_file
from tests.rwkvcpp_files import Written, write

pytestmark = pytest.mark.fast
EMBEDDING = np.arange(320, dtype="<f4").reshape(5, 64)
KEY = np.ones((3, 64), dtype="<f2")


def records() -> list[Written]:
    return [
        Written(b"emb.weight", 0, (64, 5), EMBEDDING.tobytes()),
        Written(b"blocks.0.att.time_first", 0, (64,), bytes(256)),
        Written(b"blocks.0.att.key.weight", 1, (64, 3), KEY.tobytes()),
        Written("blocks.0.文".encode(), 8, (32, 1, 2), bytes(48)),
    ]


def test_it_reads_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", records(), type_number=1)
    head = read_head(path)
    assert (head.version, head.vocab_size, head.width, head.layers, head.type) == (101, 5, 64, 1, "FP16")
    assert head.file_size == path.stat().st_size and head.quantized and not head.outdated and head.rwkv == "4"
    assert head.elements == 320 + 64 + 192 + 64
    assert head.bpw == (1280 + 256 + 384 + 48) * 8 / 640
    found = head.records["emb.weight"]
    assert (found.type, found.shape, found.size) == ("FP32", (5, 64), 1280)
    assert path.read_bytes()[found.offset :][: found.size] == EMBEDDING.tobytes()
    assert [one.shape for one in head.records.values()] == [(5, 64), (64,), (3, 64), (2, 1, 32)]
    assert list(head.records) == [one.name.decode() for one in records()]
    assert rwkvcpp.is_rwkvcpp(path)


def test_what_it_packs_is_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", records(), type_number=1)
    packed = rwkvcpp.packed_header(vocab_size=5, width=64, layers=1, type_name="FP16")
    size = len(packed)
    for one, record in zip(records(), read_head(path).records.values(), strict=True):
        packed += rwkvcpp.packed_record(record.name, record.type, record.shape) + one.data
        size += rwkvcpp.record_size(record.name, record.type, record.shape)
    assert packed == path.read_bytes() and len(packed) == size


def test_blocks_are_those_of_ggml() -> None:
    for one in rwkvcpp.TYPES.values():
        assert (one.block, one.size) == GGML_QUANT_SIZES[GGMLQuantizationType[one.ggml]]


def change(place: int, **fields: object) -> Callable[[list[Written]], list[Written]]:
    def changed(given: list[Written]) -> list[Written]:
        given[place] = dataclasses.replace(given[place], **fields)  # type: ignore[arg-type]
        return given

    return changed


LIES = {
    "no dimensions": change(0, dimensions=0),
    "four dimensions": change(0, dimensions=4),
    "negative dimensions": change(0, dimensions=-1),
    "no name": change(0, length=0),
    "a name without end": change(0, length=(1 << 31) - 1),
    "a negative name": change(0, length=-5),
    "a name that is no text": change(0, name=b"\xff\xfe\xfd"),
    "an empty tensor": change(0, sizes=(64, 0)),
    "a negative size": change(0, sizes=(-64, -5)),
    "sizes beyond any file": change(0, sizes=((1 << 31) - 1,) * 3),
    "an unknown type": change(0, type=77),
    "a type of activations": change(0, type=10),
    "a negative type": change(0, type=-1),
    "rows that no block fits": change(3, sizes=(31, 2)),
    "a name twice": change(1, name=b"emb.weight"),
    "cut off in the values": change(3, data=bytes(47)),
    "cut off in a record": lambda given: [*given, Written(b"x", 0, (1,), bytes(4), length=9)],
    "a few bytes too many": change(3, data=bytes(55)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    path = write(tmp_path / "a.bin", LIES[lie](records()))
    with pytest.raises(SourceError, match=r"a\.bin is not a sound file of rwkv\.cpp \(.+\): fetch or convert"):
        read_head(path)


@pytest.mark.parametrize(
    "header",
    [{"magic": 0x46554747}, {"version": 102}, {"version": -1}, {"tokens": 0}, {"width": -2}]
    + [{"layers": 1 << 30}, {"type_number": 10}, {"type_number": -1}],
    ids=str,
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: dict[str, int]) -> None:
    with pytest.raises(SourceError, match=r"not a sound file of rwkv\.cpp"):
        read_head(write(tmp_path / "a.bin", records(), **header))


def test_a_file_that_ends_too_soon_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.bin", records()).read_bytes()
    ends = {24}  # a header alone, below
    for record in records():
        ends.add(max(ends) + len(record.packed))
    for size in sorted({*range(30), *range(len(whole) - 60, len(whole))} - ends):
        (tmp_path / "b.bin").write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"not a sound file of rwkv\.cpp"):
            read_head(tmp_path / "b.bin")
    with pytest.raises(SourceError, match="it has no tensors"):
        read_head(write(tmp_path / "b.bin", []))
    with pytest.raises(SourceError, match="does not exist"):
        read_head(tmp_path / "gone.bin")


@pytest.mark.parametrize(
    ("number", "name", "instead"), [(4, "Q4_1_O", "Q5_1"), (5, "Q4_2", "Q5_0"), (6, "Q4_3", "Q5_1")]
)
def test_removed_types_say_what_came_instead(tmp_path: Path, number: int, name: str, instead: str) -> None:
    path = write(tmp_path / "a.bin", records(), type_number=number)
    with pytest.raises(SourceError, match=rf"type {name}, which rwkv\.cpp removed on 2023-.*again as {instead}\."):
        read_head(path)


def test_old_blocks_have_their_own_sizes(tmp_path: Path) -> None:
    sizes = {"Q4_0": 20, "Q4_1": 24, "Q4_1_O": 24, "Q4_2": 20, "Q4_3": 24, "Q5_0": 22, "Q5_1": 24, "Q8_0": 36}
    for name, size in sizes.items():
        number = rwkvcpp.OLD_TYPES[name].number
        old = [Written(b"emb.weight", number, (32, 1), bytes(size))]
        head = read_head(write(tmp_path / "a.bin", old, version=100, type_number=number))
        assert head.type == name and head.outdated
        assert head.records["emb.weight"] == Record("emb.weight", name, (1, 32), 24 + 12 + 8 + 10, size)


@pytest.mark.parametrize(
    ("model", "rwkv", "layers", "width"),
    [("4v0-660K", "4", 4, 128), ("5v1-730K", "5.1", 12, 64), ("5v2-730K", "5.2", 12, 64)]
    + [("6v0-1m", "6", 12, 64), ("7v0-834K", "7", 12, 64)],
)
def test_files_of_rwkv_cpp_itself(model: str, rwkv: str, layers: int, width: int) -> None:
    for kind in ("FP32", "Q5_1"):
        head = read_head(reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-{kind}.bin"))
        assert (head.rwkv, head.layers, head.width, head.vocab_size) == (rwkv, layers, width, 256)
        assert head.type == kind and head.quantized == (kind == "Q5_1") and not head.outdated
    old = read_head(reference_file("rwkvcpp/derived/tiny-rwkv-4v0-660K-v100-Q4_1_O.bin"))
    assert old.outdated and old.type == "Q4_1_O"

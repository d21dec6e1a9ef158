"""The GGUF head reader: against the gguf package on good files, and against files that lie (more in test_fuzz.py)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from ggufy.core.errors import SourceError
from ggufy.formats import gguf
from tests.fuzz_gguf import Made


def write(path: Path) -> Path:
    writer = GGUFWriter(path, "rwkv7")
    writer.add_string("general.name", "中文")
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(5000)])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("flag", True)
    writer.add_tensor("a.weight", np.arange(512, dtype=np.float32).reshape(2, 256))
    writer.add_tensor("b.weight", np.zeros((3, 64), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_reads_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf")
    head, reader = gguf.read_head(path), GGUFReader(path)
    assert head.metadata["general.name"] == "中文"
    assert head.metadata["tokenizer.ggml.tokens"] == 5000
    assert head.metadata["numbers"] == [1, 2, 3]
    assert head.data_start == reader.data_offset
    for tensor in reader.tensors:
        mine = head.tensors[tensor.name]
        assert (mine.shape, mine.size) == (tuple(int(n) for n in tensor.shape), tensor.n_bytes)
        assert head.data_start + mine.offset == tensor.data_offset
    assert gguf.read_tensor(path, head, "a.weight").tolist() == list(range(512))


def at(position: int, layout: str, value: object) -> Callable[[bytearray, int], None]:
    def change(data: bytearray, _: int) -> None:
        struct.pack_into("<" + layout, data, position, value)

    return change


def at_tensors(delta: int, layout: str, value: object) -> Callable[[bytearray, int], None]:
    """Relative to the first tensor entry: name length 8, name 8, dimensions 4, ne0 8, ne1 8, type 4, offset 8."""

    def change(data: bytearray, tensors: int) -> None:
        struct.pack_into("<" + layout, data, tensors + delta, value)

    return change


LIES = {
    "magic": at(0, "4s", b"GGML"),
    "version": at(4, "I", 9),
    "tensor count": at(8, "Q", 1 << 60),
    "key count": at(16, "Q", 1 << 60),
    "key length": at(24, "Q", 1 << 62),
    "tensor name length": at_tensors(0, "Q", 1 << 50),
    "dimension count": at_tensors(16, "I", 1 << 30),
    "zero dimension": at_tensors(20, "Q", 0),
    "huge dimension": at_tensors(28, "Q", 1 << 61),
    "tensor type": at_tensors(36, "I", 999),
    "tensor far away": at_tensors(40, "Q", 1 << 40),
    "overlap": at_tensors(40, "Q", 2048),
    "not aligned": at_tensors(40, "Q", 2),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_in_one_sentence(tmp_path: Path, lie: str) -> None:
    path = write(tmp_path / "a.gguf")
    tensors = gguf.read_head(path).metadata_end
    data = bytearray(path.read_bytes())
    LIES[lie](data, tensors)
    path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        gguf.read_head(path)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf").read_bytes()
    end = len(whole) - 1
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 4000, 97), *range(4000, end, 3001), end - 400]:
        cut.write_bytes(whole[:length])
        with pytest.raises(SourceError):
            gguf.read_head(cut)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        gguf.read_head(tmp_path / "no.gguf")


def test_what_a_file_says_of_itself_stays_short_and_on_one_line(tmp_path: Path) -> None:
    text = 8
    for entries in (
        [(b"general.alignment", text, b"\n\x1b[2J" * 1000)],
        [(b"x\n" * 5000, text, b"1"), (b"x\n" * 5000, text, b"2")],
    ):
        (tmp_path / "a.gguf").write_bytes(Made(entries, []).write())
        with pytest.raises(SourceError, match="its alignment is|is listed twice") as caught:
            gguf.read_head(tmp_path / "a.gguf")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500

"""Files of rwkv.cpp in other types: byte for byte what its own quantizer writes, and what is refused; and the blocks
of its files of April 2023."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from ggufy.core.errors import Cancelled, SourceError, ToolError, UsageError
from ggufy.formats.rwkvcpp import OLD_TYPES, read_head
from ggufy.rwkvcpp import quantize
from ggufy.rwkvcpp.quantize import Control
from ggufy.rwkvcpp.types import OFFERED, QUANTIZED, UNQUANTIZED, parse_type
from ggufy.rwkvcpp.version100 import dequantize
from ggufy.system.files import sha256
from tests import tiny
from tests.reference import reference_data, reference_file
from tests.rwkvcpp_files import Written, write
from tests.test_rwkvcpp_convert import MODELS, VERSIONS, contents, made

pytestmark = pytest.mark.fast
SIMPLE = QUANTIZED[:5]
TWO = Control(limit=lambda: 2)


def base(folder: Path, version: str = "4", type_name: str = "FP32", **options: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"base-{type_name}.bin"
    made(tiny.save(folder / "base.pth", tiny.weights(version, **options)), path, type_name)  # type: ignore[arg-type]
    return path


# ---- the same bytes


@pytest.mark.parametrize("base_type", UNQUANTIZED)
@pytest.mark.parametrize("model", MODELS)
def test_the_bytes_of_rwkv_cpp_s_own_quantizer(tmp_path: Path, model: str, base_type: str) -> None:
    source = tmp_path / "base.bin"
    made(reference_file(f"rwkvcpp/derived/tiny-rwkv-{model}.pth"), source, base_type)
    known = reference_data("rwkvcpp/reference/reference.json")["files"]
    for name in SIMPLE:
        digest = quantize.quantize(source, tmp_path / "q.bin", name, control=TWO)
        wanted = known[f"{model}/{base_type}-to-{name}"]
        assert digest == wanted["sha256"] == sha256(tmp_path / "q.bin"), name
        assert quantize.size_of(read_head(source), name) == wanted["size"] == (tmp_path / "q.bin").stat().st_size
    if base_type == "FP32":
        quantize.quantize(source, tmp_path / "half.bin", "FP16", control=TWO)
        made(reference_file(f"rwkvcpp/derived/tiny-rwkv-{model}.pth"), tmp_path / "whole.bin", "FP16")
        assert (tmp_path / "half.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_the_published_files(tmp_path: Path, model: str) -> None:
    source = reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-FP32.bin")
    quantize.quantize(source, tmp_path / "q.bin", "Q5_1")
    theirs = reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-Q5_1.bin")
    assert (tmp_path / "q.bin").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("version", ("4", "5", "5.2", "7"))
def test_the_blocks_of_made_models(tmp_path: Path, version: str, name: str) -> None:
    """Those of the package gguf, of the matrices that rwkv.cpp quantizes; all else is as it was."""
    source = base(tmp_path, version, layers=2)
    quantize.quantize(source, tmp_path / "q.bin", name, control=TWO)
    before, after = contents(source), contents(tmp_path / "q.bin")
    head = read_head(tmp_path / "q.bin")
    assert head.type == name and head.file_size == quantize.size_of(read_head(source), name)
    count = {"4": 7, "5": 7, "5.2": 8, "7": 6}[version]
    changed = [one for one in before if before[one] != after[one]]
    assert len(changed) == 2 * count and list(before) == list(after)
    for one in changed:
        values = np.frombuffer(before[one][2], "<f4").reshape(before[one][1])
        wanted = gguf.quants.quantize(values, GGMLQuantizationType[name])
        assert after[one] == (name, before[one][1], wanted.tobytes())


@pytest.mark.parametrize("version", VERSIONS)
def test_fp16_made_from_fp32_is_the_converter_s(tmp_path: Path, version: str) -> None:
    source = base(tmp_path, version)
    quantize.quantize(source, tmp_path / "half.bin", "FP16", control=TWO)
    assert (tmp_path / "half.bin").read_bytes() == base(tmp_path, version, "FP16").read_bytes()
    quantize.quantize(tmp_path / "half.bin", tmp_path / "again.bin", "FP32")
    assert read_head(tmp_path / "again.bin") == read_head(source)


# ---- what is refused


def refused(source: Path, name: str, words: str, error: type[Exception] = SourceError) -> None:
    before = {path.name for path in source.parent.iterdir()}
    with pytest.raises(error, match=words):
        quantize.quantize(source, source.with_name("out.bin"), name)
    assert {path.name for path in source.parent.iterdir()} == before


def test_a_quantized_source_is_refused(tmp_path: Path) -> None:
    source = base(tmp_path)
    quantize.quantize(source, tmp_path / "q.bin", "Q8_0")
    refused(tmp_path / "q.bin", "Q5_1", "q.bin is quantized already: start from its FP32 or FP16 file")
    refused(tmp_path / "q.bin", "FP16", "quantized already")


def test_rows_that_no_block_fits_are_refused(tmp_path: Path) -> None:
    refused(base(tmp_path, "4"), "Q4_K", r"blocks have 256 values, as .* has rows of 128: choose Q5_1 / Q4_1 / Q8_0")
    refused(base(tmp_path, "6"), "Q5_1", r"time_decay_w2 has rows of 40: choose FP16\.")
    odd = [Written(b"emb.weight", 0, (20, 5), bytes(400)), Written(b"blocks.0.ffn.key.weight", 0, (20, 4), bytes(320))]
    path = write(tmp_path / "odd.bin", odd, width=20)
    refused(path, "Q8_0", r"blocks.0.ffn.key.weight has rows of 20: choose FP16\.")
    quantize.quantize(path, tmp_path / "odd-half.bin", "FP16")


def test_what_needs_llama_cpp_says_so(tmp_path: Path) -> None:
    refused(base(tmp_path, "4", width=256), "Q4_K", "made with llama.cpp, which is not here", ToolError)
    refused(tmp_path / "base-FP32.bin", "Q6_K", "rwkv.cpp has no type Q6_K", UsageError)


def test_values_that_cannot_be_held_are_refused(tmp_path: Path) -> None:
    state = tiny.weights("4")
    for value, name, words in (
        (1e6, "FP16", "blocks.0.ffn.key.weight has values that FP16 cannot hold"),
        (1e38, "Q4_0", "blocks.0.ffn.key.weight has values that Q4_0 cannot hold"),
    ):
        state["blocks.0.ffn.key.weight"][3, 3] = value
        made(tiny.save(tmp_path / "a.pth", state), tmp_path / "a.bin")
        refused(tmp_path / "a.bin", name, words)
    data = bytearray((tmp_path / "a.bin").read_bytes())
    place = read_head(tmp_path / "a.bin").records["ln_out.weight"].offset
    data[place : place + 4] = struct.pack("<f", float("nan"))
    (tmp_path / "a.bin").write_bytes(data)
    refused(tmp_path / "a.bin", "Q8_0", "ln_out.weight has values that are not finite")


@pytest.mark.parametrize(
    ("word", "name"),
    [("q5_1", "Q5_1"), (" FP16 ", "FP16"), ("float16", "FP16"), ("F32", "FP32"), ("2", "Q4_0"), ("3", "Q4_1")]
    + [(name, name) for name in OFFERED],
)
def test_types_as_people_write_them(word: str, name: str) -> None:
    assert parse_type(word) == name


def test_removed_types_say_what_came_instead() -> None:
    for word, instead in (("Q4_1_O", "Q5_1"), ("4", "Q5_1"), ("q4_2", "Q5_0"), ("5", "Q5_0"), ("6", "Q5_1")):
        with pytest.raises(UsageError, match=rf"was removed from rwkv.cpp on 2023-0.-.*: choose {instead}\."):
            parse_type(word)
    with pytest.raises(UsageError, match="rwkv.cpp has no type Q4_K_M: choose one of FP32, FP16, Q4_0"):
        parse_type("Q4_K_M")


# ---- while it runs


def test_it_stops_goes_on_and_obeys(tmp_path: Path) -> None:
    source, whole, target = base(tmp_path, "5", layers=4), tmp_path / "whole.bin", tmp_path / "q.bin"
    quantize.quantize(source, whole, "Q4_1")
    told: list[float] = []
    with pytest.raises(Cancelled):
        quantize.quantize(
            source, target, "Q4_1", control=Control(stopped=lambda: bool(told and told[-1] > 0.4), report=told.append)
        )
    part = tmp_path / "q.bin.part"
    left = part.stat().st_size
    assert 0 < left < whole.stat().st_size and not target.exists()
    told.clear()
    quantize.quantize(source, target, "Q4_1", control=Control(limit=lambda: 3, report=told.append))
    assert target.read_bytes() == whole.read_bytes() and told[-1] == 1.0 and not part.exists()
    # What another source left, or this one for another type, is of no use.
    for name, other in (("Q4_0", source), ("Q4_1", base(tmp_path / "other", "5", layers=4, seed=1))):
        target.unlink()
        told.clear()
        with pytest.raises(Cancelled):
            quantize.quantize(
                source, target, "Q4_1", control=Control(stopped=lambda: len(told) > 9, report=told.append)
            )
        quantize.quantize(other, target, name, identity="other")
        assert sha256(target) == quantize.quantize(other, whole, name)


def test_no_more_threads_are_busy_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = base(tmp_path, "4", layers=3)
    busy, most, lock = 0, 0, threading.Lock()
    inner = quantize._Work._made

    def counted(work: Any, *given: Any) -> Any:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        try:
            return inner(work, *given)
        finally:
            with lock:
                busy -= 1

    monkeypatch.setattr(quantize._Work, "_made", counted)
    quantize.quantize(source, tmp_path / "q.bin", "Q5_0", control=TWO)
    assert 1 <= most <= 2


# ---- version 100


def of_2023(name: str, values: Any) -> bytes:
    """Blocks as the library of April 2023 made them."""
    rows = values.reshape(-1, 32).astype(np.float32)
    least = rows.min(1) if name == "Q4_1" else np.zeros(len(rows), np.float32)
    d = (rows.max(1) - least) / np.float32(15) if name == "Q4_1" else np.abs(rows).max(1) / np.float32(7)
    scaled = (rows - least[:, None]) * np.where(d, 1 / np.where(d, d, 1), 0).astype(np.float32)[:, None]
    nearest = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)
    q = (nearest + (0 if name == "Q4_1" else 8)).astype(np.uint8)
    head = [d, least] if name == "Q4_1" else [d]
    parts = [one.astype("<f4").view(np.uint8).reshape(-1, 4) for one in head]
    return np.concatenate([*parts, q[:, ::2] | q[:, 1::2] << 4], axis=1).tobytes()


def old_file(source: Path, target: Path, name: str, blocks: Callable[[str, Any], bytes]) -> Path:
    """A file of version 100 whose matrices are made by `blocks` from an FP32 one."""
    head, records = read_head(source), []
    for one, (_, shape, data) in contents(source).items():
        number = 0
        if len(shape) == 2 and one not in ("emb.weight", "head.weight"):
            number, data = OLD_TYPES[name].number, blocks(name, np.frombuffer(data, "<f4"))
        records.append(Written(one.encode(), number, shape[::-1], data))
    facts = {"tokens": head.vocab_size, "width": head.width, "layers": head.layers}
    return write(target, records, version=100, type_number=OLD_TYPES[name].number, **facts)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1"])
def test_files_of_2023_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    """The file is the library's, byte for byte; so its values are what the blocks were made from, to half a step."""
    source = reference_file("rwkvcpp/upstream/tiny-rwkv-4v0-660K-FP32.bin")
    old = old_file(source, tmp_path / "old.bin", name, of_2023)
    assert sha256(old) == reference_data("rwkvcpp/reference/old.json")[name]["sha256"]
    quantize.quantize(old, tmp_path / "new.bin", "FP32", control=TWO)
    compare(source, tmp_path / "new.bin", steps=0.52)


def compare(source: Path, brought_up: Path, *, steps: float) -> None:
    """Within so many steps of 15 of what a block spans."""
    before, after = contents(source), contents(brought_up)
    for name, (kind, shape, data) in before.items():
        assert after[name][:2] == (kind, shape)
        rows, found = (np.frombuffer(one, "<f4") for one in (data, after[name][2]))
        if len(shape) == 2 and name not in ("emb.weight", "head.weight"):
            rows, found = rows.reshape(-1, 32), found.reshape(-1, 32)
            step = np.maximum(np.ptp(rows, axis=1), 2.15 * np.abs(rows).max(1)) / 15
            assert (np.abs(rows - found) <= steps * step[:, None] + 1e-6).all(), name
        else:
            assert np.array_equal(rows, found)


def test_a_file_with_outliers_of_2023(tmp_path: Path) -> None:
    """By the library itself; its outlier is exact but for F16."""
    old = reference_file("rwkvcpp/derived/tiny-rwkv-4v0-660K-v100-Q4_1_O.bin")
    source = reference_file("rwkvcpp/upstream/tiny-rwkv-4v0-660K-FP32.bin")
    quantize.quantize(old, tmp_path / "new.bin", "FP32")
    before, after = contents(source), contents(tmp_path / "new.bin")
    for name in ("att.key", "att.value", "att.output", "att.receptance"):
        rows, found = (
            np.frombuffer(one[f"blocks.0.{name}.weight"][2], "<f4").reshape(-1, 32) for one in (before, after)
        )
        place = np.abs(rows).argmax(1)[:, None]
        largest, kept = (np.take_along_axis(one, place, 1) for one in (rows, found))
        np.testing.assert_allclose(kept, largest, rtol=6e-4, atol=3e-8)
        assert np.abs(rows - found).mean() < 0.13 * np.abs(rows).mean()
    quantize.quantize(old, tmp_path / "q.bin", "Q5_1")
    quantize.quantize(tmp_path / "new.bin", tmp_path / "q2.bin", "Q5_1")
    assert (tmp_path / "q.bin").read_bytes() == (tmp_path / "q2.bin").read_bytes()


def by_hand(name: str, block: bytes) -> list[float]:
    """One block of version 100, one value at a time."""
    floats = {"Q4_0": "<f", "Q4_1": "<ff", "Q4_2": "<e", "Q4_3": "<ee", "Q5_0": "<e", "Q5_1": "<ee", "Q8_0": "<f"}
    d, *rest = struct.unpack_from(floats[name], block)
    m = rest[0] if rest else 0.0
    data = block[struct.calcsize(floats[name]) :]
    if name == "Q8_0":
        return [d * q for q in struct.unpack("<32b", data)]
    fifth, zero = 0, 8
    if name.startswith("Q5"):
        fifth, data, zero = int.from_bytes(data[:4], "little"), data[4:], 16
    values = []
    for at in range(2 * len(data)):
        q = data[at // 2] >> 4 if at % 2 else data[at // 2] & 15
        q |= (fifth >> at & 1) << 4
        values.append(q * d + m if rest else (q - zero) * d)
    return values


@pytest.mark.parametrize("name", [name for name in OLD_TYPES if name not in ("FP32", "FP16", "Q4_1_O")])
def test_old_blocks_one_value_at_a_time(name: str) -> None:
    random = np.random.default_rng(7)
    count, size = 6, OLD_TYPES[name].size
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    floats = 2 if name in ("Q4_1", "Q4_3", "Q5_1") else 1
    width = 4 if name in ("Q4_0", "Q4_1", "Q8_0") else 2
    scales = random.normal(size=(count, floats)).astype("<f4" if width == 4 else "<f2")
    blocks[:, : floats * width] = scales.view(np.uint8)
    expected = [value for block in blocks for value in by_hand(name, block.tobytes())]
    np.testing.assert_allclose(dequantize(blocks.tobytes(), name), expected, rtol=1e-5, atol=1e-6)


def test_an_outlier_of_a_block_of_2023() -> None:
    block = struct.pack("<eeHe", 0.5, -1.0, 33 + 32, 7.5) + bytes([0x21] * 16)  # 65 is no place among 32
    values = dequantize(block, "Q4_1_O")
    assert values[65 % 32] == 7.5 and set(np.delete(values, 1)) == {-0.5, 0.0}


def test_every_type_of_2023_becomes_any_of_today(tmp_path: Path) -> None:
    source = base(tmp_path, "4")
    old = old_file(source, tmp_path / "old.bin", "Q4_0", of_2023)
    assert read_head(old).outdated
    for name in (*UNQUANTIZED, *SIMPLE):
        quantize.quantize(old, tmp_path / "new.bin", name)
        head = read_head(tmp_path / "new.bin")
        assert (head.version, head.type, head.outdated) == (101, name, False)
        assert {one.type for one in head.records.values()} <= {"FP32", name}

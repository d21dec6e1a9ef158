"""Files of rwkv.cpp as sources: told by what is in them, described, taken as they are, brought up to date; and
adapters merged into them, bit for bit as into the checkpoint."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ggufy.core.errors import Cancelled, CheckpointError, SourceError
from ggufy.core.source import Source
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.formats.rwkvcpp import read_head
from ggufy.models.layouts import origins_of
from ggufy.models.merge import OpenAdapter, merge_adapters
from ggufy.rwkvcpp.convert import convert_tensors
from ggufy.rwkvcpp.lora import merge_into_file
from ggufy.rwkvcpp.quantize import quantize
from ggufy.rwkvcpp.tensors import check_file
from ggufy.sources.adapter import AdapterSearch, AdapterWish, pin_adapters
from ggufy.sources.adapter_files import opened_adapters
from ggufy.sources.format import ConvertTask, Report, SkeletonTask
from ggufy.sources.registry import format_of, format_of_file, format_of_name
from ggufy.sources.rwkvcpp_bin import RwkvcppBin
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from tests import adapters, tiny
from tests.reference import reference_data, reference_file
from tests.test_rwkvcpp_convert import MODELS, VERSIONS, contents, made
from tests.test_rwkvcpp_quantize import base, of_2023, old_file

pytestmark = pytest.mark.fast
SEARCH = AdapterSearch(Settings.from_env({}))
FORM = RwkvcppBin()


# ---- what it is


def told(path: Path) -> Report:
    """What its format says of a file here."""
    found: dict[str, Any] = {"path": path.name, "size": path.stat().st_size, "kind": FORM.kind, "noun": FORM.noun}
    with path.open("rb") as file:
        try:
            FORM.describe(file, nothing_beside, found, None)
        except SourceError as error:
            found["problem"] = error.message
    return Report(source=str(path), **found)


def nothing_beside(name: str) -> Any:
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rwkv.cpp-169M.bin", "rwkvcpp"),
        ("RWKV-4-Pile-169M-20220807-8023-Q5_1.bin", "rwkvcpp"),
        ("some/folder/rwkv-5-world-FP16.bin", "rwkvcpp"),
        ("tiny-rwkv-4v0-660K-v100-Q4_1_O.bin", "rwkvcpp"),
        ("pytorch_model.bin", "bin"),
        ("ggml-model-q4_0.bin", ""),
        ("adapter_model.bin", ""),
        ("rwkv/training-args.bin", ""),
    ],
)
def test_files_elsewhere_are_told_by_their_names(name: str, kind: str) -> None:
    form = format_of_name(name)
    assert (form.kind if form else "") == kind


def test_files_here_are_told_by_what_is_in_them(tmp_path: Path) -> None:
    path = base(tmp_path)
    for name in ("pytorch_model.bin", "a.pth", "noname"):
        assert format_of_file(path.rename(tmp_path / name)).kind == "rwkvcpp"
        path = tmp_path / name
    tiny.save(tmp_path / "x-rwkv-FP32.bin", tiny.weights("7"))
    assert format_of_file(tmp_path / "x-rwkv-FP32.bin").kind == "checkpoint"
    assert format_of("rwkvcpp").kind == "rwkvcpp"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_told_of_one(tmp_path: Path, version: str) -> None:
    path = base(tmp_path, version, "FP16", layers=3)
    report = told(path)
    state = tiny.weights(version, layers=3)
    assert report.problem == "" and report.kind == "rwkvcpp"
    assert report.version == {"5": "5.1"}.get(version, version)
    assert report.title == f"RWKV-{report.version} rwkv.cpp file"
    facts = (report.layers, report.width, report.vocab_size, report.dtype, report.heads, report.head_size)
    assert facts == (3, 128, 320, "f16", *((0, 0) if version == "4" else (2, 64)))
    assert report.parameters == sum(tensor.numel() for tensor in state.values())
    FORM.write_described(report, tmp_path / "hollow", SkeletonTask(outtype="f16", name="x"))
    assert (tmp_path / "hollow").stat().st_size == path.stat().st_size
    head = FORM.base_head(path)
    assert head is not None and head == read_head(path)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_told_of_the_published_ones(model: str) -> None:
    report = told(reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-FP32.bin"))
    assert (report.problem, report.dtype, report.vocab_size) == ("", "f32", 256)
    report = told(reference_file(f"rwkvcpp/upstream/tiny-rwkv-{model}-Q5_1.bin"))
    assert "is quantized already: start from its FP32 or FP16 file" in report.problem
    assert (report.dtype, report.vocab_size) == ("Q5_1", 256)


def test_of_one_far_away_only_the_start_is_read(tmp_path: Path) -> None:
    for version in VERSIONS:
        path = base(tmp_path, version, layers=4)
        found: dict[str, Any] = {"path": path.name, "size": path.stat().st_size, "streams": False}
        with path.open("rb") as file:
            FORM.describe(file, nothing_beside, found, None)
        assert found["layers"] == 4
        assert found["shapes"] == told(path).shapes
        with path.open("rb") as file, pytest.raises(SourceError, match="are not those of the tensors"):
            FORM.describe(file, nothing_beside, found | {"size": 5000}, None)


def changed_file(path: Path, **change: Any) -> Path:
    """With one record left out, or another name or shape."""
    data, head = path.read_bytes(), read_head(path)
    record = head.records[change["record"]]
    start = record.offset - len(record.name.encode()) - 4 * len(record.shape) - 12
    before, after = data[:start], data[record.offset + record.size :]
    own = data[start : record.offset + record.size]
    if "name" in change:
        own = own.replace(record.name.encode(), change["name"].encode())
    if "sizes" in change:
        own = own[:12] + struct.pack(f"<{len(change['sizes'])}i", *change["sizes"]) + own[12 + 4 * len(record.shape) :]
    if change.get("gone"):
        own = b""
    path.write_bytes(before + own + after)
    return path


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_loader_would_end_over_is_refused(tmp_path: Path, version: str) -> None:
    key = "blocks.1.att.key.weight"
    for change, words in (
        ({"record": key, "gone": True}, f"it has no tensor {key}"),
        ({"record": key, "name": "blocks.9.att.key.weight"}, f"it has no tensor {key}"),
        ({"record": key, "sizes": (64, 256)}, "has the shape 256 x 64, but 128 x 128 was expected"),
        ({"record": "ln_out.bias", "gone": True}, "it has no tensor ln_out.bias"),
    ):
        path = changed_file(base(tmp_path, version), **change)
        assert words in told(path).problem
        with pytest.raises(SourceError, match=r"not a sound file of rwkv\.cpp"):
            FORM.base_head(path)
    path = base(tmp_path, version)
    data = path.read_bytes()
    path.write_bytes(data + struct.pack("<4i", 1, 8, 0, 1) + b"time_abc" + bytes(4))
    assert "rwkv.cpp knows no tensor time_abc" in told(path).problem


def test_a_header_that_promises_more_is_refused(tmp_path: Path) -> None:
    path = base(tmp_path, "4")
    data = bytearray(path.read_bytes())
    for place, value in ((8, 321), (12, 64), (16, 3), (16, 4096)):
        wrong = bytearray(data)
        struct.pack_into("<i", wrong, place, value)
        path.write_bytes(wrong)
        assert "not a sound file of rwkv.cpp" in told(path).problem


# ---- what becomes of it


def task(path: Path, **options: Any) -> ConvertTask:
    source = Source(kind="rwkvcpp", path=str(path), size=path.stat().st_size, sha256=sha256(path))
    return ConvertTask(source=source, path=path, name="x", **({"outtype": "f32"} | options))


def test_an_unquantized_file_is_a_base_as_it_is(tmp_path: Path) -> None:
    path = base(tmp_path, "5.2", "FP16")
    digest = FORM.convert(task(path, outtype="f16"), tmp_path / "out.bin")
    assert digest == sha256(path) == sha256(tmp_path / "out.bin")
    with pytest.raises(SourceError, match="is f16 and is taken as it is: add --outtype f16"):
        FORM.convert(task(path, outtype="f32"), tmp_path / "b.bin")
    one = task(path, outtype="f16")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(SourceError, match="changed since the job was made"):
        FORM.convert(one, tmp_path / "b.bin")
    quantize(base(tmp_path, "5.2"), tmp_path / "q.bin", "Q5_0")
    with pytest.raises(SourceError, match="is quantized already"):
        FORM.convert(task(tmp_path / "q.bin"), tmp_path / "b.bin")
    assert not (tmp_path / "b.bin").exists()


@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_a_file_of_version_100_is_brought_up_to_date(tmp_path: Path, outtype: str) -> None:
    old = old_file(base(tmp_path, "4"), tmp_path / "old.bin", "Q4_1", of_2023)
    report = told(old)
    assert (report.problem, report.dtype, report.version) == ("", "Q4_1", "4")
    assert FORM.base_head(old) is None
    seen: list[float] = []
    digest = FORM.convert(task(old, outtype=outtype, report=seen.append), tmp_path / "new.bin")
    head = read_head(tmp_path / "new.bin")
    assert digest == sha256(tmp_path / "new.bin") and seen[-1] == 1
    assert (head.version, head.type) == (101, outtype.upper().replace("F", "FP"))
    check_file(head, "new.bin")
    with pytest.raises(Cancelled):
        FORM.convert(task(old, stopped=lambda: True), tmp_path / "b.bin")


# ---- adapters


def opened(path: Path, *texts: Path, alpha: float | None = 32) -> Any:
    wish = AdapterWish(texts=tuple(map(str, texts)), alpha=alpha)
    return opened_adapters([one for one, _ in pin_adapters(wish, SEARCH, FORM)], path.parent, SEARCH)


@pytest.mark.parametrize("case", ["4v0-FP32", "4v0-FP16", "5v2-FP32", "7v0-FP32"])
def test_the_bytes_of_rwkv_cpp_s_own_merge_script(tmp_path: Path, case: str) -> None:
    short, kind = case.split("-")
    model = next(name for name in MODELS if name.startswith(short))
    made(reference_file(f"rwkvcpp/derived/tiny-rwkv-{model}.pth"), tmp_path / "base.bin", kind)
    lora = reference_file(f"rwkvcpp/derived/adapters/lora-{short}.pth")
    with opened(tmp_path / "x", lora) as one:
        digest = merge_into_file(tmp_path / "base.bin", tmp_path / "out.bin", one)
    assert digest == sha256(tmp_path / "out.bin")
    if short == "4v0":  # which the script made from the published file, and that says version 100
        data = bytearray((tmp_path / "out.bin").read_bytes())
        data[4] = 100
        (tmp_path / "out.bin").write_bytes(data)
    if torch.backends.mkl.is_available():  # what multiplied there; another library may round otherwise
        assert sha256(tmp_path / "out.bin") == reference_data("rwkvcpp/reference/lora.json")[case]["sha256"]


def merged_twice(folder: Path, state: dict[str, torch.Tensor], loras: Sequence[OpenAdapter]) -> None:
    """Into the checkpoint, and into its file: the same bytes."""
    path = tiny.save(folder / "a.pth", state)
    made(path, folder / "a.bin")
    with open_checkpoint(path) as file:
        merged = merge_adapters(origins_of(file.shapes), loras)
        convert_tensors(file, merged, folder / "expected.bin", type_name="FP32")
    merge_into_file(folder / "a.bin", folder / "merged.bin", loras)
    assert (folder / "merged.bin").read_bytes() == (folder / "expected.bin").read_bytes()
    assert (folder / "merged.bin").read_bytes() != (folder / "a.bin").read_bytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_merge_into_the_file_is_one_into_the_checkpoint(tmp_path: Path, version: str) -> None:
    """Of matrices, and of whole tensors that the converter changes: decays, mixes, norms."""
    state = tiny.weights(version)
    whole = {name: tensor + 0.25 for name, tensor in state.items() if ".time_" in name or ".ln" in name}
    whole |= {name: state[name] + 0.25 for name in state if name.endswith((".x_k", ".x_g", ".w1", ".v2", ".w0"))}
    lora = tiny.save(tmp_path / "lora.pth", adapters.lora(state) | whole)
    with opened(tmp_path / "x", lora, alpha=8) as one:
        merged_twice(tmp_path, state, one)


def test_several_adapters_one_after_the_other(tmp_path: Path) -> None:
    state = tiny.weights("7")
    loras = [tiny.save(tmp_path / f"{seed}.pth", adapters.lora(state, seed=seed)) for seed in (1, 2)]
    with opened(tmp_path / "x", *loras, alpha=8) as both:
        merged_twice(tmp_path, state, both)


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    state = tiny.weights("4")
    lora = tiny.save(tmp_path / "lora.pth", adapters.lora(state))
    source = base(tmp_path, "4")
    quantize(source, tmp_path / "q.bin", "Q8_0")
    old = old_file(source, tmp_path / "old.bin", "Q4_0", of_2023)
    with opened(tmp_path / "x", lora, alpha=8) as one:
        with pytest.raises(SourceError, match="quantized already"):
            merge_into_file(tmp_path / "q.bin", tmp_path / "out.bin", one)
        with pytest.raises(SourceError, match="make an FP32 file of it first"):
            FORM.convert(task(old, adapters=one), tmp_path / "out.bin")
        with pytest.raises(SourceError, match="no tensor|does not fit|has the shape|is not for"):
            merge_into_file(base(tmp_path, "4", width=64), tmp_path / "out.bin", one)
    bad = dict(state) | {"blocks.0.att.time_decay": torch.full((128,), torch.inf)}
    made(tiny.save(tmp_path / "a.pth", state), tmp_path / "a.bin")
    only = {"blocks.0.att.time_decay": bad["blocks.0.att.time_decay"]} | adapters.lora(state)
    with (
        opened(tmp_path / "x", tiny.save(tmp_path / "bad.pth", only), alpha=8) as one,
        pytest.raises((SourceError, CheckpointError), match="NaN or infinite"),
    ):
        merge_into_file(tmp_path / "a.bin", tmp_path / "out.bin", one)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_a_job_s_adapters_are_merged_into_the_base(tmp_path: Path) -> None:
    state = tiny.weights("5.2")
    lora = tiny.save(tmp_path / "lora.pth", adapters.lora(state))
    source = base(tmp_path, "5.2")
    seen: list[float] = []
    with opened(tmp_path / "x", lora, alpha=8) as one:
        FORM.convert(task(source, adapters=one, report=seen.append), tmp_path / "out.bin")
    assert seen[-1] == 1 and set(contents(tmp_path / "out.bin")) == set(contents(source))
    assert contents(tmp_path / "out.bin") != contents(source)

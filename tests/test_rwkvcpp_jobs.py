"""Whole jobs whose files are rwkv.cpp's: from a wish to a folder or a published repo."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ggufy.core import job_record
from ggufy.core.errors import GgufyError, SourceError, UsageError
from ggufy.core.job import Job, Request, Status
from ggufy.core.job_record import from_json, to_json
from ggufy.core.names import check_card, repo_name
from ggufy.core.source import Source
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.formats.rwkvcpp import read_head
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.results import results
from ggufy.jobs.runner import Runner
from ggufy.jobs.values import read_options
from ggufy.llama import ggml
from ggufy.llama.install import Llama
from ggufy.models.layouts import origins_of
from ggufy.publish.card import CardFacts, card
from ggufy.records.run_state import RunState
from ggufy.rwkvcpp.convert import convert_tensors
from ggufy.rwkvcpp.quantize import quantize
from ggufy.sources.inspect import inspect
from ggufy.steps import plan
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from tests import rwkvcpp_files, tiny
from tests.hub_fixture import ALICE, LocalHub, local_hub  # noqa: F401 - fixture
from tests.reference import reference_data, reference_file

VERSIONS = ("4", "5", "5.2", "6", "7")
ALL = ("Q5_1", "Q8_0", "FP16", "Q5_0", "Q4_1", "Q4_0")
MODELS = ("4v0-660K", "5v1-730K", "5v2-730K", "6v0-1m", "7v0-834K")
REQUEST = Request(
    name="m",
    source=Source(kind="checkpoint", path="/m.pth", size=1, sha256="ab" * 32),
    quant_types=("Q5_1",),
    outtype="f32",
    output="rwkv.cpp",
    imatrix="none",
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    cache = str(Settings.from_env().cache)  # where the texts are, which take seconds to make
    environment = {"GGUFY_OUT": str(tmp_path / "out"), "GGUFY_CACHE": cache, "HOME": str(tmp_path)}
    return Settings.from_env(environment)


@pytest.fixture(autouse=True)
def ranks_of_whole_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """rwkv.cpp quantizes low-rank matrices of RWKV-6, too."""
    monkeypatch.setattr(tiny, "RANKS_6", tiny.LARGE_RANKS_6)


def checkpoint(folder: Path, version: str, **more: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    state = tiny.weights(version, **more)
    path = folder / f"m{version}.pth"
    torch.save(state, path)
    return path, state


def wish(source: Path | str, types: str, **more: Any) -> JobOptions:
    return read_options(str(source), {"quant_types": types, "output": "rwkv.cpp", "name": "m"} | more)


def run(job: Job, settings: Settings, llama: Llama) -> tuple[Job, RunState]:
    live = RunState()
    return Runner(settings=settings, llama=llama, threads=2).run(job, live), live


def converted(source: Path, type_name: str) -> str:
    """SHA-256 of the file that a checkpoint becomes by itself."""
    with open_checkpoint(source) as file:
        return convert_tensors(file, origins_of(file.shapes), source.with_suffix(".bin"), type_name=type_name)


@pytest.mark.tools
@pytest.mark.parametrize("version", VERSIONS)
def test_a_whole_job(version: str, settings: Settings, llama: Llama, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, version)
    job = make_job(wish(path, ",".join(("FP32", *ALL))), settings)
    assert [step.label for step in plan(job.request)] == ["convert", *(f"quantize {name}" for name in ALL)]
    done, live = run(job, settings, llama)
    assert (done.status, done.error) == (Status.DONE, "")
    folder = settings.out / "m-rwkv.cpp"
    base, kernels = folder / "m-FP32.bin", ggml.load(llama.bin)
    assert sha256(base) == converted(path, "FP32")
    assert sha256(folder / "m-FP16.bin") == converted(path, "FP16")
    for name in ALL:
        made = folder / f"m-{name}.bin"
        assert quantize(base, tmp_path / "alone.bin", name, ggml=kernels) == sha256(made)
        assert live.forecast is not None and live.forecast.sizes[name] == made.stat().st_size
    assert {one.name: one.sha256 for one in done.artifacts} == {one.name: sha256(one) for one in folder.glob("*.bin")}
    assert from_json(to_json(done)) == done
    rows = results(done, live.forecast, folder)
    assert [row.get("type") for row in rows] == [None, *ALL] and {row["format"] for row in rows} == {"rwkv.cpp"}
    assert rows[1]["bpw"] == round(read_head(folder / "m-Q5_1.bin").bpw, 3)

    (folder / "m-Q4_0.bin").unlink()
    again, live = run(job, settings, llama)
    assert again.status is Status.DONE and live.progress.snapshot().found == len(ALL)
    assert again.artifacts == done.artifacts or {a.name: a.sha256 for a in again.artifacts} == {
        a.name: a.sha256 for a in done.artifacts
    }


@pytest.mark.tools
@pytest.mark.parametrize("base", ["FP32", "FP16"])
@pytest.mark.parametrize("model", MODELS)
def test_other_peoples_models_have_rwkvcpps_own_bytes(model: str, base: str, settings: Settings, llama: Llama) -> None:
    path = reference_file(f"rwkvcpp/derived/tiny-rwkv-{model}.pth")
    files = reference_data("rwkvcpp/reference/reference.json")["files"]
    types = [name.rpartition("-to-")[2] for name in files if name.startswith(f"{model}/{base}-to-")]
    assert len(types) == 5
    done, _ = run(
        make_job(wish(path, ",".join(types), outtype=base.replace("P", "").lower()), settings), settings, llama
    )
    assert done.error == ""
    for name in types:
        made = settings.out / "m-rwkv.cpp" / f"m-{name}.bin"
        assert sha256(made) == files[f"{model}/{base}-to-{name}"]["sha256"], name
    own = read_head(settings.out / "m-rwkv.cpp" / f"m-{base}.bin")
    assert (own.type, own.version) == (base, 101)


@pytest.mark.tools
def test_quants_are_measured_in_the_models_own_tokens(settings: Settings, llama: Llama, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "5.2")
    vocab = tiny.write_vocab(tmp_path / "vocab.txt")
    options = wish(path, "Q8_0,Q4_0", vocab=str(vocab), evaluate=True, evaluation_chunks=1)
    done, live = run(make_job(options, settings), settings, llama)
    assert (done.status, done.error) == (Status.DONE, "")
    folder = settings.out / "m-rwkv.cpp"
    assert (folder / "m-vocab.txt").read_bytes() == vocab.read_bytes()
    klds = {one.quant: one.quality.kld for one in done.evaluations}
    assert 0 < klds["m-Q8_0.bin"] < klds["m-Q4_0.bin"]
    assert {one.tokens for one in done.evaluations} == {511}
    rows = {row.get("type"): row for row in results(done, live.forecast, folder)}
    assert rows["Q4_0"]["evaluation"]["quality"]["kld"] == klds["m-Q4_0.bin"]
    text = card(done, CardFacts(uploaded={one.name: one.size for one in done.artifacts}, llama_commit="abc"))
    assert (
        "| [m-vocab.txt](m-vocab.txt) |" in text
        and f"{klds['m-Q4_0.bin']:.4f}" in text
        and "against the base over 511" in text
    )
    assert "llama-perplexity" not in text and "GGUF" not in text


@pytest.mark.tools
def test_a_file_of_rwkvcpp_is_a_base_as_it_is(settings: Settings, llama: Llama, tmp_path: Path) -> None:
    path, state = checkpoint(tmp_path, "4")
    half = tmp_path / "x-FP16.bin"
    records = rwkvcpp_files.expected(state, "4", half=True)
    rwkvcpp_files.write(half, records, tokens=tiny.VOCAB_ROWS, width=128, layers=2, type_number=1)
    job = make_job(wish(half, "FP16,Q4_1"), settings)
    assert (job.request.outtype, job.request.quant_types) == ("f16", ("Q4_1",))
    done, _ = run(job, settings, llama)
    assert done.error == ""
    assert sha256(settings.out / "m-rwkv.cpp" / "m-FP16.bin") == sha256(half)
    with pytest.raises(SourceError, match="no GGUF is made of it: choose --format rwkv.cpp"):
        make_job(replace(wish(half, "Q4_1"), output="gguf"), settings)
    assert inspect(str(half), settings).instead == "rwkv.cpp"


@pytest.mark.tools
def test_an_adapter_is_merged(settings: Settings, llama: Llama, tmp_path: Path) -> None:
    path, state = checkpoint(tmp_path, "4")
    random = torch.Generator().manual_seed(1)
    down, up = (torch.randn(shape, generator=random) for shape in ((8, 128), (128, 8)))
    torch.save({"blocks.1.att.key.lora_A": down, "blocks.1.att.key.lora_B": up}, tmp_path / "a.pth")
    merged = state["blocks.1.att.key.weight"] + (up @ down) * 2
    done, _ = run(make_job(wish(path, "Q8_0", lora=f"{tmp_path / 'a.pth'}:2"), settings), settings, llama)
    assert done.error == ""
    base = settings.out / "m-rwkv.cpp" / "m-FP32.bin"
    record = read_head(base).records["blocks.1.att.key.weight"]
    values = np.fromfile(base, "<f4", record.elements, offset=record.offset).reshape(record.shape)
    np.testing.assert_allclose(values, merged.numpy(), atol=1e-5)


# ---- to the Hub


@pytest.fixture
def publish(tmp_path: Path, local_hub: LocalHub, ggufy_environment: dict[str, str]) -> Callable[..., Any]:
    """Starts `python -m ggufy` as alice, with results in a folder of its own."""
    environment = local_hub.environment(tmp_path) | ggufy_environment
    environment |= {"HOME": str(tmp_path), "HF_TOKEN": ALICE, "GGUFY_COMMITS": "100000", "GGUFY_LEASE": "4"}
    environment |= {"GGUFY_CACHE": str(tmp_path / "cache")}

    def start(out: Path, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ggufy", *words, "--hub", "hf", "--json", "--out", str(out)]
        piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **piped)

    return start


def repo_files(hub: LocalHub, repo: str) -> dict[str, str]:
    found = hub._call("GET", f"/api/models/{repo}/tree/main?recursive=true")
    return {one["path"]: one["lfs"]["oid"] for one in found if "lfs" in one}


@pytest.mark.tools
def test_a_streamed_source_is_published_and_killed_in_the_middle(
    publish: Callable[..., Any], local_hub: LocalHub, settings: Settings, llama: Llama, tmp_path: Path
) -> None:
    path, _ = checkpoint(tmp_path, "5.2", width=256, layers=4)
    run(make_job(replace(wish(path, "Q5_1,Q4_0,Q4_K"), name="v52"), settings), settings, llama)
    expected = {one.name: sha256(one) for one in (settings.out / "v52-rwkv.cpp").glob("*.bin")}
    assert len(expected) == 4
    local_hub.put("alice/older", "v52.pth", path.read_bytes())
    words = ("quantize", "alice/older:v52.pth", "--format", "rwkv.cpp", "--types", "Q5_1,Q4_0,Q4_K")
    repo, process = "alice/v52-rwkv.cpp", publish(tmp_path / "one", *words)
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        if any(line["path"].endswith("/commit/main") for line in local_hub.log(f"models/{repo}")):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    process = publish(tmp_path / "two", "resume")  # another disk: the records come from the Hub
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (record,) = json.loads(out)["jobs"] if "jobs" in json.loads(out) else [json.loads(out)]
    assert record["repo_id"] == repo and repo_files(local_hub, repo) == expected
    assert not list((tmp_path / "cache").rglob("*.pth")), "it was streamed"
    with urllib.request.urlopen(f"{local_hub.endpoint}/{repo}/resolve/main/README.md", timeout=30) as answer:
        text = answer.read().decode()
    assert "All files are here." not in text and "| [v52-Q4_K.bin](v52-Q4_K.bin) | Q4_K |" in text


# ---- what is asked for, and what is refused


@pytest.mark.fast
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quant_types": "4"}, "Q4_1_O was removed from rwkv.cpp on 2023-04-29, .*: choose Q5_1"),
        ({"quant_types": "Q4_2"}, "removed from rwkv.cpp on 2023-05-27, and nothing reads it any more: choose Q5_0"),
        ({"quant_types": "Q4_K_M"}, "rwkv.cpp has no type Q4_K_M"),
        ({"imatrix": "/x.gguf"}, "without an imatrix"),
        ({"calibration": "/x.txt"}, "without an imatrix"),
        ({"targets": ["1GB"]}, "not made to order"),
        ({"mode": "fast"}, "not made to order"),
        ({"mix": "stock"}, "recipes of its own"),
        ({"chat_format": "world"}, "no chat format"),
        ({"outtype": "bf16"}, "unknown outtype 'bf16': one of f32, f16"),
        ({"outtype": "f16", "quant_types": "FP32"}, "not made from FP16"),
        ({"output": "onnx"}, "unknown format 'onnx': one of gguf, rwkv.cpp"),
        ({"output": "gguf"}, "RWKV-4, which llama.cpp cannot run.*: make files of rwkv.cpp of it with --format rwkv"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: dict[str, Any], told: str, settings: Settings, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "4")
    if options == {"output": "gguf"}:  # the job itself says it, as it looks at the source
        report = inspect(str(path), settings)
        assert report.instead == "rwkv.cpp"
        told_by: GgufyError = SourceError(report.problem)
        with pytest.raises(SourceError, match=told):
            raise told_by
        return
    given = {"quant_types": "Q5_1", "output": "rwkv.cpp"} | options
    with pytest.raises(UsageError, match=told):
        make_job(read_options(str(path), given), settings)


@pytest.mark.fast
def test_defaults_are_those_of_the_format(settings: Settings, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "4")
    request = make_job(read_options(str(path), {"output": "rwkv.cpp"}), settings).request
    assert (request.outtype, request.imatrix, request.mix, request.chat_format) == ("f32", "none", "stock", "")
    assert request.quant_types == ("Q5_1", "Q8_0", "FP16") and not request.vocab_path
    half = make_job(read_options(str(path), {"output": "rwkv.cpp", "quant_types": "float16"}), settings).request
    assert (half.outtype, half.quant_types) == ("f16", ())
    numbered = make_job(read_options(str(path), {"output": "rwkv.cpp", "quant_types": "2,3"}), settings).request
    assert numbered.quant_types == ("Q4_1", "Q4_0")
    assert len({one.inputs() for one in (request, half)}) == 2


@pytest.mark.fast
def test_the_format_makes_another_job_of_an_rwkv_7(settings: Settings, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "7")
    vocab = str(tiny.write_vocab(tmp_path / "vocab.txt"))
    one, two = (
        make_job(read_options(str(path), {"quant_types": "Q8_0", "vocab": vocab, "imatrix": "none"} | more), settings)
        for more in ({}, {"output": "rwkv.cpp", "imatrix": None})
    )
    assert one.id != two.id and one.request.inputs() != two.request.inputs()
    assert (one.request.folder, two.request.folder) == ("m7-GGUF", "m7-rwkv.cpp")


@pytest.mark.fast
def test_the_piles_tokenizer_is_found_beside_a_model(settings: Settings, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, "4", width=64, layers=1, vocab=50277)
    assert not make_job(wish(path, "Q5_1"), settings).request.vocab_path
    with pytest.raises(GgufyError, match="needs the tokenizer of the Pile"):
        make_job(wish(path, "Q5_1", evaluate=True), settings)
    theirs = reference_file("rwkvcpp/upstream/20B_tokenizer.json")
    (tmp_path / "20B_tokenizer.json").write_bytes(theirs.read_bytes())
    request = make_job(wish(path, "Q5_1", evaluate=True), settings).request
    assert request.vocab_path == str(tmp_path / "20B_tokenizer.json") and request.vocab_sha256 == sha256(theirs)
    assert "tokenizer.json" in [step.product for step in plan(request)]


@pytest.mark.fast
def test_records_say_which_version_has_their_format() -> None:
    job = Job(request=REQUEST)
    record = json.loads(to_json(job))
    assert record["version"] == job_record.VERSION == 3 and from_json(to_json(job)) == job
    plain = Job(request=replace(REQUEST, output="gguf"))
    assert json.loads(to_json(plain))["version"] == 2 and from_json(to_json(plain)) == plain
    record["request"]["output"] = "onnx"
    with pytest.raises(ValueError, match="of a later version of ggufy, with quants in the format 'onnx'"):
        from_json(json.dumps(record))


@pytest.mark.fast
def test_a_repo_holds_one_format() -> None:
    assert repo_name("m") == "m-GGUF" and repo_name("m", "rwkv.cpp") == "m-rwkv.cpp"
    text = card(Job(request=replace(REQUEST, repo_id="alice/x")), CardFacts(uploaded={}))
    check_card(text, repo_id="alice/x", name="m", output="rwkv.cpp")
    with pytest.raises(UsageError, match=r"holds files of this model in another format, rwkv\.cpp"):
        check_card(text, repo_id="alice/x", name="m")
    for line in ("library_name: rwkv", "- rwkv.cpp", "# m-rwkv.cpp", "python python/chat_with_bot.py m-Q5_1.bin"):
        assert line in text.splitlines(), line
    assert 'model = RWKVModel("m-Q5_1.bin")' in text and "without an imatrix" in text and "llama-cli" not in text

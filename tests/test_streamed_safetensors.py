"""Remote safetensors, in one file and in parts: inspected, converted while they are fetched, cut off and resumed."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from ggufy.core.errors import Cancelled, CannotStream, SourceChanged, SourceError
from ggufy.core.source import Source
from ggufy.formats import prefetched
from ggufy.formats.streamed_safetensors import open_streamed_safetensors
from ggufy.models.convert import convert
from ggufy.models.convert_streamed import convert_streamed
from ggufy.models.layouts import origins_of
from ggufy.models.vocab import WORLD_FILE
from ggufy.net import session as hub_session
from ggufy.sources import hub
from ggufy.sources.format import ConvertTask
from ggufy.sources.inspect import inspect
from ggufy.sources.locate import local_file
from ggufy.sources.registry import format_of
from ggufy.sources.url import resolve_url
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from tests import layouts, tiny
from tests.conftest import Ggufy
from tests.hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures

NUMBERS = itertools.count()
SETTINGS = Settings.from_env({})


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, local_hub: LocalHub) -> Iterator[None]:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(prefetched, "PIECE", 100_000)  # or else every tensor of a tiny model is one
    yield
    local_hub.mend()


@dataclass(frozen=True)
class Model:
    """A folder here, and the repo that has the same files."""

    folder: Path
    repo: str
    weights: int  # bytes
    vocab: Path
    base: bytes  # the GGUF of the .pth that it was made from


@pytest.fixture(scope="module")
def parts(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An RWKV-7 in fla's names and three parts, with config.json and a vocabulary."""
    folder = tmp_path_factory.mktemp("parts")
    state = tiny.weights("7", width=256, layers=3)
    layouts.save_shards(folder, layouts.fla_7_fused(state), 3)
    (folder / "config.json").write_text(json.dumps({"architectures": ["RWKV7ForCausalLM"], "hidden_size": 256}))
    return published(local_hub, folder, state)


@pytest.fixture(scope="module")
def whole(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An RWKV-6 in fla's names, in one file, in BF16."""
    folder = tmp_path_factory.mktemp("whole")
    state = tiny.weights("6", width=256, layers=2, dtype=torch.bfloat16)
    layouts.save(folder / "model.safetensors", layouts.fla_6(state))
    return published(local_hub, folder, state)


def published(local_hub: LocalHub, folder: Path, state: layouts.State) -> Model:
    vocab = tiny.write_vocab(folder / WORLD_FILE)
    repo = f"alice/RWKV-{next(NUMBERS)}"
    for path in folder.iterdir():
        local_hub.put(repo, path.name, path.read_bytes())
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with_pth = folder.parent / f"{folder.name}-pth"
    with_pth.mkdir()
    convert(tiny.save(with_pth / "x.pth", state), with_pth / "x.gguf", vocab=vocab)
    return Model(folder, repo, weights, vocab, (with_pth / "x.gguf").read_bytes())


def stream(model: Model, source: Source, target: Path, local_hub: LocalHub, **options: object) -> int:
    """Gives how many bytes came."""
    opened = open_streamed_safetensors(source, endpoint=local_hub.endpoint)
    origins = origins_of(opened.shapes)
    digest = convert_streamed(opened, origins, target, vocab=model.vocab, name="x", **options)  # type: ignore[arg-type]
    assert digest == sha256(target)
    return opened.received


@pytest.mark.parametrize("which", ["parts", "whole"])
def test_the_same_bytes_as_from_the_pth(
    which: str, request: pytest.FixtureRequest, local_hub: LocalHub, tmp_path: Path
) -> None:
    model: Model = request.getfixturevalue(which)
    source = hub.resolve(model.repo, endpoint=local_hub.endpoint)
    assert source.can_stream and source.kind == "safetensors"
    assert source.size == sum(path.stat().st_size for path in model.folder.iterdir())
    local_hub.clear()
    received = stream(model, source, tmp_path / "x.gguf", local_hub)
    assert (tmp_path / "x.gguf").read_bytes() == model.base
    # The first block has the rates' matrices twice, as llama.cpp wants them; and heads are read in blocks of 64 KiB.
    assert received < 1.25 * model.weights + 200_000 * 3
    asked = [line for line in local_hub.log("/__cdn/") if not line["path"].endswith(".json")]
    assert asked and all(line["range"] and not line["token"] for line in asked)
    assert len(local_hub.log("/resolve/")) <= 2 * (1 + prefetched.READERS) * 3 + 1


def test_a_plain_address_and_a_private_repo(whole: Model, local_hub: LocalHub, tmp_path: Path) -> None:
    data = (whole.folder / "model.safetensors").read_bytes()
    oid = local_hub.put("alice/private-st", "model.safetensors", data, private=1)["oid"]
    source = resolve_url(f"{local_hub.endpoint}/__cdn/{oid}/model.safetensors")
    stream(whole, source, tmp_path / "x.gguf", local_hub)
    assert (tmp_path / "x.gguf").read_bytes() == whole.base
    source = hub.resolve("alice/private-st", token=ALICE, endpoint=local_hub.endpoint)
    with pytest.raises(SourceError, match="or it is private"):
        open_streamed_safetensors(source, endpoint=local_hub.endpoint)
    local_hub.clear()
    opened = open_streamed_safetensors(source, token=ALICE, endpoint=local_hub.endpoint)
    origins = origins_of(opened.shapes)
    convert_streamed(opened, origins, tmp_path / "y.gguf", vocab=whole.vocab, name="x")
    assert (tmp_path / "y.gguf").read_bytes() == whole.base
    assert {line["token"] for line in local_hub.log("/resolve/")} == {ALICE}


def test_cut_connections_are_gone_on_with(parts: Model, local_hub: LocalHub, tmp_path: Path) -> None:
    source = hub.resolve(parts.repo, endpoint=local_hub.endpoint)
    local_hub.fault("GET /__cdn/", cut=30_000, skip=8, times=30)
    local_hub.fault("GET /__cdn/", status=503, skip=20, times=5)
    stream(parts, source, tmp_path / "x.gguf", local_hub)
    assert (tmp_path / "x.gguf").read_bytes() == parts.base


def test_what_was_left_is_gone_on_with(parts: Model, local_hub: LocalHub, tmp_path: Path) -> None:
    source, out = hub.resolve(parts.repo, endpoint=local_hub.endpoint), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        stream(parts, source, out / "x.gguf", local_hub, progress=stop)
    assert sorted(path.name for path in out.iterdir()) == ["x.gguf.journal.part", "x.gguf.part"]
    received = stream(parts, source, out / "x.gguf", local_hub)
    assert (out / "x.gguf").read_bytes() == parts.base
    assert received < 0.75 * parts.weights
    assert [path.name for path in out.iterdir()] == ["x.gguf"]


def test_another_file_in_the_middle_leaves_nothing(parts: Model, local_hub: LocalHub, tmp_path: Path) -> None:
    source, out = hub.resolve(parts.repo, endpoint=local_hub.endpoint), tmp_path / "out"
    local_hub.fault("GET /__cdn/", says={"ETag": '"other"'}, skip=15, times=9999)
    with pytest.raises(SourceChanged, match="another file than"):
        stream(parts, source, out / "x.gguf", local_hub)
    local_hub.mend()
    assert list(out.iterdir()) == []
    index = replace(source.files[0], sha256="0" * 64)
    with pytest.raises(SourceChanged, match=r"another file than model\.safetensors\.index\.json"):
        stream(parts, replace(source, files=(index, *source.files[1:])), out / "x.gguf", local_hub)


def test_a_server_that_sends_no_parts_cannot_stream(whole: Model, local_hub: LocalHub) -> None:
    source = hub.resolve(whole.repo, endpoint=local_hub.endpoint)
    local_hub.fault("GET /__cdn/", no_range=True, times=9999)
    with pytest.raises(CannotStream, match="does not send parts"):
        open_streamed_safetensors(source, endpoint=local_hub.endpoint)


# ---- what a repo holds


def test_a_repo_is_described_without_its_weights(parts: Model, local_hub: LocalHub) -> None:
    local_hub.clear()
    report = inspect(parts.repo, SETTINGS, endpoint=local_hub.endpoint)
    assert (report.problem, report.kind, report.layout) == ("", "safetensors", "fla RWKV-7")
    assert (report.path, report.stem) == ("model.safetensors.index.json", parts.repo.partition("/")[2])
    assert (report.layers, report.width, report.vocab_size) == (3, 256, tiny.VOCAB_ROWS)
    assert report.streams and report.size == report.variants[0].size > parts.weights
    assert [variant.name for variant in report.variants] == ["model.safetensors.index.json"]
    assert sum(line["sent"] for line in local_hub.log("/__cdn/")) < 0.2 * parts.weights
    here = inspect(str(parts.folder), SETTINGS)
    facts = ("layers", "width", "heads", "vocab_size", "parameters", "dtype", "size", "problem", "version", "layout")
    assert [getattr(here, fact) for fact in facts] == [getattr(report, fact) for fact in facts]


def test_a_pth_goes_before_what_was_made_of_it(whole: Model, local_hub: LocalHub, tmp_path: Path) -> None:
    repo, state = "alice/both", tiny.weights("7")
    local_hub.put(repo, "model.safetensors", (whole.folder / "model.safetensors").read_bytes())
    local_hub.put(repo, "x.pth", tiny.save(tmp_path / "x.pth", state).read_bytes())
    assert hub.resolve(repo, endpoint=local_hub.endpoint).kind == "checkpoint"
    named = hub.resolve(f"{repo}:model.safetensors", endpoint=local_hub.endpoint)
    assert (named.kind, named.path, named.files) == ("safetensors", "model.safetensors", ())


def test_a_folder_of_a_repo_is_named(parts: Model, local_hub: LocalHub, tmp_path: Path) -> None:
    """As rwkv-rs has a folder for each checkpoint."""
    repo = "alice/rwkv7-g1-st"
    for folder in ("rwkv7-a", "rwkv7-b"):
        for path in parts.folder.iterdir():
            local_hub.put(repo, f"{folder}/{path.name}", path.read_bytes())
    report = inspect(repo, SETTINGS, endpoint=local_hub.endpoint)
    assert [variant.name.partition("/")[0] for variant in report.variants] == ["rwkv7-a", "rwkv7-b"]
    assert report.problem.startswith(f"{repo} holds 2 .safetensors files: choose one, for example {repo}:rwkv7-a/")
    report = inspect(f"{repo}:rwkv7-b", SETTINGS, endpoint=local_hub.endpoint)
    assert (report.problem, report.stem) == ("", "rwkv7-b")
    source = hub.resolve(f"{repo}:rwkv7-b/", endpoint=local_hub.endpoint)
    assert source.path == "rwkv7-b/model.safetensors.index.json" and len(source.files) == 6
    assert {one.path.partition("/")[0] for one in source.files} == {"rwkv7-b"}
    stream(parts, source, tmp_path / "x.gguf", local_hub)
    assert (tmp_path / "x.gguf").read_bytes() == parts.base


def test_a_bin_is_a_checkpoint_in_a_folder(parts: Model, local_hub: LocalHub, tmp_path: Path) -> None:
    """With the same vocabulary and config.json; safetensors go before it."""
    folder = tmp_path / "my-rwkv"
    folder.mkdir()
    state = tiny.weights("7", width=256, layers=3)
    torch.save(layouts.fla_7(state), folder / "pytorch_model.bin")
    for name in ("config.json", WORLD_FILE):
        (folder / name).write_bytes((parts.folder / name).read_bytes())
    for path in folder.iterdir():
        local_hub.put("alice/my-rwkv", path.name, path.read_bytes())
    report = inspect("alice/my-rwkv", SETTINGS, endpoint=local_hub.endpoint)
    assert (report.problem, report.kind, report.layout, report.stem) == ("", "bin", "fla RWKV-7", "my-rwkv")
    source = hub.resolve("alice/my-rwkv", endpoint=local_hub.endpoint)
    assert source.can_stream and len(source.files) == 3
    here = local_file(str(folder))
    assert here is not None
    task = ConvertTask(source=source, path=here, outtype="f16", name="x")
    format_of(source.kind).convert(task, tmp_path / "here.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", local_hub.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", local_hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        format_of(source.kind).convert(
            replace(task, path=tmp_path / "nowhere", streamed=True), tmp_path / "there.gguf"
        )
    assert (tmp_path / "here.gguf").read_bytes() == (tmp_path / "there.gguf").read_bytes() == parts.base
    layouts.save(folder / "model.safetensors", layouts.fla_7(state))
    both = local_file(str(folder))
    assert both is not None and both.name == "model.safetensors"


# ---- jobs


def quantize(model: Model, folder: Path) -> list[str]:
    return ["quantize", model.repo, "--types", "Q8_0", "--imatrix", "none", "--out", str(folder / "o")]


@pytest.fixture(scope="module")
def expected(parts: Model, ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what the job makes of the .pth here."""
    out, name = tmp_path_factory.mktemp("here"), parts.repo.partition("/")[2]
    state = tiny.save(out / f"{name}.pth", tiny.weights("7", width=256, layers=3))
    done = ggufy("quantize", state, "--vocab", parts.vocab, "--types", "Q8_0", "--imatrix", "none", "--out", out)
    assert done.code == 0, done.err
    return {path.name: sha256(path) for path in out.rglob("*.gguf")}


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in (folder / "o").rglob("*.gguf")}


@pytest.mark.tools
@pytest.mark.parametrize("ranges", [True, False])
def test_a_job_leaves_what_the_pth_leaves(
    parts: Model, expected: dict[str, str], ggufy: Ggufy, local_hub: LocalHub, tmp_path: Path, ranges: bool
) -> None:
    """Streamed; or downloaded, from a server that sends no parts."""
    if not ranges:
        local_hub.fault("GET /__cdn/", no_range=True, times=9999)
    environment = {"HF_ENDPOINT": local_hub.endpoint, "GGUFY_CACHE": str(tmp_path / "cache")}
    done = ggufy(*quantize(parts, tmp_path), **environment)
    assert done.code == 0, done.err
    assert files_of(tmp_path) == expected
    assert ("download" in done.err) != ranges
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.part"))


@pytest.mark.tools
def test_a_killed_job_goes_on_in_the_middle_of_its_base(
    parts: Model,
    expected: dict[str, str],
    ggufy: Ggufy,
    ggufy_environment: dict[str, str],
    local_hub: LocalHub,
    tmp_path: Path,
) -> None:
    environment = {"HF_ENDPOINT": local_hub.endpoint, "GGUFY_CACHE": str(tmp_path / "cache")}
    local_hub.fault("GET /__cdn/", cut=0, delay=120, skip=60, times=9999)  # hangs there
    command = [sys.executable, "-m", "ggufy", *quantize(parts, tmp_path)]
    stem = parts.repo.partition("/")[2]
    journal = tmp_path / "o" / f"{stem}-GGUF" / f"{stem}-F16.gguf.journal.part"
    with subprocess.Popen(command, env=ggufy_environment | environment, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.stat().st_size > 10 * 65) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert journal.stat().st_size > 10 * 65
    local_hub.mend()
    done = ggufy(*quantize(parts, tmp_path), **environment)
    assert done.code == 0, done.err
    assert files_of(tmp_path) == expected
    assert not list(tmp_path.rglob("*.part"))

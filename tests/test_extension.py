"""A source and an architecture that ggufy does not have, each in one file (tests/extension), go through a job."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from ggufy.core.errors import UsageError
from ggufy.core.job import Artifact, Job, Status
from ggufy.core.job_record import from_json, to_json
from ggufy.core.plan import Step
from ggufy.core.source import STREAMED_KINDS, Source
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.llama.install import Llama
from ggufy.models import registry as architectures
from ggufy.quantize.recipe import forecast
from ggufy.quantize.search import roles
from ggufy.quantize.search.mixes import mixed
from ggufy.records.run_state import RunState
from ggufy.sources import hub
from ggufy.sources import registry as formats
from ggufy.sources.inspect import inspect
from ggufy.steps import Makers, convert, plan
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.local_step import LocalStep
from ggufy.system.files import partial
from ggufy.system.settings import Settings
from tests import tiny
from tests.extension import toy_source
from tests.extension.toy_architecture import TOY
from tests.hub_fixture import LocalHub, local_hub  # noqa: F401 - fixture

WIDTH, LAYERS, RANK = 256, 3, 32


@pytest.fixture(autouse=True)
def extended(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file's line in each registry does."""
    monkeypatch.setattr(formats, "FORMATS", (toy_source.ToySource(), *formats.FORMATS))
    monkeypatch.setattr(architectures, "ARCHITECTURES", (*architectures.ARCHITECTURES, TOY))


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (tiny.VOCAB_ROWS, WIDTH)}
    for block in range(LAYERS):
        of_block = {"norm": (WIDTH,), "gate": (WIDTH, WIDTH), "small": (WIDTH, RANK)}
        shapes |= {f"blocks.{block}.toy.{name}": shape for name, shape in of_block.items()}
    shapes["head.weight"] = (tiny.VOCAB_ROWS, WIDTH)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def model(tmp_path: Path, tensors: dict[str, np.ndarray]) -> Path:
    return toy_source.save(tmp_path, "m", tensors)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env(
        {"GGUFY_OUT": str(tmp_path / "out"), "GGUFY_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    )


@pytest.fixture
def make(model: Path, settings: Settings, tmp_path: Path) -> Callable[[], Job]:
    vocab = str(tiny.write_vocab(tmp_path / "vocab.txt"))
    options = JobOptions(source=str(model), vocab=vocab, name="m", quant_types=("Q8_0", "Q4_K_M"), imatrix="none")
    return lambda: make_job(options, settings)


@pytest.mark.fast
def test_it_is_described_and_pinned(make: Callable[[], Job], model: Path, settings: Settings) -> None:
    values, job = model.with_name("m.toy.bin"), make()
    report = inspect(str(model), settings)
    assert (report.problem, report.title, report.architecture, report.layers) == ("", "toy toy", "toy", LAYERS)
    source = job.request.source
    assert [Path(one.path) for one in source.files] == [model, values] and source.path == str(model)
    assert source.size == report.size == model.stat().st_size + values.stat().st_size
    assert [Path(one.path) for one in source.each()] == [values, model]
    assert from_json(to_json(job)) == job and '"files"' in to_json(job)
    assert make().id == job.id
    values.write_bytes(bytes(values.stat().st_size))
    assert make().id != job.id
    values.write_bytes(b"")
    assert inspect(str(model), settings).problem.startswith("m.toy.json and its values do not fit")


@pytest.mark.fast
def test_records_of_one_file_say_nothing_of_several(make: Callable[[], Job]) -> None:
    job = make()
    one = replace(job.request, source=Source(kind="checkpoint", path="/m.pth", size=1, sha256="ab" * 32))
    assert '"files"' not in to_json(Job(request=one)) and from_json(to_json(Job(request=one))).request == one
    elsewhere = replace(job.request.source, model_id="alice/toy", revision="c" * 40)
    evil = replace(elsewhere.files[1], path="a/\u0000")
    record = to_json(Job(request=replace(job.request, source=replace(elsewhere, files=(elsewhere.files[0], evil)))))
    with pytest.raises(ValueError, match="is no part of a file's name"):
        from_json(record)


def stock(head: GgufHead, quant_type: str) -> dict[str, str]:
    """What llama-quantize would do: one type for the matrices, and low ranks as they are."""
    kind = {"Q8_0": "Q8_0", "Q4_K_M": "Q4_K"}[quant_type]
    large = {name for name, tensor in head.tensors.items() if min(tensor.shape) >= WIDTH and len(tensor.shape) == 2}
    return {name: kind if name in large else tensor.type for name, tensor in head.tensors.items()}


@pytest.mark.fast
def test_a_job_is_planned_forecast_and_made(
    make: Callable[[], Job], settings: Settings, tensors: dict[str, np.ndarray]
) -> None:
    job = make()
    assert [step.kind for step in plan(job.request)] == ["convert", "quantize", "quantize"]

    def forecast_job(ctx: Context, step: Step) -> JobForecast:
        skeleton = ctx.work / "skeleton.gguf"
        formats.format_of("toy").write_skeleton(convert.convert_task(ctx, step), skeleton)
        head = read_head(skeleton)
        recipes = {quant: mixed(head, quant, stock=stock(head, quant)) for quant in ctx.request.quant_types}
        return JobForecast(base=head, quants={q: forecast(head, r, None) for q, r in recipes.items()}, same_as={})

    def run(step: LocalStep, ctx: Context) -> Artifact | None:
        if step.kind == "convert":
            return step.run(ctx)
        with partial(ctx.path(step.product)) as part:
            part.write_bytes(step.quant_type.encode())
        return artifact_of(ctx.path(step.product))

    live = RunState()
    makers = Makers(run=run, check=lambda step, ctx: None, forecast=forecast_job)
    llama = Llama(bin=Path("/none"), source=None, version="0", commit="0" * 9)
    runner = Runner(settings=settings, llama=llama, makers=makers)
    ended = runner.run(job, live)
    assert (ended.status, ended.error) == (Status.DONE, "")
    base = runner.folder(job) / "m-F16.gguf"
    assert [one.name for one in ended.artifacts] == ["m-F16.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert ended.artifacts[0] == replace(artifact_of(base), making=ended.artifacts[0].making)
    check_base(base, tensors)
    assert live.forecast is not None and live.forecast.base.file_size == base.stat().st_size
    check_recipe(live.forecast)


def check_base(base: Path, tensors: dict[str, np.ndarray]) -> None:
    fields = tiny.fields(base)
    assert (fields["general.architecture"], fields["toy.block_count"], fields["toy.rank"]) == ("toy", LAYERS, RANK)
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    made = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(base).tensors}
    np.testing.assert_array_equal(made["blk.2.toy_gate.weight"], tensors["blocks.2.toy.gate"].astype(np.float16))
    np.testing.assert_array_equal(made["blk.0.toy_small.weight"], tensors["blocks.0.toy.small"].T.astype(np.float16))


def check_recipe(made: JobForecast) -> None:
    """The recipe follows from the roles and priors of the architecture, within the size of the stock file."""
    recipe, found = made.quants["Q4_K_M"].recipe, roles.roles(made.base.tensors)
    assert {found[f"blk.{block}.toy_small.weight"].name for block in range(LAYERS)} == {"low_rank_toy"}
    assert recipe["blk.1.toy_small.weight"] == "Q8_0" and recipe["blk.1.attn_norm.weight"] == "F32"
    kinds = [recipe[f"{name}.weight"] for name in ("token_embd", "output", "blk.1.toy_gate")]
    assert kinds == ["Q5_K", "Q5_K", "Q4_K"]  # larger priors get what the small matrices have saved
    assert made.quants["Q4_K_M"].size <= forecast(made.base, stock(made.base, "Q4_K_M"), None).size


@pytest.mark.fast
def test_a_model_of_a_repo_is_known_by_its_name() -> None:
    names = ["a.toy.json", "a.toy.bin", "README.md", "b.gguf", "c.pth"]
    assert list(formats.models_among(names)) == ["a.toy.json", "b.gguf", "c.pth"]
    assert formats.format_of_name("a.toy.json") is formats.FORMATS[0]
    assert formats.format_of("of a newer ggufy").kind == "checkpoint"
    assert {one.kind for one in formats.FORMATS} > STREAMED_KINDS


def test_all_files_come_from_the_hub(local_hub: LocalHub, model: Path, settings: Settings, tmp_path: Path) -> None:
    """The small one is no LFS file there: its digest is computed."""
    values = model.with_name("m.toy.bin")
    local_hub.put("alice/toy", model.name, model.read_bytes(), lfs=0)
    local_hub.put("alice/toy", values.name, values.read_bytes(), lfs=1)
    vocab = str(tiny.write_vocab(tmp_path / "vocab.txt"))
    report = inspect("alice/toy", settings, vocab=vocab, endpoint=local_hub.endpoint)
    assert (report.problem, report.path, report.kind) == ("", model.name, "toy")
    assert report.size == report.variants[0].size == model.stat().st_size + values.stat().st_size
    source = hub.resolve("alice/toy", endpoint=local_hub.endpoint)
    assert [one.path for one in source.files] == [model.name, values.name]
    for one, original in zip(source.each(), (values, model), strict=True):
        target = tmp_path / "cache" / one.path
        target.parent.mkdir(exist_ok=True)
        hub.download(one, target, endpoint=local_hub.endpoint)
        assert target.read_bytes() == original.read_bytes()


@pytest.mark.fast
def test_a_vocabulary_goes_with_what_is_converted_only(model: Path, settings: Settings) -> None:
    with pytest.raises(UsageError, match="a GGUF carries its vocabulary"):
        base = tiny.converted(model.parent)
        make_job(JobOptions(source=str(base), vocab="vocab.txt", quant_types=("Q8_0",), imatrix="none"), settings)

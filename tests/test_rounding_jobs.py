"""Jobs with compensated codes: who gets them, what they are forecast to be, killed and started again, and what is said
where there can be none."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufy.core.catalog import COMPENSATED_COST, KERNEL_COST
from ggufy.core.errors import DiskError, ToolError, UsageError
from ggufy.core.job import COMPENSATED, PLAIN, Job, Making, Status
from ggufy.core.job_record import from_json, to_json
from ggufy.core.plan import COVARIANCES, Products, base_name, imatrix_name, pending
from ggufy.formats.gguf import GgufHead, TensorInfo, read_head
from ggufy.jobs.options import JobOptions
from ggufy.jobs.output_fit import fit_output
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.jobs.values import read_options
from ggufy.llama.install import Llama
from ggufy.llama.pin import PINNED
from ggufy.publish.card_rounding import rounding_lines
from ggufy.quantize.recipe import core_seconds
from ggufy.quantize.task import ROUNDING
from ggufy.records.run_state import RunState
from ggufy.steps import covariance, plan
from ggufy.steps.context import Context
from ggufy.steps.covariance import CovarianceStep, most_bytes, sums_memory, why_plain
from ggufy.steps.forecast import check_space
from ggufy.steps.job_forecast import JobForecast
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from tests import tiny
from tests.folder_hub import LocalHub, connected
from tests.test_job import REQUEST

SIZES = ("1.2GB-IQ3_XXS_FIT",)
ROUND = replace(REQUEST, rounding=COMPENSATED)
TYPES = ("Q4_K_M", "IQ3_S")


# ---- what is asked for


@pytest.mark.fast
def test_rounding_decides_bytes_and_older_jobs_are_plain() -> None:
    assert REQUEST.rounding == PLAIN and ROUND.inputs() != REQUEST.inputs()
    plain, asked = (to_json(Job(request=request)) for request in (REQUEST, ROUND))
    assert '"rounding"' not in plain and from_json(plain).request == REQUEST
    assert from_json(asked).request == ROUND


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, COMPENSATED),
        ({"quant_types": "none"}, COMPENSATED),  # as the jobs that it shares a folder with
        ({"targets": "1GB", "mode": "fast"}, COMPENSATED),  # likewise
        ({"calibration": "wikitext"}, COMPENSATED),
        ({"rounding": "plain"}, PLAIN),
        ({"mix": "stock"}, PLAIN),
        ({"mix": "stock", "rounding": "compensated"}, COMPENSATED),
        ({"imatrix": "none"}, PLAIN),
        ({"imatrix": "own.gguf"}, PLAIN),
        ({"awq": True}, PLAIN),
        ({"output": "rwkv.cpp", "quant_types": "Q5_1"}, PLAIN),
    ],
)
def test_codes_are_compensated_unless_something_speaks_against_it(changes: dict[str, Any], expected: str) -> None:
    assert fit_output(read_options("demo", changes)).rounding == expected


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"imatrix": "none"}, "leave out --imatrix, or --round compensated"),
        ({"awq": True}, "leave out --awq, or --round compensated"),
        ({"output": "rwkv.cpp", "quant_types": "Q5_1"}, "leave --round compensated out"),
    ],
)
def test_what_cannot_go_together_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        fit_output(read_options("demo", {"rounding": "compensated"} | changes))
    with pytest.raises(UsageError, match="unknown rounding 'up'"):
        fit_output(read_options("demo", {"rounding": "up"}))


# ---- steps


def head_of(shapes: dict[str, tuple[int, ...]]) -> GgufHead:
    """Of an F16 base with these matrices."""
    tensors = {
        name: TensorInfo(name=name, shape=shape, type="F16", offset=0, size=2 * math.prod(shape))
        for name, shape in shapes.items()
    }
    size = sum(one.size for one in tensors.values())
    return GgufHead(metadata={}, tensors=tensors, metadata_end=0, data_start=0, file_size=size)


def labels(request: Any) -> list[str]:
    return [step.label for step in plan(request)]


@pytest.mark.fast
def test_covariances_come_before_the_imatrix_if_a_quant_needs_them() -> None:
    made = ["quantize Q4_K_M", "quantize Q6_K"]
    assert labels(ROUND) == ["convert", "covariances", "imatrix", *made]
    assert labels(REQUEST) == ["convert", "imatrix", *made]
    sizes = replace(ROUND, quant_types=(), targets=SIZES)
    assert "covariances" in labels(replace(sizes, mode="standard"))
    assert "covariances" in labels(replace(ROUND, quant_types=(), mode="standard"))  # which sizes there are
    assert "covariances" not in labels(replace(sizes, mode="fast"))
    both = plan(replace(ROUND, targets=SIZES, mode="fast"))
    reads = {step.quant_type: COVARIANCES in step.reads for step in both if step.kind == "quantize"}
    assert reads == {"Q4_K_M": True, "Q6_K": True, SIZES[0]: False}
    published = plan(replace(ROUND, repo_id="me/m"))
    assert not any(COVARIANCES in step.product for step in published if step.kind == "upload")


@pytest.mark.fast
def test_covariances_are_due_as_long_as_a_quant_is() -> None:
    steps = plan(ROUND)

    def due(*there: str) -> list[str]:
        products = Products(job=Job(request=ROUND), here=there.__contains__, arrived=there.__contains__)
        return [step.label for step in pending(steps, lambda step: step.done(products))]

    base, imatrix, quants = base_name(ROUND), imatrix_name(ROUND), [ROUND.file_of(q) for q in ROUND.quants]
    assert due(base, imatrix) == ["covariances", "quantize Q4_K_M", "quantize Q6_K"]
    assert due(base, imatrix, quants[0]) == ["covariances", "quantize Q6_K"]
    assert due(base, imatrix, COVARIANCES) == ["quantize Q4_K_M", "quantize Q6_K"]
    assert due(base, imatrix, *quants) == []


@pytest.mark.fast
def test_compensated_codes_take_longer() -> None:
    assert COMPENSATED_COST.keys() == KERNEL_COST.keys()
    head = head_of({"w": (1024, 1024)})
    recipes = {"Q4_0": {"w": "Q4_0"}}
    plain, compensated = (core_seconds(recipes, head, compensated=one)["Q4_0"] for one in (False, True))
    assert 1.5 * plain < compensated < 10 * plain


# ---- what the machine allows


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    return Context(
        request=ROUND,
        folder=tmp_path / "out",
        logs=tmp_path / "logs",
        work=tmp_path / "work",
        settings=replace(Settings.from_env(), cache=tmp_path / "cache"),
        llama=Llama(bin=tmp_path, version="1", commit=PINNED.commit, source=""),
        limit=lambda: 1,
        report=lambda step, fraction: None,
        stopped=lambda: False,
    )


@pytest.mark.fast
def test_a_machine_that_is_too_small_gives_plain_codes(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of({f"blk.{n}.w": (4096, 4096) for n in range(8)})
    needed = most_bytes(head)
    assert needed == 8 * 4 * 4096 * 4097
    step = next(step for step in plan(ROUND) if isinstance(step, CovarianceStep))
    forecast = JobForecast(base=head, quants={}, same_as={}, compensated=True)
    monkeypatch.setattr(covariance, "free_bytes", lambda path: head.file_size + 2 * needed)
    assert why_plain(ctx, head) == "" and step.left_bytes(ctx, forecast) == needed
    monkeypatch.setattr(covariance, "free_bytes", lambda path: head.file_size + 2 * needed - 1)
    assert "more than half of the disk" in why_plain(ctx, head) and step.left_bytes(ctx, forecast) == 0
    monkeypatch.setattr(covariance, "free_bytes", lambda path: 1 << 60)
    monkeypatch.setattr("ggufy.system.resources.memory_limit", lambda: 0)
    assert (needed > 4 * sums_memory(0)) == bool(why_plain(ctx, head))
    monkeypatch.setattr(covariance, "_MOST_PASSES", 0)
    assert "too much for the memory" in why_plain(ctx, head)
    other = replace(ctx, llama=replace(ctx.llama, commit="1234567"))
    assert "the llama.cpp that ggufy builds" in why_plain(other, head)
    ctx.path(COVARIANCES).write_text('{"plain_because": ""}', encoding="utf-8")
    assert why_plain(other, head) == ""  # what was found stays


@pytest.mark.fast
def test_the_disk_has_to_hold_them_beside_everything(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of({"w": (2048, 2048)})
    step = next(step for step in plan(ROUND) if isinstance(step, CovarianceStep))
    seen: dict[str, int] = {}
    monkeypatch.setattr("ggufy.steps.forecast.peak_bytes", lambda **sizes: seen.update(sizes) or 0)
    check_space(ctx, [step], JobForecast(base=head, quants={}, same_as={}))
    assert seen["beside"] == most_bytes(head) and not seen["scratch"]


@pytest.mark.fast
def test_a_job_that_fits_without_them_goes_on_without(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of({"w": (2048, 2048)})
    step = next(step for step in plan(ROUND) if isinstance(step, CovarianceStep))
    forecast, needed = JobForecast(base=head, quants={}, same_as={}), most_bytes(head)
    monkeypatch.setattr("ggufy.steps.forecast.free_bytes", lambda path: -1)
    with pytest.raises(DiskError):  # not even without
        check_space(ctx, [step], forecast)
    assert not ctx.path(COVARIANCES).exists()
    monkeypatch.setattr("ggufy.steps.forecast.free_bytes", lambda path: needed - 1)
    check_space(ctx, [step], forecast)
    assert "no room for them beside the files" in why_plain(ctx, head)


# ---- the card


@pytest.mark.fast
def test_the_card_says_how_codes_were_rounded() -> None:
    names = [ROUND.file_of(quant) for quant in ROUND.quants]
    why = "they need the llama.cpp that ggufy builds"
    made, plain = Making(rounding=COMPENSATED), Making(rounding=PLAIN, plain_because=why)
    job = Job(request=ROUND)
    assert rounding_lines(job, dict.fromkeys(names, Making())) == []
    [_, told] = rounding_lines(job, dict.fromkeys(names, made))
    assert told.startswith("The codes are compensated") and "held out" in told
    [*_, last] = rounding_lines(job, {names[0]: made, names[1]: plain})
    assert last.startswith("Compensated codes were asked for, but `Q6_K` has plain ones") and last.endswith(f"{why}.")
    [_, both] = rounding_lines(job, dict.fromkeys(names, plain))
    assert "`Q4_K_M`, `Q6_K` have plain ones" in both


# ---- whole jobs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny.checkpoint(tmp_path_factory.mktemp("model"), "7", width=256, layers=1)


def settings_of(out: Path) -> Settings:
    folders = {"GGUFY_OUT": str(out), "GGUFY_CACHE": str(Settings.from_env().cache), "HOME": str(out)}
    return Settings.from_env(folders)


def options_of(model: tuple[Path, Path], **changes: Any) -> JobOptions:
    return replace(
        JobOptions(source=str(model[0]), vocab=str(model[1]), quant_types=TYPES, chunks=6, evaluate=False), **changes
    )


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.glob("*.gguf")}


@pytest.fixture(scope="module")
def undisturbed(model: tuple[Path, Path], llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    """Made with plain and with compensated codes: the folder of the latter, and its record."""
    out = tmp_path_factory.mktemp("undisturbed")
    settings, live = settings_of(out), RunState()
    runner = Runner(settings=settings, llama=llama)
    job = runner.run(make_job(options_of(model), settings), live)
    assert job.status is Status.DONE, job.error
    assert live.forecast is not None and live.forecast.compensated
    for quant in TYPES:
        path = runner.folder(job) / job.request.file_of(quant)
        assert path.stat().st_size == live.forecast.sizes[quant]
    assert not list((out / "ggufy-state" / "work").glob("*"))
    return runner.folder(job), job


@pytest.fixture(scope="module")
def plain(model: tuple[Path, Path], llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = settings_of(tmp_path_factory.mktemp("plain"))
    runner = Runner(settings=settings, llama=llama)
    job = runner.run(make_job(options_of(model, rounding=PLAIN), settings), RunState())
    assert job.status is Status.DONE, job.error
    return runner.folder(job)


@pytest.mark.tools
def test_only_codes_differ(undisturbed: tuple[Path, Job], plain: Path) -> None:
    folder, job = undisturbed
    for kind in ("F16", "imatrix"):
        assert sha256(next(folder.glob(f"*-{kind}.gguf"))) == sha256(next(plain.glob(f"*-{kind}.gguf")))
    makings = {one.name: one.making for one in job.artifacts}
    for quant in TYPES:
        name = job.request.file_of(quant)
        made, other = read_head(folder / name), read_head(plain / name)
        assert made.metadata[ROUNDING].startswith("compensated ") and ROUNDING not in other.metadata
        types = [{n: (t.type, t.shape) for n, t in head.tensors.items()} for head in (made, other)]
        assert types[0] == types[1]
        making = makings[name]
        assert making is not None and (making.rounding, making.plain_because) == (COMPENSATED, "")


@pytest.mark.tools
def test_killed_anywhere_it_makes_the_same_bytes(
    undisturbed: tuple[Path, Job], model: tuple[Path, Path], ggufy_environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "ggufy", "quantize", str(model[0]), "--vocab", str(model[1])]
    command += ["--types", ",".join(TYPES), "--chunks", "6", "--json", "--out", str(tmp_path)]
    moments = ("covariances.gguf.part", "covariances.json", "*Q4_K_M.gguf.part", "*IQ3_S.gguf.part")
    for moment in moments:
        process = subprocess.Popen(command, env=ggufy_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while not any(tmp_path.rglob(moment)) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = subprocess.run(command, env=ggufy_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, _ = undisturbed
    assert digests(tmp_path / folder.name) == digests(folder)
    assert not list((tmp_path / "ggufy-state" / "work").glob("*"))


@pytest.mark.tools
@pytest.mark.parametrize("failing", ["another llama.cpp", "the tool"])
def test_where_none_can_be_collected_codes_are_plain_and_it_is_said(
    failing: str,
    model: tuple[Path, Path],
    plain: Path,
    llama: Llama,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if failing == "the tool":

        def fails(*arguments: object, **options: object) -> None:
            raise ToolError("llama.cpp ended: try again.")

        monkeypatch.setattr(covariance, "collect_covariances", fails)
        why = "they could not be collected from this model"
    else:
        llama, why = replace(llama, commit="1234567"), "they need the llama.cpp that ggufy builds"
    settings = settings_of(tmp_path)
    runner = Runner(settings=settings, llama=llama)
    live = RunState()
    job = runner.run(make_job(options_of(model), settings), live)
    assert job.status is Status.DONE, job.error
    assert why in caplog.text
    found = {one.name: one.making for one in job.artifacts if one.name in map(job.request.file_of, TYPES)}
    assert {(one.rounding, one.plain_because) for one in found.values() if one} == {(PLAIN, why)}
    assert digests(runner.folder(job)) == digests(plain)


@pytest.mark.tools
def test_covariances_go_to_no_repo_and_the_card_says_what_was_made(
    model: tuple[Path, Path], undisturbed: tuple[Path, Job], llama: Llama, tmp_path: Path
) -> None:
    hub, settings = LocalHub(tmp_path / "hub"), settings_of(tmp_path / "out")
    with connected(settings.out, hub, "me") as workspace:
        runner = Runner(settings=settings, llama=llama, workspace=workspace)
        job = runner.run(make_job(options_of(model, owner="me"), settings), RunState())
    assert job.status is Status.DONE, job.error
    folder, _ = undisturbed
    there = hub.list_files("me/tiny-v7-GGUF", kind="model")
    assert {name for name in there if name.endswith(".gguf")} == set(digests(folder))
    assert not any("covariances" in name for name in hub.list_files("me/ggufy-state", kind="dataset"))
    assert {one.name: one.sha256 for one in job.artifacts} == digests(folder)
    card = hub.read("me/tiny-v7-GGUF", "README.md", kind="model")
    assert card is not None and b"The codes are compensated" in card

"""Jobs that measure their quants: figures in the record, on the card, and after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hub_fixture import ALICE, LocalHub

from ggufy.cli.terminal import results_table
from ggufy.core.job import EvaluationText, Job, Status
from ggufy.core.job_record import from_json, to_json
from ggufy.core.job_sharing import evaluations_for
from ggufy.core.metrics import Evaluation, TextFigures
from ggufy.core.plan import UPLOADED, pending
from ggufy.core.writing import WritingShare
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.llama import perplexity
from ggufy.llama.install import Llama
from ggufy.llama.perplexity import logits_bytes
from ggufy.llama.tools import ToolRun
from ggufy.publish.card import PLOT
from ggufy.publish.card_tables import tables
from ggufy.records.store import JobStore
from ggufy.steps import evaluate as steps_evaluate
from ggufy.steps import measure, plan
from ggufy.steps.context import Context
from ggufy.steps.evaluate import FOLDER, SPARE, EvaluationConfig
from ggufy.steps.forecast import predictions_bytes
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.measure import MEASURED, EvaluateStep
from ggufy.steps.outputs import gguf as gguf_output
from ggufy.system.resources import AUTOMATIC, CpuShare, ThreadLimit
from ggufy.system.settings import Settings
from ggufy.ui.file_rows import file_row
from ggufy.ui.i18n import TEXTS
from tests import chatty, tiny
from tests.conftest import Ggufy
from tests.test_evaluate import READ, RECORD
from tests.test_publish import get
from tests.test_views import REQUEST

TYPES = ("Q8_0", "Q2_K")
REQUEST_MEASURED = replace(REQUEST, evaluate=True, evaluation_sha256="12" * 32, evaluation_chunks=4)
REQUEST_PUBLISHED = replace(REQUEST_MEASURED, repo_id="alice/m")


def test_local_files_come_first_and_published_ones_are_measured_at_once() -> None:
    """Here everything fits; towards the Hub, the disk may hold one quant at a time."""
    local = plan(REQUEST_MEASURED)
    assert [step.kind for step in local] == ["convert", "imatrix", *2 * ["quantize"], *2 * ["evaluate"]]
    published = plan(REQUEST_PUBLISHED)
    assert [step.label for step in published][-6:] == [
        "quantize Q4_K_M",
        "upload 小模型-Q4_K_M.gguf",
        "evaluate Q4_K_M",
        "quantize IQ2_XS",
        "upload 小模型-IQ2_XS.gguf",
        "evaluate IQ2_XS",
    ]


def test_only_what_is_not_measured_is_fetched_again() -> None:
    steps = plan(REQUEST_PUBLISHED)
    there = {UPLOADED + step.product for step in steps} | {MEASURED + "小模型-Q4_K_M.gguf"}
    due = pending(steps, lambda step: step.product in there)
    assert [step.label for step in due] == ["fetch 小模型-F16.gguf", "fetch 小模型-IQ2_XS.gguf", "evaluate IQ2_XS"]


def test_measuring_changes_no_file_and_makes_another_job() -> None:
    assert REQUEST_MEASURED.inputs() == REQUEST.inputs()
    assert REQUEST_MEASURED.job_id != REQUEST.job_id


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """Surroundings of a job that measures, with a base and a quant that are no models."""
    for name in ("小模型-F16.gguf", "小模型-Q4_K_M.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    return Context(
        request=REQUEST_PUBLISHED,
        folder=tmp_path,
        logs=tmp_path / "logs",
        work=tmp_path / "work",
        settings=replace(Settings.from_env(), cache=tmp_path / "cache"),
        llama=Llama(bin=tmp_path / "bin", source=None, version="", commit="0c1"),
        limit=lambda: 3,
        report=lambda step, fraction: None,
        stopped=lambda: False,
    )


MEASURE = next(step for step in plan(REQUEST_PUBLISHED) if isinstance(step, EvaluateStep))


def test_a_job_measures_over_all_its_chunks_or_not_at_all(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EvaluationConfig] = []

    def evaluated(base: Path, quants: list[Path], config: EvaluationConfig) -> list[None]:
        asked.append(config)
        return [None]

    monkeypatch.setattr(gguf_output, "evaluate", evaluated)
    monkeypatch.setattr(measure, "pinned_text", lambda ctx, text: ctx.folder / "text")
    MEASURE.run(ctx)
    assert (asked[0].all_chunks, asked[0].chunks) == (True, 4)


def test_room_for_the_bases_predictions_is_asked_for_before_measuring(ctx: Context) -> None:
    """Of a published job by `make_room`, and once for all of its quants."""
    base = GgufHead(metadata={}, tensors={}, metadata_end=0, data_start=0, file_size=0)
    base.metadata["tokenizer.ggml.tokens"] = 65536
    sizes = JobForecast(base=base, quants={}, same_as={})
    needed = logits_bytes(65536, 4)
    assert MEASURE.left_bytes(ctx, sizes) == predictions_bytes("gguf", sizes, 4) == needed + SPARE
    kept = ctx.work / FOLDER / "0123.logits"
    kept.parent.mkdir(parents=True)
    with kept.open("wb") as file:
        file.truncate(needed - 5)
    assert MEASURE.left_bytes(ctx, sizes) == SPARE + 5
    with kept.open("wb") as file:
        file.truncate(needed)
    assert MEASURE.left_bytes(ctx, sizes) == 0


SECOND = EvaluationText(choice="zh.txt", sha256="34" * 32, writing=(WritingShare(kind="chinese", percent=99),))
TWO_TEXTS = replace(REQUEST_MEASURED, evaluation_more=(SECOND,))


def test_every_text_has_figures_and_the_first_one_has_the_speed(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EvaluationConfig] = []
    taken: list[Evaluation] = []
    told: list[float] = []

    def evaluated(base: Path, quants: list[Path], config: EvaluationConfig) -> list[Evaluation]:
        asked.append(config)
        config.report("", 0.5)
        name = config.text.name
        quality = replace(RECORD.quality, kld=len(asked) / 100)
        return [
            RECORD.evolve(text=name, text_sha256=name, quality=quality, speed=RECORD.speed if config.speed else None)
        ]

    monkeypatch.setattr(gguf_output, "evaluate", evaluated)
    monkeypatch.setattr(measure, "pinned_text", lambda ctx, text: ctx.folder / text.sha256[:2])
    two = replace(ctx, request=TWO_TEXTS, measured=taken.append, report=lambda step, fraction: told.append(fraction))
    MEASURE.run(two)
    (found,) = taken
    (other,) = found.others
    assert (found.text, found.quality.kld, found.speed) == ("12", 0.01, RECORD.speed)
    assert (other.text, other.writing, other.quality.kld) == ("34", "chinese", 0.02)
    assert [config.speed for config in asked] == [True, False]
    assert asked[0].folder == ctx.work / FOLDER != asked[1].folder  # the first one's as ever, whatever is left there
    assert told == [0.25, 0.75]
    record = Job(request=TWO_TEXTS, evaluations=(found,))
    assert from_json(to_json(record)) == record


def test_every_text_needs_room_for_its_predictions(ctx: Context) -> None:
    base = GgufHead(metadata={}, tensors={}, metadata_end=0, data_start=0, file_size=0)
    base.metadata["tokenizer.ggml.tokens"] = 65536
    sizes = JobForecast(base=base, quants={}, same_as={})
    assert MEASURE.left_bytes(replace(ctx, request=TWO_TEXTS), sizes) == 2 * logits_bytes(65536, 4) + SPARE


def test_a_further_text_is_another_job_that_shares_its_files() -> None:
    assert TWO_TEXTS.inputs() == REQUEST_MEASURED.inputs()
    assert TWO_TEXTS.job_id != REQUEST_MEASURED.job_id
    assert [text.choice for text in TWO_TEXTS.evaluation_texts] == [REQUEST_MEASURED.evaluation_text, "zh.txt"]


def test_figures_are_taken_over_only_with_those_of_every_text() -> None:
    one = RECORD.evolve(quant=REQUEST.file_of("Q4_K_M"))
    whole = one.evolve(
        others=(
            TextFigures(text="zh.txt", text_sha256=SECOND.sha256, writing="", chunks=4, tokens=9, quality=one.quality),
        )
    )
    for figures, taken in ((one, ()), (whole, (whole,))):
        other = Job(request=REQUEST_MEASURED, evaluations=(figures,))
        assert evaluations_for(TWO_TEXTS, [other]) == taken
        assert evaluations_for(REQUEST_MEASURED, [other]) == (figures,)


def test_the_card_and_the_tables_have_the_figures_of_every_text() -> None:
    other = TextFigures(
        text="zh.txt", text_sha256="34", writing="chinese", chunks=4, tokens=1020, quality=replace(READ, kld=0.0777)
    )
    found = RECORD.evolve(quant=REQUEST.file_of("Q4_K_M"), others=(other,))
    lines = tables(Job(request=TWO_TEXTS, evaluations=(found,)), {found.quant: 9}, {}, plot="")
    at = next(n for n, line in enumerate(lines) if "1,020 tokens of zh.txt text, which is mostly Chinese" in line)
    assert [line for line in lines[at:] if found.quant in line and "0.0777" in line]
    assert not [line for line in lines[:at] if "0.0777" in line]
    row = {"file": found.quant, "kind": "quantize", "type": "Q4_K_M", "size": 9, "evaluation": asdict(found)}
    assert f"{READ.kld:.4f} / 0.0777" in results_table([row])
    assert "tokens of t.txt / 1020 tokens of zh.txt" in results_table([row])
    assert file_row("job", row, TEXTS["en"]).kld == f"{READ.kld:.4f} / 0.0777"


BENCH = """#!/bin/sh
echo "$@" >> "$0.log"
echo '{"n_threads": 2, "n_prompt": 512, "n_gen": 0, "avg_ts": 90.5, "stddev_ts": 1.5}'
echo '{"n_threads": 2, "n_prompt": 0, "n_gen": 64, "avg_ts": 57.3, "stddev_ts": 0.2}'
"""


@pytest.mark.parametrize(
    ("percent", "late", "speed"),
    [(100, False, "57.3 ± 0.2"), (50, False, None), (AUTOMATIC, True, "57.3 ± 0.2")],
    ids=["all of the time", "half of it", "less while the page is late"],
)
def test_speed_is_measured_without_rests_or_not_at_all(
    ctx: Context, percent: int, late: bool, speed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the threads of its beginning, whatever is allowed while it runs."""
    ctx.llama.bin.mkdir()
    ctx.work.mkdir()
    for name in ("llama-bench", "llama-perplexity"):
        (ctx.llama.bin / name).write_text(BENCH, encoding="utf-8")
        (ctx.llama.bin / name).chmod(0o755)
    limit = ThreadLimit(2, most=4, share=CpuShare(percent))
    for _ in range(20 * late):
        limit.share.page_answered(1.0)
    runs: list[ToolRun] = []
    run_for = perplexity.run_for

    def seen(command: list[str], run: ToolRun, **readers: Any) -> Any:
        runs.append(run)
        return run_for(command, run, **readers)

    monkeypatch.setattr(perplexity, "run_for", seen)
    base = chatty.write(ctx.folder / "base.gguf")
    text = ctx.folder / "text.txt"
    text.write_text("text", encoding="utf-8")
    config = EvaluationConfig(
        text=text, folder=ctx.work, llama=ctx.llama, environment={}, threads=1, limit=limit, share=limit.share
    )
    session = steps_evaluate._Session(base, read_head(base), config, config.tool_run(0))
    _, measured = session._with_speed(base, (ctx.folder / "result.json", RECORD.evolve(speed=None)))
    assert (measured.speed.writing if measured.speed else None) == speed
    if measured.speed:
        assert (measured.speed.threads, measured.speed.throttled) == (2, False)
        assert [(run.share(), run.limit) for run in runs] == [(1.0, None)]
        assert "-t 2 " in (ctx.llama.bin / "llama-bench.log").read_text(encoding="utf-8")
        _, again = session._with_speed(base, (ctx.folder / "result.json", measured))
        assert again == measured and len(runs) == 1
        older = measured.evolve(speed=replace(measured.speed, throttled=None))  # nobody knows how that was measured
        _, again = session._with_speed(base, (ctx.folder / "result.json", older))
        assert again.speed and again.speed.throttled is False and len(runs) == 2
        assert all(run.watch for run in runs)  # how long it waits for a CPU


@pytest.mark.tools
def test_killed_while_measuring(ggufy: Ggufy, ggufy_environment: dict[str, str], tmp_path: Path) -> None:
    """What is measured is in the record and is not measured again; in the end nothing is left over."""
    command = ["quantize", "demo", "--types", ",".join(TYPES), "--chunks", "4", "--evaluation-chunks", "4"]
    command += ["--json", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ggufy", *command],
        env=ggufy_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    store = JobStore(tmp_path)
    deadline = time.monotonic() + 120
    while not (jobs := store.jobs()) or not jobs[0].evaluations:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (job,) = store.jobs()
    assert (job.status, len(job.evaluations)) == (Status.RUNNING, 1)
    assert from_json(to_json(job)) == job

    done = ggufy(*command)
    assert done.code == 0, done.err
    rows = {row["type"]: row["evaluation"] for row in json.loads(done.out)["files"] if "type" in row}
    first = job.evaluations[0]
    assert rows["Q8_0"]["quality"]["kld"] == first.quality.kld
    assert rows["Q8_0"]["speed"]["generation_tps"] == first.speed.generation_tps if first.speed else False  # a new one
    assert rows["Q8_0"]["quality"]["kld"] < 0.01 < rows["Q2_K"]["quality"]["kld"]
    left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {".gguf", ".json", ".log", ""}
    assert ggufy(*command, "--no-evaluate").code == 0  # the same files, another job
    assert [len(job.evaluations) for job in store.jobs()] == [2, 0]


@pytest.mark.tools
def test_two_texts_are_measured_and_told_apart(ggufy: Ggufy, tmp_path: Path) -> None:
    """The first one's figures are those of a job with that text alone, which are not measured again for it."""
    text = tmp_path / "zh.txt"
    text.write_text("".join(f"第{n}条船回到了码头，船上有{n * n}条鱼。" for n in range(150)), encoding="utf-8")
    command = ["quantize", "demo", "--types", "Q2_K", "--evaluation-chunks", "2", "--out", str(tmp_path / "out")]
    both = ggufy(*command, "--evaluation", f"bundled,{text}")
    assert both.code == 0, both.err
    assert f"evaluation text {text}: 100 % Chinese" in both.err
    assert "/" in both.out and "tokens of zh.txt" in both.out
    (job,) = JobStore(tmp_path / "out").jobs()
    (found,) = job.evaluations
    (other,) = found.others
    assert (other.text, other.writing, other.chunks, other.tokens) == ("zh.txt", "chinese", 2, found.tokens)
    assert other.quality.base_ppl != found.quality.base_ppl
    alone = ggufy(*command, "--evaluation", "bundled", "--json")
    (row,) = [row for row in json.loads(alone.out)["files"] if row.get("type") == "Q2_K"]
    assert row["evaluation"]["quality"]["kld"] == found.quality.kld
    again = ggufy(*command, "--evaluation", str(text), "--json")
    (row,) = [row for row in json.loads(again.out)["files"] if row.get("type") == "Q2_K"]
    assert row["evaluation"]["quality"]["kld"] == other.quality.kld


@pytest.mark.tools
def test_a_text_that_was_used_for_calibration_is_refused(ggufy: Ggufy, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"Line number {n} of a text that is read twice." for n in range(200)), encoding="utf-8")
    out = tmp_path / "o"
    done = ggufy(
        *("quantize", "demo", "--types", "Q8_0", "--calibration", text, "--evaluation", text, "--out", out),
    )
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "would flatter the quants" in done.err
    assert not list(out.rglob("*.gguf"))


@pytest.mark.tools
def test_figures_are_on_the_card(
    hub: LocalHub, ggufy: Ggufy, ggufy_environment: dict[str, str], tmp_path: Path
) -> None:
    """Also when the disk is lost in between: the quants come back from the repo to be measured."""
    folder = tmp_path / "model"
    folder.mkdir()
    checkpoint, vocab = tiny.checkpoint(folder, "7", width=256, layers=2)
    text = folder / "held-out.txt"
    text.write_text("".join(f"{n} waves came to the shore, and {n * n} went. " for n in range(120)), encoding="utf-8")
    command = ["quantize", str(checkpoint), "--types", ",".join(TYPES), "--vocab", str(vocab), "--imatrix", "none"]
    environment: dict[str, Any] = hub.environment(tmp_path) | ggufy_environment
    environment |= {"HOME": str(tmp_path), "HF_TOKEN": ALICE, "GGUFY_COMMITS": "100000", "GGUFY_HUB": "hf"}
    assert ggufy(*command, "--out", tmp_path / "first", **environment).code == 0
    measure = ["--evaluate", "--evaluation", str(text), "--evaluation-chunks", "2", "--json"]
    done = ggufy(*command, *measure, "--out", tmp_path / "second", **environment)
    assert done.code == 0, done.err
    rows = [row for row in json.loads(done.out)["files"] if "type" in row]
    assert all(row["evaluation"]["chunks"] == 2 for row in rows)
    card = get(hub, "/alice/tiny-v7-GGUF/resolve/main/README.md")
    assert "| file | type | size | bpw | KLD | PPL | PPL ratio | same top p | t/s | |" in card
    for row in rows:
        assert f"{row['evaluation']['quality']['kld']:.4f} ± " in card
    assert "held-out.txt text (sha256" in card
    assert "The recipes are ggufy's, made for RWKV" in card
    assert f"]({PLOT})" in card
    plot = get(hub, f"/alice/tiny-v7-GGUF/resolve/main/{PLOT}")
    assert all(f"<title>{row['type']}: " in plot for row in rows)
    assert str(tmp_path) not in card

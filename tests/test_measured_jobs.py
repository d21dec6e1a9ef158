"""Jobs that measure their quants: figures in the record, on the card, and after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_fixture import ALICE, LocalHub, running_hub

from ggufy.card import PLOT
from ggufy.hub.state import JobStore
from ggufy.job import Status, from_json, to_json
from ggufy.plan import EVALUATE, MEASURED, QUANTIZE, UPLOADED, pending, plan
from tests import tiny
from tests.conftest import Ggufy
from tests.test_publish import get
from tests.test_views import REQUEST

TYPES = ("Q8_0", "Q2_K")
REQUEST_MEASURED = replace(REQUEST, evaluate=True, evaluation_sha256="12" * 32, evaluation_chunks=4)
REQUEST_PUBLISHED = replace(REQUEST_MEASURED, repo_id="alice/m")


def test_local_files_come_first_and_published_ones_are_measured_at_once() -> None:
    """Here everything fits; towards the Hub, the disk may hold one quant at a time."""
    local = plan(REQUEST_MEASURED)
    assert [step.kind for step in local] == ["convert", "imatrix", QUANTIZE, QUANTIZE, EVALUATE, EVALUATE]
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
    there = {UPLOADED + step.product for step in plan(REQUEST_PUBLISHED)} | {MEASURED + "小模型-Q4_K_M.gguf"}
    due = pending(plan(REQUEST_PUBLISHED), lambda product: product in there)
    assert [step.label for step in due] == ["fetch 小模型-F16.gguf", "fetch 小模型-IQ2_XS.gguf", "evaluate IQ2_XS"]


def test_measuring_changes_no_file_and_makes_another_job() -> None:
    assert REQUEST_MEASURED.inputs() == REQUEST.inputs()
    assert REQUEST_MEASURED.job_id != REQUEST.job_id


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


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with running_hub() as running:
        yield running


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

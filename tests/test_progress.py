"""Live progress, its ETA, and what the terminal makes of it; time is a number that the test moves."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from ggufy.cli import terminal
from ggufy.core.job import Artifact, Job, Request, Status
from ggufy.core.plan import Fetch, Upload, Workload
from ggufy.core.progress import Progress, Snapshot
from ggufy.core.source import Source
from ggufy.jobs.results import results
from ggufy.steps import plan

pytestmark = pytest.mark.fast

SOURCE = Source(kind="checkpoint", path="/models/m.pth", size=10, sha256="ab" * 32)
REQUEST = Request(name="m", source=SOURCE, quant_types=("Q4_K_M", "Q8_0", "IQ2_XS"), outtype="f16")
STEPS = plan(REQUEST)
LOAD = Workload(weights=1_600_000_000, base_bytes=3_200_000_000, chunks=40, threads=1)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def artifact(size: int = 7) -> Artifact:
    return Artifact(name="x", size=size, sha256="")


def test_steps_that_are_not_due_are_done() -> None:
    progress = Progress(Clock())
    progress.planned(STEPS, STEPS[2:])
    assert [s.state for s in progress.snapshot().steps] == ["done", "done", "waiting", "waiting", "waiting"]
    assert progress.snapshot().eta_s is None  # nothing is known of the model yet


def test_the_eta_follows_what_steps_really_take() -> None:
    """A machine four times slower than the model: after one quant, the forecast of the others has that in it."""
    clock = Clock()
    progress = Progress(clock)
    progress.planned(STEPS, STEPS[2:])
    progress.workload(LOAD)
    naive = sum(step.seconds(LOAD) for step in STEPS[2:])
    assert progress.snapshot().eta_s == naive
    progress.started(STEPS[2])
    clock.now += 4 * STEPS[2].seconds(LOAD)
    progress.finished(STEPS[2], artifact())
    eta = progress.snapshot().eta_s
    assert eta is not None
    truth = 4 * sum(step.seconds(LOAD) for step in STEPS[3:])
    assert abs(eta - truth) < 0.01 * truth


def test_reading_a_text_is_as_slow_when_measuring_as_for_the_imatrix() -> None:
    clock = Clock()
    progress = Progress(clock)
    steps = plan(replace(REQUEST, evaluate=True, quant_types=("Q8_0",)))
    progress.planned(steps, (steps[1], steps[3]))
    progress.workload(LOAD)
    measuring = steps[3].seconds(LOAD)
    assert progress.snapshot().eta_s == steps[1].seconds(LOAD) + measuring
    progress.started(steps[1])
    clock.now += 3 * steps[1].seconds(LOAD)
    progress.finished(steps[1], artifact())
    assert progress.snapshot().eta_s == pytest.approx(3 * measuring)


def test_the_running_step_is_extrapolated_from_its_own_pace() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.planned(STEPS, STEPS[4:])
    progress.workload(LOAD)
    progress.started(STEPS[4])
    clock.now += 50
    progress.fraction(STEPS[4], 0.5)
    assert progress.snapshot().eta_s == 50
    clock.now += 10  # nothing was reported since, but time went on
    current = progress.snapshot().current
    assert current is not None
    assert (current.fraction, current.seconds) == (0.5, 60)


def test_what_a_job_waits_is_no_time_of_its_steps() -> None:
    """Neither of one that ran before, nor of one that begins meanwhile."""
    clock = Clock()
    progress = Progress(clock)
    progress.planned(STEPS, STEPS[2:])
    progress.workload(LOAD)
    progress.started(STEPS[2])
    clock.now += 10
    for reason in ("the Hub", "the Hub", "the disk"):
        progress.waits(reason)
        clock.now += 500
        assert [s.seconds for s in progress.snapshot().steps[2:4]] == [10, 0]
    progress.started(STEPS[3])
    clock.now += 500
    progress.waits("")
    clock.now += 5
    assert [s.seconds for s in progress.snapshot().steps[2:4]] == [15, 5]
    progress.finished(STEPS[2], artifact())
    clock.now += 100
    assert progress.snapshot().steps[2].seconds == 15


def test_nothing_is_left_at_the_end() -> None:
    progress = Progress(Clock())
    progress.planned(STEPS, ())
    progress.workload(LOAD)
    assert progress.snapshot().eta_s == 0
    assert progress.snapshot().done == len(STEPS)


def test_a_large_file_takes_longer_to_go_up() -> None:
    """The line is four times slower than the model: what one file showed holds for every byte of the others."""
    clock = Clock()
    progress = Progress(clock)
    sizes = {"m-F16.gguf": 28_000_000_000, "m-Q4_K_M.gguf": 8_000_000_000, "m-Q8_0.gguf": 3_000_000_000}
    request = replace(REQUEST, repo_id="a/m", quant_types=("Q4_K_M", "Q8_0"), imatrix="none")
    steps = tuple(step for step in plan(request) if isinstance(step, Upload))
    progress.planned(steps, steps)
    progress.workload(replace(LOAD, sizes=sizes))
    assert progress.snapshot().eta_s == pytest.approx(sum(sizes.values()) / 20e6, rel=0.01)
    base, rest = steps[0], steps[1:]
    progress.started(base)
    clock.now += 28e9 / 5e6
    progress.finished(base, artifact())
    assert [step.product for step in rest] == ["repo:m-Q4_K_M.gguf", "repo:m-Q8_0.gguf"]
    assert progress.snapshot().eta_s == pytest.approx(11e9 / 5e6, rel=0.01)


def test_what_is_fetched_was_not_there() -> None:
    progress = Progress(Clock())
    fetch = Fetch(product=STEPS[0].product)
    progress.planned(STEPS, (fetch, *STEPS[3:]))
    snapshot = progress.snapshot()
    assert (snapshot.found, snapshot.done) == (2, 2)
    assert [s.state for s in snapshot.steps] == ["waiting", "done", "done", "waiting", "waiting"]
    assert snapshot.steps[0].step == fetch


# ---- terminal


def snapshots() -> list[Snapshot]:
    clock = Clock()
    progress = Progress(clock)
    taken = [progress.snapshot()]
    progress.planned(STEPS, STEPS[1:])
    progress.workload(LOAD)
    taken.append(progress.snapshot())
    for step in STEPS[1:]:
        progress.started(step)
        clock.now += 30
        progress.fraction(step, 0.5)
        taken.append(progress.snapshot())
        progress.finished(step, artifact(size=5_000_000))
        taken.append(progress.snapshot())
    return taken


def test_a_log_has_one_line_a_step_and_no_control_codes() -> None:
    stream = io.StringIO()
    taken = iter(snapshots())
    display = terminal.LiveDisplay(lambda: next(taken), stream, interval_s=0)
    display._seen = next(taken)
    for _ in range(len(STEPS) * 2 - 2):
        display._draw()
    display._draw(last=True)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "1 of 5 files are there already"
    assert [line.split("]")[0] for line in lines[1:]] == ["[ 2/5", "[ 3/5", "[ 4/5", "[ 5/5"]
    assert all("5.0 MB" in line and "30 s" in line for line in lines[1:])
    assert "\x1b" not in stream.getvalue()
    assert "left" not in lines[-1]


def test_what_is_made_before_the_first_look_was_not_there_already() -> None:
    """A base that is linked takes no time."""
    progress = Progress(Clock())
    progress.planned(STEPS, STEPS)
    progress.started(STEPS[0])
    progress.finished(STEPS[0], artifact(size=5_000_000))
    stream = io.StringIO()
    display = terminal.LiveDisplay(progress.snapshot, stream)
    display._draw()
    assert stream.getvalue().startswith("[ 1/5] convert")
    assert "already" not in stream.getvalue()


def test_the_moving_line() -> None:
    line = terminal.progress_line(snapshots()[2])
    assert line.startswith("[ 2/5] imatrix")
    assert "50%" in line
    assert "left" in line


def test_the_table_of_jobs_says_how_to_go_on() -> None:
    job = Job(request=REQUEST, status=Status.RUNNING, updated="2026-01-02T03:04:05.678+00:00")
    assert "resume" in terminal.job_lines([(job, 2, 5, False)])
    assert "resume" not in terminal.job_lines([(job, 2, 5, True)])
    failed = job.evolve(status=Status.FAILED, error="the disk is full")
    assert "the disk is full" in terminal.job_lines([(failed, 2, 5, False)])


def test_wide_characters_keep_columns_straight() -> None:
    lines = terminal.table(["a", "b"], [["模型", "1"], ["model", "2"]]).splitlines()
    assert lines[2] == "模型   1"
    assert lines[3] == "model  2"


def test_results_list_what_is_there(tmp_path: Path) -> None:
    for product in ("m-F16.gguf", "m-IQ2_XS.gguf"):
        (tmp_path / product).write_bytes(b"12345")
    rows = results(Job(request=REQUEST), None, tmp_path)
    assert [(row["file"], row["size"]) for row in rows] == [("m-F16.gguf", 5), ("m-IQ2_XS.gguf", 5)]
    text = terminal.results_table(rows)
    assert "IQ2_XS" in text
    assert "yes" in text

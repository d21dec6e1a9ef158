"""The worker: a queue, cancel, retry, shutdown and resume, with the real tools on tiny models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggufy.core.job import PLAIN, Job, Status
from ggufy.jobs.options import JobOptions
from ggufy.jobs.queue import Worker
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.jobs.workspace import Workspace
from ggufy.llama.install import Llama
from ggufy.records.records import JobRecords
from ggufy.records.run_state import RunState
from ggufy.records.store import JobStore
from ggufy.steps import Makers
from ggufy.system.settings import Settings
from tests import tiny

pytestmark = pytest.mark.tools


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    cache = Settings.from_env().cache  # the texts are shared, results are not
    return Settings.from_env({"GGUFY_OUT": str(tmp_path / "out"), "GGUFY_CACHE": str(cache), "HOME": str(tmp_path)})


@pytest.fixture
def make(settings: Settings, tmp_path: Path) -> Callable[..., Job]:
    """A job on a tiny model of the given name."""

    def job(name: str, *types: str, imatrix: str = "none", width: int = 256) -> Job:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        checkpoint, vocab = tiny.checkpoint(folder, "7", width=width)
        options = JobOptions(
            source=str(checkpoint),
            vocab=str(vocab),
            name=name,
            quant_types=types or ("Q8_0",),
            imatrix=imatrix,
            rounding=PLAIN,
        )
        return make_job(options, settings)

    return job


def a_worker(settings: Settings, llama: Llama) -> Worker:
    workspace = Workspace(records=JobRecords(JobStore(settings.out)))
    return Worker(
        records=workspace.records,
        make_runner=lambda: Runner(settings=settings, llama=llama, workspace=workspace),
    )


@pytest.fixture
def worker(settings: Settings, llama: Llama) -> Iterator[Worker]:
    worker = a_worker(settings, llama)
    yield worker
    worker.shutdown()


def wait(what: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def status(worker: Worker, job: Job) -> Status:
    return next(known.status for known in worker.jobs() if known.id == job.id)


def test_jobs_run_in_turn(worker: Worker, make: Callable[..., Job]) -> None:
    worker.start()
    jobs = [worker.submit(make(name)) for name in ("a", "b")]
    wait(lambda: all(status(worker, job) is Status.DONE for job in jobs))
    first, second = (next(j for j in worker.jobs() if j.id == job.id) for job in jobs)
    assert first.updated < second.updated
    assert [artifact.name for artifact in first.artifacts] == ["a-F16.gguf", "a-Q8_0.gguf"]


def test_sizes_are_forecast_before_anything_is_made(
    settings: Settings, llama: Llama, make: Callable[..., Job], tmp_path: Path
) -> None:
    """From the source's head alone, and then again from the files."""
    job = make("a", "Q4_K_M", "IQ3_XXS", "Q8_0", imatrix="auto")
    live = RunState()
    ended = Runner(settings=settings, llama=llama).run(job, live)
    assert ended.status is Status.DONE, ended.error
    assert live.forecast is not None
    sizes = {artifact.name: artifact.size for artifact in ended.artifacts}
    assert live.forecast.base.file_size == sizes["a-F16.gguf"]
    assert {f"a-{t}.gguf": f.size for t, f in live.forecast.quants.items()}.items() <= sizes.items()


def test_submitting_twice_is_once(worker: Worker, make: Callable[..., Job]) -> None:
    job = make("a")
    worker.submit(job)
    worker.submit(job)
    worker.start()
    wait(lambda: status(worker, job) is Status.DONE)
    assert len(worker.jobs()) == 1


def test_a_waiting_job_is_cancelled_at_once(worker: Worker, make: Callable[..., Job]) -> None:
    job = worker.submit(make("a"))  # nothing runs yet
    assert worker.cancel(job.id)
    assert status(worker, job) is Status.CANCELLED
    worker.start()
    other = worker.submit(make("b"))
    wait(lambda: status(worker, other) is Status.DONE)
    assert status(worker, job) is Status.CANCELLED
    assert not worker.cancel(job.id)


def test_a_running_job_is_cancelled_and_can_be_retried(
    worker: Worker, make: Callable[..., Job], settings: Settings
) -> None:
    worker.start()
    job = worker.submit(make("a", "IQ2_XS", imatrix="auto", width=512))
    wait(lambda: (shot := worker.snapshot(job.id)) and shot.current and shot.current.step.kind != "convert")
    assert worker.cancel(job.id)
    wait(lambda: status(worker, job) is Status.CANCELLED)
    assert not list(settings.out.rglob("*.part"))
    worker.submit(job)
    wait(lambda: status(worker, job) is Status.DONE)


def test_a_retry_that_comes_before_the_end_is_noticed(
    worker: Worker, make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says cancelled a moment before the worker is through with the job."""
    run = worker._run

    def and_retry(runner: Runner, job: Job, live: RunState) -> None:
        run(runner, job, live)
        if status(worker, job) is Status.CANCELLED:
            worker.submit(job)

    monkeypatch.setattr(worker, "_run", and_retry)
    worker.start()
    job = worker.submit(make("a", "IQ2_XS", imatrix="auto", width=512))
    wait(lambda: (shot := worker.snapshot(job.id)) and shot.current)
    worker.cancel(job.id)
    wait(lambda: status(worker, job) is Status.DONE)


def test_a_failed_job_says_why_and_the_next_one_runs(worker: Worker, make: Callable[..., Job]) -> None:
    bad = make("a")
    Path(bad.request.source.path).unlink()
    worker.start()
    worker.submit(bad)
    good = worker.submit(make("b"))
    wait(lambda: status(worker, good) is Status.DONE)
    failed = next(job for job in worker.jobs() if job.id == bad.id)
    assert failed.status is Status.FAILED
    assert "is gone: put it back" in failed.error


def test_shutdown_leaves_the_job_running_and_the_next_start_ends_it(
    settings: Settings, llama: Llama, make: Callable[..., Job]
) -> None:
    def start() -> Worker:
        made = a_worker(settings, llama)
        made.start()
        return made

    first = start()
    job = first.submit(make("a", "IQ2_XS", "Q4_K_M", imatrix="auto", width=512))
    wait(lambda: (shot := first.snapshot(job.id)) and shot.current)
    first.shutdown(wait_s=30)
    assert status(first, job) is Status.RUNNING
    second = start()
    wait(lambda: status(second, job) is Status.DONE)
    second.shutdown()


def test_a_step_that_breaks_unexpectedly_is_a_failed_job(
    settings: Settings, llama: Llama, make: Callable[..., Job]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    ended = Runner(settings=settings, llama=llama, makers=Makers(run=broken)).run(make("a"), RunState())
    assert ended.status is Status.FAILED
    assert "a bug" in ended.error

"""Running jobs from a terminal: llama.cpp, the workspace, progress, and how all of it ends."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ggufy.cli.terminal import Line, LiveDisplay, fitted, results_table, stoppable
from ggufy.core.catalog import BY_NAME
from ggufy.core.errors import Cancelled, GgufyError
from ggufy.core.job import Job, Status
from ggufy.core.writing import list_shares, warn_of_texts
from ggufy.llama.install import Llama, begin, ensure
from ggufy.system import resources
from ggufy.system.settings import Settings, redraws

if TYPE_CHECKING:
    from ggufy.jobs.options import JobOptions
    from ggufy.jobs.runner import Runner
    from ggufy.jobs.workspace import Workspace
    from ggufy.records.records import JobRecords
    from ggufy.records.run_state import RunState

_LEAVE_S, _SAVE_S = 2.0, 60.0  # that an end waits for the Hub: after Ctrl-C, and when all is done


def begun_llama(settings: Settings) -> Llama:
    """For a job: what it begins with is there, the rest is being built."""
    return ready_llama(settings, begin)


def ready_llama(settings: Settings, prepare: Callable[..., Llama] = ensure) -> Llama:
    """The llama.cpp to use, with its build in sight if it has to be built."""
    shown = 0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal shown
        if redraws(sys.stderr):
            line = fitted(f"preparing llama.cpp (once) [{done}/{total}] {text[:60]}", sys.stderr)
            sys.stderr.write(f"\r\x1b[K{line}")
        elif total and done * 10 // total > shown:
            shown = done * 10 // total
            sys.stderr.write(f"preparing llama.cpp (once): {shown * 10} %\n")
        sys.stderr.flush()

    llama = prepare(
        settings.cache,
        override=settings.llama_dir,
        threads=max(1, math.floor(resources.allowed_cpus())),
        progress=progress,
        pip_environment=settings.pip_environment,
        types=BY_NAME,
    )
    if redraws(sys.stderr):
        sys.stderr.write("\r\x1b[K")
    return llama


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[Workspace]:
    """The places where jobs and results go, ours until the block ends; SIGTERM ends it as Ctrl-C does."""
    from ggufy.jobs.workspace import connect

    workspace = connect(settings)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    wait_s = _LEAVE_S
    try:
        workspace.start()
        with contextlib.suppress(Cancelled):  # one of several Jobs has work, whoever leads
            workspace.acquire(lambda: bool(settings.worker and workspace.owner), say_waiting)
        yield workspace
        wait_s = _SAVE_S
    finally:
        workspace.close(wait_s)
        signal.signal(signal.SIGTERM, previous)


def say_waiting(reason: str) -> None:
    """Tells people why nothing goes on."""
    if reason:
        print(f"ggufy: waiting: {reason}", file=sys.stderr)


def _say_texts(job: Job) -> None:
    """What the texts of a job are, and what is missing in them."""
    request = job.request
    texts = [("calibration text", request.calibration_writing)]
    texts += [(f"evaluation text {text.choice}", text.writing) for text in request.evaluation_texts]
    for name, writing in texts:
        if shares := list_shares(writing):
            print(f"{name}: {shares}", file=sys.stderr)
    for warning in warn_of_texts(request.speaks, request.calibration_writing, request.evaluation_shares):
        print(f"ggufy: {warning}", file=sys.stderr)


def pinned(options: JobOptions, settings: Settings, *, quiet: bool) -> Job:
    """The job that is wished for, with what is read for it in sight."""
    from ggufy.jobs.request import Watch, make_job

    line = Line(shown=not quiet)
    try:
        return make_job(options, settings, Watch(report=line))
    finally:
        line.clear()


def queue_job(records: JobRecords, job: Job) -> Job:
    """Notes that the job is to run: `resume` continues it if nobody comes to that. Raises DiskError."""
    from ggufy.records.run_state import RunState

    return records.queue(job, RunState().run_id)


def run_job(runner: Runner, job: Job, *, quiet: bool) -> tuple[Job, RunState]:
    """Runs the job; Ctrl-C and SIGTERM end it in good order, and nothing is lost."""
    from ggufy.records.run_state import RunState, Stop

    with stoppable() as stopped:
        live = RunState(stop=Stop(shutdown=stopped))
        runner.records.expect(job.id, live.run_id)
        if quiet:
            return runner.run(job, live), live
        where = ", ".join(job.request.repos) or runner.folder(job)
        count = len(job.request.quants)
        print(f"{job.request.name}: {count} quant{'s' if count > 1 else ''} into {where}", file=sys.stderr)
        _say_texts(job)
        with LiveDisplay(live.progress.snapshot):
            return runner.run(job, live), live


def finish(
    done: Sequence[tuple[Job, RunState]],
    runner: Runner | None,
    *,
    as_json: bool,
    several: bool = False,
    refused: Mapping[str, GgufyError] | None = None,
) -> int:
    """Says what became of jobs, and returns the exit code. With `several`, JSON has a list also of a single one;
    `refused` are sources that no job could be made of."""
    from ggufy.jobs.results import results

    records: list[dict[str, Any]] = []
    for job, live in done:
        assert runner is not None
        folder = runner.folder(job)
        rows = results(job, live.forecast, folder)
        if as_json:
            record: dict[str, Any] = {
                "job": job.id,
                "status": job.status,
                "error": job.error,
                "folder": str(folder.absolute()),
            }
            record |= {
                "repo_id": job.request.repo_id,
                "copies": list(job.request.copies),
                "frontier": [asdict(point) for point in job.frontier],
            }
            records.append(record | {"files": rows})
        elif job.status == Status.DONE:
            print(results_table(rows))
            print(f"\n{len(rows)} files in {', '.join(job.request.repos) or folder.absolute()}")
        if job.error:
            print(f"ggufy: {job.error}", file=sys.stderr)
    if as_json:
        alone = len(records) == 1 and not several
        found: dict[str, Any] = records[0] if alone else {"jobs": records}
        if refused:
            found["refused"] = [{"source": source, "error": str(error)} for source, error in refused.items()]
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0 if not refused and all(job.status == Status.DONE for job, _ in done) else 1

"""Running jobs from a terminal: llama.cpp, the workspace, progress, and how all of it ends."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ggufy.cli.terminal import Line, LiveDisplay, fitted, stoppable
from ggufy.core.catalog import BY_NAME
from ggufy.core.job import Job
from ggufy.llama.install import Llama, ensure
from ggufy.system import resources
from ggufy.system.settings import Settings, redraws

if TYPE_CHECKING:
    from ggufy.jobs.options import JobOptions
    from ggufy.jobs.runner import Runner
    from ggufy.jobs.workspace import Workspace
    from ggufy.records.run_state import RunState

_LEAVE_S, _SAVE_S = 2.0, 60.0  # that an end waits for the Hub: after Ctrl-C, and when all is done


def ready_llama(settings: Settings) -> Llama:
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

    llama = ensure(
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
        workspace.acquire(say=_say)
        yield workspace
        wait_s = _SAVE_S
    finally:
        workspace.close(wait_s)
        signal.signal(signal.SIGTERM, previous)


def _say(reason: str) -> None:
    if reason:
        print(f"ggufy: waiting: {reason}", file=sys.stderr)


def pinned(options: JobOptions, settings: Settings, *, quiet: bool) -> Job:
    """The job that is wished for, with what is read for it in sight."""
    from ggufy.jobs.request import Watch, make_job

    line = Line(shown=not quiet)
    try:
        return make_job(options, settings, Watch(report=line))
    finally:
        line.clear()


def run_job(runner: Runner, job: Job, *, quiet: bool) -> tuple[Job, RunState]:
    """Runs the job; Ctrl-C and SIGTERM end it in good order, and nothing is lost."""
    from ggufy.records.run_state import RunState, Stop

    with stoppable() as stopped:
        live = RunState(stop=Stop(shutdown=stopped))
        if quiet:
            return runner.run(job, live), live
        where = job.request.repo_id or runner.folder(job)
        count = len(job.request.quants)
        print(f"{job.request.name}: {count} quant{'s' if count > 1 else ''} into {where}", file=sys.stderr)
        with LiveDisplay(live.progress.snapshot):
            return runner.run(job, live), live

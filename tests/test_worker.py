"""What people decide about a job counts, also if its run does not come to hear of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from ggufy.core.job import Job, Status
from ggufy.jobs.queue import Worker
from ggufy.jobs.runner import Runner
from ggufy.records.records import JobRecords
from ggufy.records.run_state import RunState
from ggufy.records.store import JobStore
from tests.test_views import REQUEST

pytestmark = pytest.mark.fast


class Hanging:
    """A runner in a call to a server that does not answer."""

    def __init__(self, records: JobRecords):
        self.records = records
        self.hangs, self.answers = threading.Event(), threading.Event()

    def run(self, job: Job, live: RunState) -> Job:
        self.records.begin(job, live.run_id)
        self.hangs.set()
        self.answers.wait()
        return self.records.end(job, Status.DONE, live.run_id)


@pytest.mark.parametrize(
    ("decide", "status"),
    [
        (Worker.cancel, Status.CANCELLED),
        (Worker.pause, Status.PAUSED),
        (lambda *_: True, Status.RUNNING),
        (lambda worker, job: worker.pause(job) and worker.cancel(job), Status.CANCELLED),
        (lambda worker, job: worker.cancel(job) and not worker.pause(job), Status.CANCELLED),  # it ends for good
    ],
)
def test_a_job_whose_run_hangs_at_the_end_of_the_program(
    tmp_path: Path, decide: Callable[[Worker, str], bool], status: Status
) -> None:
    """It is what its user made of it, and it goes on at the next start only if nobody wanted it to end."""
    records = JobRecords(JobStore(tmp_path))
    runner = Hanging(records)
    worker = Worker(records=records, make_runner=lambda: cast(Runner, runner))
    worker.start()
    job = worker.submit(Job(request=REQUEST))
    assert runner.hangs.wait(60)
    assert decide(worker, job.id)
    worker.shutdown(0.0)
    assert [known.status for known in JobStore(tmp_path).jobs()] == [status]
    runner.answers.set()


def test_a_pause_that_is_cancelled_at_its_last_moment(tmp_path: Path) -> None:
    records = JobRecords(JobStore(tmp_path))
    ended = threading.Event()

    class Pauses:
        def __init__(self) -> None:
            self.records = records

        def run(self, job: Job, live: RunState) -> Job:
            records.begin(job, live.run_id)
            worker.pause(job.id)
            paused = records.end(job, live.stop.status, live.run_id)
            assert worker.cancel(job.id)
            ended.set()
            return paused

    worker = Worker(records=records, make_runner=lambda: cast(Runner, Pauses()))
    worker.start()
    worker.submit(Job(request=REQUEST))
    assert ended.wait(60)
    worker.shutdown()
    assert [job.status for job in records.all()] == [Status.CANCELLED]


def test_what_another_runner_has_left_is_taken_up_when_its_record_comes(tmp_path: Path) -> None:
    """Not only at the start: a lease that was lost and taken again in a run brings records along."""
    records = JobRecords(JobStore(tmp_path))
    left = Job(request=replace(REQUEST, name="left"), status=Status.RUNNING)
    ran: list[str] = []
    both = threading.Event()

    class Runs:
        def __init__(self) -> None:
            self.records = records

        def run(self, job: Job, live: RunState) -> Job:
            records.begin(job, live.run_id)
            if not ran:
                records.take_over(left, unsent=False)
            ran.append(job.request.name)
            if len(ran) == 2:
                both.set()
            return records.end(job, Status.DONE, live.run_id)

    worker = Worker(records=records, make_runner=lambda: cast(Runner, Runs()))
    worker.start()
    worker.submit(Job(request=REQUEST))
    assert both.wait(60)
    worker.shutdown()
    assert ran == [REQUEST.name, "left"]
    assert {job.status for job in records.all()} == {Status.DONE}

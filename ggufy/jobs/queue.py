"""Runs queued jobs one after the other in a thread of its own; pages and tabs only look at it.

submit ──► queue ──► thread: make_runner once, then run each job to its end
cancel ends a job; pause stops it until it is submitted again; shutdown leaves it running, and it is taken up again at
the next start

Nothing that a click or a poll calls waits for the network, a tool or another runner.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection

from ggufy.core.errors import Cancelled
from ggufy.core.job import RESTING, Job, Status
from ggufy.core.progress import Snapshot
from ggufy.jobs.runner import Runner
from ggufy.records.records import JobRecords
from ggufy.records.run_state import RunState

logger = logging.getLogger(__name__)
TOLD = frozenset({Status.DONE, Status.FAILED, Status.PAUSED})  # ends that people want to hear of
_BUSY_S = 5.0  # between looks at a folder that another process works in


class Worker:
    """One thread that runs queued jobs in turn; pages and tabs only look at it.

    `make_runner` is called once, in that thread, and may take its time: llama.cpp is built there the first time, and
    it returns when every unfinished job is known.
    """

    def __init__(
        self,
        *,
        records: JobRecords,
        make_runner: Callable[[], Runner],
        wanted: Callable[[Job], bool] = lambda job: True,
        ended: Callable[[Job], None] = lambda job: None,
    ):
        self.records = records
        self._ended = ended  # gets the record of each job whose run came to an end, and returns at once
        self._wanted = wanted  # which unfinished jobs are taken up again
        self._make_runner = make_runner
        self._queue: deque[tuple[Job, RunState]] = deque()
        self._live: dict[str, RunState] = {}  # waiting and running jobs
        self._running: RunState | None = None
        self._changed = threading.Condition()
        self._shutdown = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="ggufy-worker", daemon=True)

    def start(self) -> list[Job]:
        """Starts the thread and queues every unfinished job of the store that was not queued yet; returns those."""
        self._thread.start()
        return self._take_up()

    def submit(self, job: Job) -> Job:
        """Queues a job (again, if it failed or was cancelled); one that already waits or runs is left alone."""
        with self._changed:
            if (live := self._live.get(job.id)) and not live.stop.by_user:
                return self.records.latest(job.id) or job
            queued, live = self.records.queue(job, (fresh := RunState()).run_id), fresh
            self._enqueue(queued, live)
            return queued

    def cancel(self, job_id: str) -> bool:
        """Ends a queued, running or paused job; its finished files stay. False if it is none of these."""
        with self._changed:
            live = self._live.get(job_id)
            if live is None:
                if (job := self.records.latest(job_id)) is None or job.status is not Status.PAUSED:
                    return False
                self.records.decide(job_id, Status.CANCELLED)
                return True
            live.stop.cancelled.set()
            self._unless_running(job_id, live, Status.CANCELLED)
            return True

    def pause(self, job_id: str) -> bool:
        """Stops a queued or running job for now; its step starts anew then. False if it is neither, or ends."""
        with self._changed:
            live = self._live.get(job_id)
            if live is None or live.stop.cancelled.is_set():
                return False
            live.stop.paused.set()
            self._unless_running(job_id, live, Status.PAUSED)
            return True

    def while_resting(self, job_ids: Collection[str], work: Callable[[], None]) -> bool:
        """Does `work` while none of these jobs can begin; False, and nothing is done, if one waits or runs."""
        with self._changed:
            if any(job_id in self._live for job_id in job_ids):
                return False
            work()
            return True

    def jobs(self) -> list[Job]:
        """All job records, oldest first."""
        return self.records.all()

    def live(self, job_id: str) -> RunState | None:
        """What is known of a queued or running job; None for any other."""
        return self._live.get(job_id)

    @property
    def alive(self) -> bool:
        """False once its thread has ended, or before it has begun."""
        return self._thread.is_alive()

    def silent_s(self) -> float:
        """Seconds since the job that runs last asked whether it should end; 0 if none runs."""
        live = self._running
        return 0.0 if live is None else max(0.0, time.monotonic() - live.stop.asked)

    def snapshot(self, job_id: str) -> Snapshot | None:
        """Live progress of a queued or running job."""
        live = self.live(job_id)
        return live.progress.snapshot() if live else None

    def shutdown(self, wait_s: float = 5.0) -> None:
        """Stops the running tool and the thread; what was running resumes at the next start."""
        self._shutdown.set()
        with self._changed:
            for live in self._live.values():
                live.stop.shutdown.set()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(wait_s)
        with self._changed:
            for job_id, live in self._live.items():
                if live.stop.by_user:  # its run has not come to that: it may hang in a call to a silent server
                    self.records.decide(job_id, live.stop.status)

    def _unless_running(self, job_id: str, live: RunState, status: Status) -> None:
        """Ends a job whose turn has not come; one that runs is ended by its run."""
        if live is not self._running:
            del self._live[job_id]
            self.records.decide(job_id, status)

    def _take_up(self) -> list[Job]:
        unfinished = [job for job in self.records.all() if job.unfinished and self._wanted(job)]
        with self._changed:
            taken = [job for job in unfinished if job.id not in self._live]
            for job in taken:
                self._enqueue(job, live := RunState())
                self.records.expect(job.id, live.run_id)
            return taken

    def _enqueue(self, job: Job, live: RunState) -> None:
        if self._shutdown.is_set():
            live.stop.shutdown.set()
        self._live[job.id] = live
        self._queue.append((job, live))
        self._changed.notify_all()

    def _next(self) -> tuple[Job, RunState] | None:
        """The next job, which runs from now on; None when the program ends."""
        with self._changed:
            while not self._shutdown.is_set():
                while self._queue:
                    job, live = self._queue.popleft()
                    if self._live.get(job.id) is live and not live.stop.by_user:
                        live.stop()  # its silence begins now
                        self._running = live
                        return job, live
                self._changed.wait()
        return None

    def _loop(self) -> None:
        try:
            runner = self._make_runner()
            assert runner.records is self.records, "there is one writer of records"
            self._take_up()  # jobs that only the state repo knew of
            while (entry := self._next()) is not None:
                self._run(runner, *entry)
                self._take_up()  # a lease that was lost and taken again brings what another runner has left
        except Cancelled:
            logger.info("shut down before llama.cpp was ready")

    def _run(self, runner: Runner, job: Job, live: RunState) -> None:
        again, ended = "", None
        try:
            ended = runner.run(job, live)
            known = self.records.latest(job.id)
            if ended.status is Status.FAILED and known is not None and known.status not in RESTING:
                again = ended.error  # another run, of another process, has its folder: the job waits for it
        except Cancelled:
            logger.info("job %s was interrupted; it resumes at the next start", job.id)
        except Exception as error:  # not even its record could be written; the next job may have more luck
            logger.exception("job %s", job.id)
            ended = self.records.end(job, Status.FAILED, live.run_id, error)
        finally:
            self._forget(job, live, again)
        if ended is not None and not again and ended.status in TOLD:
            self._ended(ended)

    def _forget(self, job: Job, live: RunState, waits_for: str) -> None:
        """After a run: the job is queued once more if it waits for something."""
        with self._changed:
            self._running = None
            if self._live.get(job.id) is not live:
                return  # it was queued again meanwhile
            del self._live[job.id]
            known = self.records.latest(job.id)
            if live.stop.cancelled.is_set() and known is not None and known.status is Status.PAUSED:
                self.records.decide(job.id, Status.CANCELLED)  # it came when the record was written already
            if waits_for and not live.stop.by_user:
                live.progress.waits(waits_for)
                self._enqueue(job, live)
                if len(self._queue) == 1:
                    self._changed.wait(_BUSY_S)

"""Runs queued jobs one after the other in a thread of its own; pages and tabs only look at it.

submit ──► queue ──► thread: make_runner once, then run each job to its end
cancel ends a job; pause stops it until it is submitted again; shutdown leaves it running, and it is taken up again at
the next start
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from ggufy.errors import Cancelled, GgufyError, LeaseLost
from ggufy.hub.state import JobStore
from ggufy.job import RESTING, Job, Status
from ggufy.progress import Snapshot
from ggufy.runner import Live, Runner

logger = logging.getLogger(__name__)


class Worker:
    """One thread that runs queued jobs in turn; pages and tabs only look at it.

    `make_runner` is called once, in that thread, and may take its time: llama.cpp is built there the first time.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        make_runner: Callable[[], Runner],
        wanted: Callable[[Job], bool] = lambda job: True,
    ):
        self.store = store
        self._wanted = wanted  # which unfinished jobs are taken up again
        self._make_runner = make_runner
        self._queue: queue.Queue[tuple[Job, Live] | None] = queue.Queue()
        self._live: dict[str, Live] = {}  # waiting and running jobs
        self._running = ""  # id of the one that runs
        self._unsaved: dict[str, Job] = {}  # how jobs ended whose record could not be written (a full disk)
        self._lock = threading.Lock()
        self._shutdown = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="ggufy-worker", daemon=True)

    def start(self) -> list[Job]:
        """Starts the thread and queues every unfinished job of the store that was not queued yet; returns those."""
        self._thread.start()
        with self._lock:
            return self._take_up()

    def submit(self, job: Job) -> Job:
        """Queues a job (again, if it failed or was cancelled); one that already waits or runs is left alone."""
        with self._lock:
            if (live := self._live.get(job.id)) and not live.stop.by_user:
                return job
            self._unsaved.pop(job.id, None)
            known = self.store.load(job.id) or job  # it keeps the digests of what is finished
            job = self.store.save(known.evolve(request=job.request, status=Status.QUEUED, error=""))
            self._enqueue(job)
            return job

    def cancel(self, job_id: str) -> bool:
        """Ends a queued, running or paused job; its finished files stay. False if it is none of these."""
        with self._lock:
            live = self._live.get(job_id)
            if live is None:
                if (job := self.store.load(job_id)) is None or job.status is not Status.PAUSED:
                    return False
                self.store.save(job.evolve(status=Status.CANCELLED))
                return True
            live.stop.cancelled.set()
            if job_id != self._running:
                del self._live[job_id]
                if job := self.store.load(job_id):
                    self.store.save(job.evolve(status=Status.CANCELLED))
            return True

    def pause(self, job_id: str) -> bool:
        """Stops a queued or running job for now; its step starts anew then. False if it is neither."""
        with self._lock:
            live = self._live.get(job_id)
            if live is None:
                return False
            live.stop.paused.set()
            if job_id != self._running:
                del self._live[job_id]
                if job := self.store.load(job_id):
                    self.store.save(job.evolve(status=Status.PAUSED))
            return True

    def jobs(self) -> list[Job]:
        """All job records, oldest first."""
        return [self._unsaved.get(job.id, job) for job in self.store.jobs()]

    def live(self, job_id: str) -> Live | None:
        """What is known of a queued or running job; None for any other."""
        with self._lock:
            return self._live.get(job_id)

    def snapshot(self, job_id: str) -> Snapshot | None:
        """Live progress of a queued or running job."""
        live = self.live(job_id)
        return live.progress.snapshot() if live else None

    def shutdown(self, wait_s: float = 5.0) -> None:
        """Stops the running tool and the thread; what was running resumes at the next start."""
        self._shutdown.set()
        with self._lock:
            for live in self._live.values():
                live.stop.shutdown.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def _take_up(self) -> list[Job]:
        unfinished = [
            job
            for job in self.store.jobs()
            if job.status not in RESTING and job.id not in self._live and self._wanted(job)
        ]
        for job in unfinished:
            self._enqueue(job)
        return unfinished

    def _enqueue(self, job: Job) -> None:
        self._live[job.id] = live = Live()
        self._queue.put((job, live))

    def _loop(self) -> None:
        try:
            runner = self._make_runner()
        except Cancelled:
            return  # shut down before it was ready
        with self._lock:
            self._take_up()  # jobs that only the state repo knew of
        while (entry := self._queue.get()) is not None and not self._shutdown.is_set():
            job, live = entry
            with self._lock:
                if live.stop.by_user:
                    continue
                self._running = job.id
            try:
                ended = self._run(runner, job, live)
                with self._lock:
                    again = self._live.get(job.id) is not live  # queued once more as soon as it had ended
                    if not again and (stored := self.store.load(job.id)) and stored.status != ended.status:
                        self._unsaved[job.id] = ended
            except Cancelled:
                logger.info("job %s was interrupted; it resumes at the next start", job.id)
            except (GgufyError, OSError):  # not even its record could be written; the next job may have more luck
                logger.exception("job %s ended without a record", job.id)
            finally:
                with self._lock:
                    self._running = ""
                    if self._live.get(job.id) is live:  # else it was queued again meanwhile
                        del self._live[job.id]

    def _run(self, runner: Runner, job: Job, live: Live) -> Job:
        """As runner.run; if another runner takes over, waits until that one is gone and goes on from there."""
        while True:
            try:
                return runner.run(job, live)
            except LeaseLost as error:
                logger.warning("job %s: %s", job.id, error)
            runner.connection.acquire(live.stop)
            if (known := self.store.load(job.id)) and known.status in RESTING:
                return known  # the other one has ended it

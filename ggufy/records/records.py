"""The one writer of job records.

Records are saved on this machine, at once; `changed` hears of each, and brings it to the Hub in its own time. What a
run finds is always noted, since it is true whatever became of the run. How a run ends is noted only while that run is
the job's newest: a job that was queued again meanwhile is not ended by the run before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import PurePath

from ggufy.core.errors import DiskError
from ggufy.core.job import Artifact, FrontierPoint, Job, Status
from ggufy.core.job_merge import merged
from ggufy.core.job_sharing import evaluations_for
from ggufy.core.metrics import Evaluation
from ggufy.records.store import JobStore

logger = logging.getLogger(__name__)


class JobRecords:
    """May be used from several threads; nothing here waits for the network."""

    def __init__(self, store: JobStore, changed: Callable[[str], None] = lambda job_id: None):
        self.store = store
        self.changed = changed  # gets the id of each job whose record was written
        self.removed: Callable[[str], None] = lambda job_id: None  # gets the id of each whose record was deleted
        self.term = 0  # of the lease that records are written under
        self._lock = threading.RLock()
        self._newest: dict[str, str] = {}  # job id -> its newest run
        self._began: dict[str, float] = {}  # run that is at work -> when it began
        self._unwritten: dict[str, Job] = {}  # newer than the file: the disk was full

    # ---- reading

    def latest(self, job_id: str) -> Job | None:
        """The job's record, or None if there is none."""
        with self._lock:
            return self._unwritten.get(job_id) or self.store.load(job_id)

    def all(self) -> list[Job]:
        """Every job's record, oldest first."""
        found = {job.id: job for job in self.store.jobs()}
        with self._lock:
            found |= {job.id: self._kept(job) for job in list(self._unwritten.values())}  # there may be room now
        return sorted(found.values(), key=lambda job: job.created)

    def is_newest(self, job_id: str, run_id: str) -> bool:
        """False for a run of a job that was queued again since."""
        with self._lock:
            return self._newest.get(job_id, run_id) == run_id

    # ---- what people decide

    def queue(self, job: Job, run_id: str) -> Job:
        """Notes that the job is to run, as this run; what it has finished before stays known. Raises DiskError."""
        with self._lock:
            known = self.latest(job.id) or job
            queued = self._save(known.evolve(request=job.request, status=Status.QUEUED, error="", cause=""))
            self._newest[job.id] = run_id
            return queued

    def decide(self, job_id: str, status: Status) -> Job | None:
        """Notes what a person made of a job that is not running: cancelled or paused. None if there is none."""
        with self._lock:
            self._newest[job_id] = ""  # no run that still ends has a say in it
            return self._change(job_id, status=status, error="", cause="")

    def expect(self, job_id: str, run_id: str) -> None:
        """Makes this the job's newest run; its record says already that it is to run."""
        with self._lock:
            self._newest[job_id] = run_id

    def remove(self, job_id: str) -> None:
        """Deletes the record of a job that rests."""
        with self._lock:
            self._newest[job_id] = ""  # no run that still ends brings it back
            self._unwritten.pop(job_id, None)
            self.store.remove(job_id)
            self.removed(job_id)

    def forget_artifact(self, job_id: str, name: str) -> None:
        """Notes that a product was deleted; what was measured of it stays true."""
        with self._lock:
            job = self.latest(job_id)
            if job and any(artifact.name == name for artifact in job.artifacts):
                self._kept(job.evolve(artifacts=tuple(one for one in job.artifacts if one.name != name)))

    # ---- what a run finds

    def begin(self, job: Job, run_id: str) -> Job:
        """Notes that this run is at work. The record of a run that is not the newest any more stays as it is."""
        with self._lock:
            known = self.latest(job.id) or job
            self._began.setdefault(run_id, time.monotonic())
            if not self.is_newest(job.id, run_id):
                return known
            return self._kept(known.evolve(request=job.request, status=Status.RUNNING, error="", cause="", begun=True))

    def add_artifacts(self, job_id: str, artifacts: Collection[Artifact]) -> None:
        """Notes finished products."""
        with self._lock:
            if job := self.latest(job_id):
                for artifact in artifacts:
                    job = job.with_artifact(artifact)
                self._kept(job)

    def add_evaluation(self, job_id: str, evaluation: Evaluation) -> None:
        """Notes the figures of a quant."""
        with self._lock:
            if job := self.latest(job_id):
                self._kept(job.with_evaluation(evaluation))

    def share_evaluations(self, job: Job) -> None:
        """Notes what other jobs have measured of the same files over the same text."""
        with self._lock:
            if known := self.latest(job.id):
                own = {evaluation.quant for evaluation in known.evaluations}
                for evaluation in evaluations_for(job.request, self.all()):
                    if evaluation.quant not in own:
                        known = known.with_evaluation(evaluation)
                if len(known.evaluations) > len(own):
                    self._kept(known)

    def set_frontier(self, job_id: str, points: tuple[FrontierPoint, ...]) -> None:
        """Notes which sizes can be ordered."""
        with self._lock:
            self._change(job_id, frontier=points)

    def end(
        self,
        job: Job,
        status: Status,
        run_id: str,
        error: BaseException | None = None,
        folders: Iterable[PurePath] = (),
    ) -> Job:
        """Notes how this run ended, if it is the job's newest; returns the record that counts. `error` and `folders`
        as for Job.ended."""
        with self._lock:
            known = self.latest(job.id) or job
            took_s = known.took_s + time.monotonic() - self._began.pop(run_id, time.monotonic())
            if not self.is_newest(job.id, run_id):
                return known
            return self._kept(known.ended(status, error, folders).evolve(took_s=round(took_s, 3)))

    # ---- records of other machines

    def take_over(self, theirs: Job, *, unsent: bool) -> Job:
        """Joins a record of the state repo with the one that is here; returns what counts."""
        with self._lock:
            own = self.latest(theirs.id)
            found = theirs if own is None else merged(own, theirs, unsent=unsent)
            self.term = max(self.term, theirs.term)
            if found in (own, theirs):
                if found != own:
                    self._put(found)
                return found
            return self._kept(found)

    # ---- writing

    def _change(self, job_id: str, **changes: object) -> Job | None:
        known = self.latest(job_id)
        return self._kept(known.evolve(**changes)) if known else None

    def _put(self, job: Job) -> None:
        """As it is: nothing in it is new."""
        try:
            self.store.put(job)
            self._unwritten.pop(job.id, None)
        except (DiskError, OSError) as error:
            logger.warning("the record of job %s could not be written: %s", job.id, error)
            self._unwritten[job.id] = job

    def _kept(self, job: Job) -> Job:
        """Saved, or kept in memory while the disk has no room: what is true is not forgotten for that."""
        try:
            return self._save(job)
        except (DiskError, OSError) as error:
            if job.id not in self._unwritten:
                logger.warning("the record of job %s could not be written: %s", job.id, error)
            self._unwritten[job.id] = job
            return job

    def _save(self, job: Job) -> Job:
        saved = self.store.save(job, self.term)
        self._unwritten.pop(job.id, None)
        self.changed(job.id)
        return saved

"""Job records on this machine: `ggufy-state/jobs/<job id>.json`, each written whole or not at all.

The folder also keeps what a job's steps printed, in `logs/<job id>/<step>.log`, and unfinished work in `work/`.
Nothing here decides what is left to do (see plan.py); it says what was asked, and tells people where a job stands.
Records are read here and written by records.py; state_repo.py brings them to the Hub.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

from ggufy.core.job import Job
from ggufy.core.job_record import from_json, to_json
from ggufy.system.files import write_text

logger = logging.getLogger(__name__)
STATE_REPO = "ggufy-state"
JOBS = "jobs"
EVALUATIONS = "evaluations"  # what the command `evaluate` has measured, beside the jobs
Stamp = tuple[int, int, int]  # size, time of the last change, inode


class JobStore:
    """The records of one output folder. May be used from several threads, and never waits for the network."""

    def __init__(self, out: Path):
        self.root = out / STATE_REPO
        self._parsed: dict[str, tuple[Stamp, Job | None]] = {}  # by path, as long as the file stands
        self._lock = threading.Lock()

    def save(self, job: Job, term: int = 0) -> Job:
        """Writes the record with the present time; returns the record as written. Raises DiskError."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        job = job.evolve(created=job.created or now, updated=now, term=max(job.term, term), serial=job.serial + 1)
        self.put(job)
        return job

    def put(self, job: Job) -> None:
        """Writes a record as it is. Raises DiskError."""
        write_text(self.path(job.id), to_json(job))

    def remove(self, job_id: str) -> None:
        """Deletes a record, and what its steps printed."""
        self.path(job_id).unlink(missing_ok=True)
        shutil.rmtree(self.log_folder(job_id), ignore_errors=True)

    def load(self, job_id: str) -> Job | None:
        """The record, or None if there is none or it cannot be read."""
        return self._read(self.path(job_id))

    def jobs(self) -> list[Job]:
        """All readable records, oldest first. A record that has not changed is the same object each time."""
        stamps = self._stamps()
        with self._lock:
            for gone in self._parsed.keys() - stamps.keys():
                del self._parsed[gone]
            known = dict(self._parsed)
        found = []
        for path, stamp in stamps.items():
            before = known.get(path)
            job = before[1] if before and before[0] == stamp else self._read(Path(path))
            if job is not None:
                found.append(job)
        return sorted(found, key=lambda job: (job.created, job.id))

    def _stamps(self) -> dict[str, Stamp]:
        """What tells by each record's path whether it has changed; asked often, of hundreds."""
        try:
            with os.scandir(self.root / JOBS) as entries:
                return {one.path: _stamp(one.stat()) for one in entries if one.name.endswith(".json")}
        except (FileNotFoundError, NotADirectoryError):  # the folder, or a record that was deleted just now
            return self._stamps() if (self.root / JOBS).is_dir() else {}

    def path(self, job_id: str) -> Path:
        """Where a job's record is, or will be."""
        return self.root / JOBS / f"{job_id}.json"

    def log_folder(self, job_id: str) -> Path:
        """Where the tools' output of this job is kept."""
        return self.root / "logs" / job_id

    def work_folder(self, inputs: str) -> Path:
        """What unfinished steps of jobs with these inputs have so far; deleted when such a job is done."""
        return self.root / "work" / inputs[:16]

    def _read(self, path: Path) -> Job | None:
        try:
            stamp = _stamp(path.stat())
            with self._lock:
                known = self._parsed.get(str(path))
            if known is None or known[0] != stamp:
                known = stamp, _parse(path)
                with self._lock:
                    self._parsed[str(path)] = known
            return known[1]
        except FileNotFoundError:
            return None


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_size, found.st_mtime_ns, found.st_ino


def _parse(path: Path) -> Job | None:
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        logger.warning("job record %s is left aside: %s", path, error)
        return None

"""Job records in `<out>/ggufy-state/jobs/<job id>.json`, written whole or not at all.

The folder also keeps what a job's steps printed, in `logs/<job id>/<step>.log`. Nothing here decides what is left to
do (see plan.py); it says what was asked, and tells people where a job stands.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

from ggufy.files import write_text
from ggufy.job import Job, from_json, to_json

logger = logging.getLogger(__name__)
STATE_REPO = "ggufy-state"


class JobStore:
    """The job records below one output folder."""

    def __init__(self, out: Path):
        self.root = out / STATE_REPO

    def save(self, job: Job) -> Job:
        """Writes the record with the present time; returns the record as written."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        job = job.evolve(created=job.created or now, updated=now)
        write_text(self._path(job.id), to_json(job))
        return job

    def load(self, job_id: str) -> Job | None:
        """The record, or None if there is none or it cannot be read."""
        path = self._path(job_id)
        try:
            return from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("job record %s is left aside: %s", path, error)
            return None

    def jobs(self) -> list[Job]:
        """All readable records, oldest first."""
        ids = sorted(path.stem for path in (self.root / "jobs").glob("*.json"))
        found = [job for job_id in ids if (job := self.load(job_id)) is not None]
        return sorted(found, key=lambda job: job.created)

    def log_folder(self, job_id: str) -> Path:
        """Where the tools' output of this job is kept."""
        return self.root / "logs" / job_id

    def work_folder(self, inputs: str) -> Path:
        """What unfinished steps of jobs with these inputs have so far; deleted when such a job is done."""
        return self.root / "work" / inputs[:16]

    def _path(self, job_id: str) -> Path:
        return self.root / "jobs" / f"{job_id}.json"

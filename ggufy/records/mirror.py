"""Which job records the state repo has, and which wait for it; records of both sides are joined here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

from ggufy.core.job import Job
from ggufy.core.job_record import from_json
from ggufy.core.job_sharing import was_at_work
from ggufy.hub.lease import KIND
from ggufy.hub.protocol import Hub, RemoteFile
from ggufy.records.records import JobRecords
from ggufy.records.store import JOBS

logger = logging.getLogger(__name__)


class RecordMirror:
    """The records here beside those of the repo. Any thread may mark one; one thread does the rest."""

    def __init__(self, records: JobRecords, hub: Hub, changed: threading.Condition):
        """`changed` is held while the sets below change."""
        self._records, self._hub, self._changed = records, hub, changed
        self.unsent: set[str] = set()  # ids of jobs whose record the repo does not have
        self.at_work: set[str] = set()  # ids of jobs of which the repo knows that they were at work

    def mark(self, job_id: str) -> None:
        """Notes that a record has changed."""
        with self._changed:
            self.unsent.add(job_id)
            self._changed.notify_all()

    def gone(self, job_id: str) -> str:
        """Notes that a record was deleted here; returns its path in the repo."""
        with self._changed:
            self.unsent.discard(job_id)
        return f"{JOBS}/{job_id}.json"

    def mark_all(self, but: Collection[str] = ()) -> None:
        """Every record waits to be committed, except those with these paths in the repo."""
        known = self._records.all()  # it has a lock of its own, which who marks a record holds
        with self._changed:
            self.unsent.update(job.id for job in known if f"{JOBS}/{job.id}.json" not in but)

    def start_anew(self) -> None:
        """The repo is empty."""
        self.mark_all()
        self.at_work.clear()

    def waiting(self) -> dict[str, bytes]:
        """The records that are to be committed, by their paths in the repo."""
        with self._changed:
            unsent = sorted(self.unsent)
        paths = {f"{JOBS}/{job_id}.json": self._records.store.path(job_id) for job_id in unsent}
        return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}

    def note_sent(self, sent: Mapping[str, bytes]) -> None:
        """Notes what has arrived; a record that was written again meanwhile has not, or only as it was."""
        arrived = [job for data in sent.values() if (job := parse_record(data))]
        self.at_work |= {job.id for job in arrived if was_at_work(job)}
        with self._changed:
            now = self.waiting()
            self.unsent &= {Path(name).stem for name, data in now.items() if sent.get(name) != data}

    def refresh(self, repo_id: str, but: Collection[str] = ()) -> None:
        """Joins the records here with those of the repo, `but` for those with these paths, which are to be deleted
        there; one that only this machine has waits to be committed."""
        there = self._hub.list_files(repo_id, kind=KIND, under=f"{JOBS}/")
        for name, file in there.items():
            if name not in but and Path(name).suffix == ".json" and name.count("/") == 1:
                self._take_record(repo_id, name, file)
        self.mark_all(but=there)

    def _take_record(self, repo_id: str, name: str, file: RemoteFile) -> None:
        job_id = Path(name).stem
        path = self._records.store.path(job_id)
        own = self._records.latest(job_id)
        if own is not None and path.is_file() and file.holds(path.read_bytes()):
            if was_at_work(own):
                self.at_work.add(job_id)
            with self._changed:
                self.unsent.discard(job_id)
            return
        theirs = parse_record(self._hub.read(repo_id, name, kind=KIND))
        if theirs is None or theirs.id != job_id:
            logger.warning("%s in %s is left aside: it is no job record", name, repo_id)
            return
        if was_at_work(theirs):
            self.at_work.add(job_id)
        with self._changed:
            unsent = job_id in self.unsent
        counts = self._records.take_over(theirs, unsent=unsent)
        with self._changed:
            (self.unsent.discard if counts == theirs else self.unsent.add)(job_id)


def parse_record(data: bytes | None) -> Job | None:
    """The job of a record's bytes; None if they are none."""
    try:
        return from_json((data or b"").decode("utf-8"))
    except ValueError:
        return None

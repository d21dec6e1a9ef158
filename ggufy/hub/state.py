"""Job records in the repo `ggufy-state`: `jobs/<job id>.json`, each written whole or not at all.

Without a hub the repo is the folder `<out>/ggufy-state`, and that is all. With one, the folder holds a copy of the
records, so that reading them costs nothing, and every change is committed; in the name of a lease, if there is one, so
that a runner which has lost it cannot write. While the Hub is away or takes no more commits, changes wait here, and
go along with the next commit.

The folder also keeps what a job's steps printed, in `logs/<job id>/<step>.log`, and unfinished work in `work/`; that
stays on this machine. Small files that a job needs after a restart are kept in `files/<key>/`. Nothing here decides
what is left to do (see plan.py); it says what was asked, and tells people where a job stands.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from ggufy.errors import HubAway, HubError, LeaseLost, QuotaError, RepoMissing
from ggufy.files import write_text
from ggufy.hub.lease import KIND, Lease
from ggufy.hub.local import LocalHub
from ggufy.hub.protocol import Content, Hub, RemoteFile, check_path
from ggufy.job import Job, from_json, to_json

logger = logging.getLogger(__name__)
STATE_REPO = "ggufy-state"
_JOBS, _FILES = "jobs", "files"


class JobStore:
    """The job records of one state repo. May be used from several threads."""

    def __init__(
        self, out: Path, *, hub: Hub | None = None, repo_id: str = f"local/{STATE_REPO}", lease: Lease | None = None
    ):
        self.root = out / STATE_REPO
        self.repo_id = repo_id
        self._hub: Hub = hub or LocalHub(out)
        self._records_are_committed = hub is not None
        self._lease = lease
        self._unsaved: dict[str, bytes] = {}  # path -> record that waits for the Hub
        self._lock = threading.RLock()

    # ---- records

    def save(self, job: Job) -> Job:
        """Writes the record with the present time; returns the record as written.

        If the Hub is away or takes no more commits for now, the record waits here (see `unsaved`). It waits too when
        a HubError that does not pass is raised, but not with LeaseLost.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        job = job.evolve(created=job.created or now, updated=now)
        path = self._path(job.id)
        if not self._records_are_committed:
            write_text(path, to_json(job))
            return job
        with self._lock:
            if self._lease is not None:
                self._lease.check_taken()
            name, failure = f"{_JOBS}/{job.id}.json", None
            self._unsaved[name] = to_json(job).encode()
            try:
                if self._hub.wait_s() <= 0:
                    self.flush(f"{job.id}: {job.status}")
            except LeaseLost:
                del self._unsaved[name]  # what the other runner writes counts
                raise
            except HubError as error:
                failure = error
            write_text(path, to_json(job))
            if isinstance(failure, (HubAway, QuotaError)):
                logger.warning("the record of job %s waits: %s", job.id, failure)
            elif failure is not None:
                raise failure
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
        ids = sorted(path.stem for path in (self.root / _JOBS).glob("*.json"))
        found = [job for job_id in ids if (job := self.load(job_id)) is not None]
        return sorted(found, key=lambda job: job.created)

    def log_folder(self, job_id: str) -> Path:
        """Where the tools' output of this job is kept."""
        return self.root / "logs" / job_id

    def work_folder(self, inputs: str) -> Path:
        """What unfinished steps of jobs with these inputs have so far; deleted when such a job is done."""
        return self.root / "work" / inputs[:16]

    # ---- the Hub

    @property
    def unsaved(self) -> bool:
        """True while records wait for the Hub."""
        return bool(self._unsaved)

    def refresh(self) -> None:
        """Brings the records here that the state repo has; to be called at the start, and when the lease was taken.

        Of two records of a job the one that was written later stays; one that only this folder has waits to be
        committed. Raises HubError.
        """
        if not self._records_are_committed:
            return
        with self._lock:
            there = self._hub.list_files(self.repo_id, kind=KIND, under=f"{_JOBS}/")
            for name, file in there.items():
                if name.endswith(".json"):
                    self._take(name, file)
            for path in (self.root / _JOBS).glob("*.json"):
                name = f"{_JOBS}/{path.name}"
                if name not in there:
                    self._unsaved[name] = path.read_bytes()

    def flush(self, message: str = "save job records") -> None:
        """Commits what waits, in one commit. Raises HubError."""
        with self._lock:
            if self._unsaved:
                self._push(message)

    def beat(self) -> None:
        """For Lease.start: renews the lease, and takes along what waits. Raises HubError."""
        with self._lock:
            if self._lease is not None and self._lease.due:
                self._push("renew the lease", urgent=True)
            elif self._hub.wait_s() <= 0:
                self.flush()

    # ---- small files that a job needs after a restart, such as the segments of an imatrix

    def keep(self, key: str, files: Mapping[str, Content], *, drop: Collection[str] = ()) -> None:
        """Commits files under a key (of a job, or of its inputs) and deletes others there, by name; records that wait
        go along. Raises HubError; whether there is a commit to spare says `wait_s`."""
        add = {_kept(key, name): content for name, content in files.items()}
        with self._lock:
            self._push(f"files of {key}", add=add, delete=[_kept(key, name) for name in drop])

    def kept(self, key: str) -> dict[str, RemoteFile]:
        """The files that are kept under the key, by name. Raises HubError."""
        start = _kept(key, "")
        there = self._hub.list_files(self.repo_id, kind=KIND, under=start)
        return {name.removeprefix(start): file for name, file in there.items()}

    def fetch(self, key: str, name: str, target: Path) -> None:
        """Brings a kept file here, whole or not at all. Raises HubError."""
        self._hub.download(self.repo_id, _kept(key, name), target, kind=KIND)

    def wait_s(self) -> float:
        """Seconds until an ordinary commit may be made, 0 if now; records need not wait for it, they wait here."""
        return self._hub.wait_s()

    # ---- commits

    def _push(
        self,
        message: str,
        *,
        add: Mapping[str, Content] | None = None,
        delete: Collection[str] = (),
        urgent: bool = False,
    ) -> None:
        """Commits these files and all records that wait."""
        sent = dict(self._unsaved)
        try:
            self._commit({**sent, **(add or {})}, delete=delete, message=message, urgent=urgent)
        except RepoMissing:
            logger.warning("%s is gone: it is made again, with all records that are known here", self.repo_id)
            self._hub.create_repo(self.repo_id, kind=KIND, private=True)
            if self._lease is not None:
                self._lease.follow()
            sent = {f"{_JOBS}/{path.name}": path.read_bytes() for path in (self.root / _JOBS).glob("*.json")} | sent
            self._commit({**sent, **(add or {})}, delete=delete, message=message, urgent=urgent)
        self._unsaved = {name: data for name, data in self._unsaved.items() if sent.get(name) != data}

    def _commit(self, add: Mapping[str, Content], *, delete: Collection[str], message: str, urgent: bool) -> None:
        if self._lease is not None:
            self._lease.commit(add, delete=delete, message=message, urgent=urgent)
        else:
            self._hub.create_repo(self.repo_id, kind=KIND, private=True)
            self._hub.commit(self.repo_id, kind=KIND, add=add, delete=delete, message=message, urgent=urgent)

    def _take(self, name: str, file: RemoteFile) -> None:
        path = self.root / check_path(name)
        own = self._unsaved.get(name) or (path.read_bytes() if path.is_file() else b"")
        if file.holds(own):
            return
        data = self._hub.read(self.repo_id, name, kind=KIND)
        if data is None:
            return
        if _updated(own) > _updated(data):
            self._unsaved[name] = own
        else:
            self._unsaved.pop(name, None)
            write_text(path, data.decode("utf-8", errors="replace"))

    def _path(self, job_id: str) -> Path:
        return self.root / _JOBS / f"{job_id}.json"


def _kept(key: str, name: str) -> str:
    return f"{_FILES}/{key}/{name}"


def _updated(record: bytes) -> str:
    """When a record was written; empty if it cannot be read."""
    try:
        return from_json(record.decode("utf-8")).updated
    except ValueError:
        return ""

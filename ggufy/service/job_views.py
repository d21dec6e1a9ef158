"""Jobs as people see them: each record with its progress, its files, and what its tools said.

A page asks every second, and there may be hundreds of jobs. So a view is made anew only when the record or the folder
of its files has changed, or while the job waits or runs; views of what stands still are the same objects as before.
What only an opened card shows (the heads of its files, the log) is read when somebody asks for it, see `detailed`.
"""

from __future__ import annotations

import logging
import math
import operator
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ggufy.core.errors import SourceError
from ggufy.core.job import RESTING, Job, Status
from ggufy.core.job_sharing import folder_owners
from ggufy.core.progress import Snapshot
from ggufy.jobs.queue import Worker
from ggufy.jobs.results import results
from ggufy.records.run_state import RunState
from ggufy.steps.outputs import output_of_row
from ggufy.steps.outputs.output_format import OutputFormat

logger = logging.getLogger(__name__)
_FRESH_S = 0.4  # all tabs together look at the disk at most so often
_RESTING_S = 10.0  # and at the folders of jobs that rest at most so often
_FOUND_S = 0.3  # spent on files not looked for before, newest job first; a later look goes on
_SETTLED_S = 2.0  # a folder that changed so lately may change once more within one tick of its clock
_HEADS_S = 0.2  # spent on files not read before; what is left over is read the next time
_LOG_BYTES, _LOG_LINES = 6000, 40
_LOGGED = (Status.RUNNING, Status.FAILED)


@dataclass(frozen=True, kw_only=True)
class JobView:
    """One job as it is at a moment."""

    job: Job
    snapshot: Snapshot | None = None  # while it waits or runs
    stopping: str = ""  # cancelling or pausing: its tool is just ending
    files: tuple[dict[str, Any], ...] = ()  # as `ggufy.jobs.results.results` makes them
    here: frozenset[str] = frozenset()  # what is in the folder, by name; other files are in the repo only
    forecast: dict[str, int] = field(default_factory=dict)  # quant type -> bytes, before they are made
    folder: Path
    logged: bool = False  # it runs or failed, and there is a log
    log: str = ""  # its end, in a detailed view
    whole: bool = True  # no head of a file is left to be read for a detailed view


@dataclass(frozen=True)
class _Files:
    """The files of a job, and what they were found by."""

    job: Job
    changed: int  # mtime of the folder, in ns; 0: there is none
    trusted: bool
    rows: tuple[dict[str, Any], ...]
    here: frozenset[str]


class JobViews:
    """The views of a worker's jobs. Any thread may call any method."""

    def __init__(self, worker: Worker, out: Path):
        self._worker, self._out = worker, out
        self._lock = threading.Lock()  # of what is below, for a moment
        self._looking = threading.Lock()  # one looks at the disk for all who ask
        self._taken = -math.inf
        self._views: tuple[JobView, ...] = ()
        self._clicks = 0
        self._jobs: list[Job] = []
        self._owners: dict[str, Job] = {}
        self._changed: dict[str, int] = {}  # by folder, when it changed
        self._changed_at = -math.inf
        self._still = False  # the views are those of all jobs, and none of them waits or runs
        self._files: dict[str, _Files] = {}
        self._resting: dict[str, tuple[_Files, JobView]] = {}
        self._heads: dict[tuple[Path, int], tuple[float, str] | None] = {}

    def __call__(self, *, whole: bool = False) -> tuple[JobView, ...]:
        """All jobs, newest first; who asks too often gets the answer of a moment ago. At first the files of old jobs
        may be missing, unless `whole`."""
        with self._looking:
            with self._lock:
                if time.monotonic() - self._taken < _FRESH_S and not whole:
                    return self._views
                clicks = self._clicks
            jobs = self._worker.jobs()
            if len(jobs) != len(self._jobs) or not all(map(operator.is_, jobs, self._jobs)):
                self._jobs, self._owners, self._still = jobs, folder_owners(jobs), False
            if self._still and time.monotonic() - self._changed_at < _RESTING_S:
                return self._views
            owners, changed = self._owners, self._changes(jobs)
            until = math.inf if whole else time.monotonic() + _FOUND_S
            views = tuple(self._view(job, owners, changed, until) for job in reversed(jobs))
            with self._lock:
                self._taken = time.monotonic() if clicks == self._clicks else -math.inf
                if len(views) != len(self._views) or any(a is not b for a, b in zip(views, self._views, strict=True)):
                    self._views = views
                known = {job.id for job in jobs}
                files = [self._files.get(job.id) for job in jobs]
                resting = all(job.status in RESTING for job in jobs)
                self._still = resting and all(found is not None and found.changed != -1 for found in files)
                for gone in self._files.keys() - known:
                    del self._files[gone]
                    self._resting.pop(gone, None)
                return self._views

    def look_again(self) -> None:
        """Somebody has changed a job: the next answer is a new one."""
        with self._lock:
            self._clicks += 1
            self._taken = self._changed_at = -math.inf

    def of(self, job_id: str) -> JobView | None:
        """One job as it is now."""
        jobs = self._worker.jobs()
        job = next((job for job in jobs if job.id == job_id), None)
        if job is None:
            return None
        name = job.request.folder
        return self._view(job, folder_owners(jobs), {name: self._mtime(name)}, math.inf)

    def detailed(self, view: JobView, *, heads: bool = True, log: bool = True) -> JobView:
        """The view with bits per weight and equal tensors, as the files themselves have them, and the end of the log.

        Heads that were not read before are read for some time only; a later call goes on.
        """
        if heads:
            rows, whole = self._with_heads(view)
            view = replace(view, files=rows, whole=whole)
        return replace(view, log=self._log_tail(view.job)) if log and view.logged else view

    def _changes(self, jobs: list[Job]) -> dict[str, int]:
        """When each output folder changed, in ns; 0 where there is none."""
        now = time.monotonic()
        if now - self._changed_at > _RESTING_S:
            self._changed, self._changed_at = {}, now
        for name in {job.request.folder for job in jobs if job.status not in RESTING}:
            self._changed.pop(name, None)
        for name in {job.request.folder for job in jobs} - self._changed.keys():
            self._changed[name] = self._mtime(name)
        return self._changed

    def _mtime(self, name: str) -> int:
        try:
            return (self._out / name).stat().st_mtime_ns
        except OSError:
            return 0

    def _view(self, job: Job, owners: Mapping[str, Job], changed: Mapping[str, int], until: float) -> JobView:
        live = self._worker.live(job.id) if job.status not in RESTING else None
        owner = owners.get(job.request.folder)
        # Whatever its status: files belong to everybody whose inputs are those that the folder was filled from.
        trusted = owner is not None and owner.request.inputs() == job.request.inputs()
        files = self._files_of(job, changed[job.request.folder], trusted=trusted, until=until)
        seen = self._resting.get(job.id)
        if live is None and seen and seen[0] is files:
            return seen[1]
        view = JobView(
            job=job,
            snapshot=live.progress.snapshot() if live else None,
            stopping=_stopping(live),
            files=files.rows,
            here=files.here,
            forecast=live.forecast.sizes if live and live.forecast else {},
            folder=self._folder(job).absolute(),
            logged=job.status in _LOGGED and self._worker.records.store.log_folder(job.id).is_dir(),
        )
        if job.status in RESTING:
            self._resting[job.id] = files, view
        return view

    def _files_of(self, job: Job, changed: int, *, trusted: bool, until: float) -> _Files:
        seen = self._files.get(job.id)
        if seen and seen.job is job and seen.changed == changed and seen.trusted == trusted:
            return seen
        if time.monotonic() > until:
            return seen or _Files(job, -1, trusted, (), frozenset())
        folder = self._folder(job)
        made = {(artifact.name, artifact.size) for artifact in job.artifacts}
        rows = [row for row in results(job, None, folder) if trusted or (row["file"], row["size"]) in made]
        here = frozenset(path.name for path in folder.glob("*"))
        settled = abs(time.time_ns() - changed) > _SETTLED_S * 1e9
        found = _Files(job, changed if settled else -1, trusted, tuple(rows), here)
        self._files[job.id] = found
        return found

    def _with_heads(self, view: JobView) -> tuple[tuple[dict[str, Any], ...], bool]:
        until = time.monotonic() + _HEADS_S
        first: dict[str, str] = {}
        rows = [dict(row) for row in view.files]
        whole = True
        for row in rows:
            if "type" not in row or row["file"] not in view.here:
                continue
            path, size = view.folder / row["file"], row["size"]
            head = self._head(path, size, until, output_of_row(row))
            whole = whole and (path, size) in self._heads
            if head:
                row["bpw"], tensor_types = head
                row["same_tensors_as"] = first.get(tensor_types)
                first.setdefault(tensor_types, row["type"])
        return tuple(rows), whole

    def _head(self, path: Path, size: int, until: float, output: OutputFormat) -> tuple[float, str] | None:
        """(bits per weight, digest of every tensor's type) of a quant; each file is read once, in its turn."""
        if (path, size) not in self._heads and time.monotonic() < until:
            try:
                bpw, types = output.read_types(path)
            except (SourceError, OSError) as error:
                logger.warning("%s cannot be read: %s", path, error)
                self._heads[path, size] = None
            else:
                self._heads[path, size] = round(bpw, 3), types
        return self._heads.get((path, size))

    def _log_tail(self, job: Job) -> str:
        """The end of the log that was written last."""
        try:
            newest = max(
                self._worker.records.store.log_folder(job.id).glob("*.log"), key=lambda path: path.stat().st_mtime
            )
            with newest.open("rb") as file:
                file.seek(max(0, newest.stat().st_size - _LOG_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except (ValueError, OSError):  # none yet, or just removed
            return ""
        lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
        return "\n".join(lines[-_LOG_LINES:])

    def _folder(self, job: Job) -> Path:
        return self._out / job.request.folder


def _stopping(live: RunState | None) -> str:
    if live is None or not live.stop.by_user:
        return ""
    return "cancelling" if live.stop.cancelled.is_set() else "pausing"

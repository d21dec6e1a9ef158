"""What stands behind the page, one `Services` a process: settings, job records, the worker, and llama.cpp.

The page must be there at once, but llama.cpp may have to be built first, which takes minutes. So it is made ready in
the worker's thread, before the first job; `preparation` says how far that is. If it fails, the thread waits until
somebody asks for another try. Nothing here knows about gradio: the page asks for `views()` again and again, and
whoever asks too often gets the answer of a moment ago.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ggufy import throttle
from ggufy.catalog import BY_NAME
from ggufy.connection import Connection, connect
from ggufy.errors import Cancelled, GgufyError, HubAway, SourceError, UsageError
from ggufy.intake import Wish, make_job
from ggufy.job import Job, Status
from ggufy.llama.install import Llama, ensure
from ggufy.plan import folder_name
from ggufy.progress import Snapshot
from ggufy.runner import Runner
from ggufy.settings import Settings
from ggufy.sources.gguf import read_head
from ggufy.terminal import results
from ggufy.worker import Worker

logger = logging.getLogger(__name__)
_AWAY_S = 10.0  # between tries while the Hub is away at the start
_FRESH_S = 0.4  # all tabs together look at the disk at most so often
_HEADS_S = 0.2  # and spend so long on files not read before; what is left over is read the next time


def _connect_patiently(settings: Settings) -> Connection:
    """A page that starts while the Hub is away, as after an outage of both, waits for it."""
    while True:
        try:
            return connect(settings)
        except HubAway as error:
            logger.warning("waiting for the Hub: %s", error)
            time.sleep(_AWAY_S)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How far llama.cpp's set-up is."""

    ready: bool = False
    done: int = 0  # steps of the build
    total: int = 0  # 0: not known yet
    text: str = ""  # what is being done
    error: str = ""  # one sentence, when it failed


@dataclass(frozen=True, kw_only=True)
class JobView:
    """One job as it is at a moment."""

    job: Job
    snapshot: Snapshot | None = None  # while it waits or runs
    stopping: bool = False  # cancelled, and its tool is just ending
    files: tuple[dict[str, Any], ...] = ()  # as `ggufy.terminal.results` makes them, with bpw
    forecast: dict[str, int] = field(default_factory=dict)  # quant type -> bytes, before they are made
    folder: Path


class Services:
    """Everything that the page may do. Any thread may call any method."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.connection = _connect_patiently(settings)
        self.worker = Worker(store=self.connection.store, make_runner=self._make_runner, wanted=self.connection.ours)
        self._preparation = Preparation()
        self._again = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._views: tuple[float, tuple[JobView, ...]] = (-math.inf, ())
        self._read_until = 0.0
        self._heads: dict[tuple[Path, int], tuple[float, str]] = {}

    def start(self) -> None:
        """Starts the worker, which goes on with every unfinished job."""
        for job in self.worker.start():
            logger.info("job %s is taken up again", job.id)

    def shutdown(self) -> None:
        """Ends the running tool; what is unfinished goes on at the next start."""
        self._stopping.set()
        self._again.set()
        self.worker.shutdown()
        self.connection.close()

    @property
    def preparation(self) -> Preparation:
        return self._preparation

    def prepare_again(self) -> None:
        """Another try after a failed set-up."""
        self._check_allowed()
        self._again.set()

    def submit(self, wish: Wish) -> Job:
        """Pins the wish and queues the job. Raises a GgufyError, in one sentence, for what cannot work."""
        self._check_allowed()
        here = wish.vocab or Path(wish.source).expanduser().exists()
        if self.settings.space_id and here:  # errors quote what they find, and this is not the visitor's machine
            raise UsageError("on a Space the source is demo or owner/repo:file.pth, and no file of this machine.")
        job = self.worker.submit(make_job(replace(wish, owner=self.connection.owner), self.settings))
        self._look_again()
        return job

    def cancel(self, job_id: str) -> None:
        """Ends a waiting or running job; one that has ended already stays as it is."""
        self._check_allowed()
        self.worker.cancel(job_id)
        self._look_again()

    def retry(self, job_id: str) -> None:
        """Queues a job again. Raises UsageError if there is none of that id."""
        self._check_allowed()
        job = next((job for job in self.worker.jobs() if job.id == job_id), None)
        if job is None:
            raise UsageError("this job is not there any more: reload the page.")
        self.worker.submit(job)
        self._look_again()

    def file(self, job_id: str, name: str) -> Path | None:
        """Path of a finished file of a job, or None.

        Both come from a visitor: they are compared with what there is, and never become part of a path.
        """
        for view in self.views():
            if view.job.id == job_id and name in (row["file"] for row in view.files):
                return view.folder / name
        return None

    def views(self) -> tuple[JobView, ...]:
        """All jobs, newest first."""
        with self._lock:
            taken, views = self._views
            if time.monotonic() - taken > _FRESH_S:
                self._read_until = time.monotonic() + _HEADS_S
                views = tuple(self._view(job) for job in reversed(self.worker.jobs()))
                self._views = time.monotonic(), views
            return views

    def _view(self, job: Job) -> JobView:
        live = self.worker.live(job.id)
        forecast = live.forecast if live else None
        return JobView(
            job=job,
            snapshot=live.progress.snapshot() if live else None,
            stopping=live is not None and live.stop.cancelled.is_set(),
            files=self._files(job),
            forecast={t: f.size for t, f in forecast.quants.items()} if forecast else {},
            folder=self._folder(job).absolute(),
        )

    def _files(self, job: Job) -> tuple[dict[str, Any], ...]:
        """The job's files, with bits per weight and equal tensors as the files themselves have them."""
        folder = self._folder(job)
        made = {artifact.name for artifact in job.artifacts}
        # A job that never got to work may name files that are another job's.
        trusted = job.status in (Status.RUNNING, Status.DONE)
        rows = [row for row in results(job, None, folder) if trusted or row["file"] in made]
        first: dict[str, str] = {}
        for row in rows:
            if "type" in row and (head := self._head(folder / row["file"], row["size"])):
                row["bpw"], tensor_types = head
                row["same_tensors_as"] = first.get(tensor_types)
                first.setdefault(tensor_types, row["type"])
        return tuple(rows)

    def _head(self, path: Path, size: int) -> tuple[float, str] | None:
        """(bits per weight, digest of every tensor's type) of a GGUF; each file is read once, in its turn."""
        if (path, size) not in self._heads:
            if time.monotonic() > self._read_until:
                return None
            try:
                tensors = read_head(path).tensors.values()
            except (SourceError, OSError) as error:
                logger.warning("%s cannot be read: %s", path, error)
                return None
            bits = sum(t.size for t in tensors) * 8 / sum(t.elements for t in tensors)
            types = repr(sorted((t.name, t.type) for t in tensors))
            self._heads[path, size] = round(bits, 3), hashlib.sha256(types.encode()).hexdigest()
        return self._heads[path, size]

    def _folder(self, job: Job) -> Path:
        return self.settings.out / folder_name(job.request.name)

    def _look_again(self) -> None:
        with self._lock:
            self._views = -math.inf, ()

    def _check_allowed(self) -> None:
        if self.settings.read_only:
            raise UsageError("this Space is for looking only: duplicate it, or run ggufy on your own machine.")

    # ---- llama.cpp, in the worker's thread

    def _make_runner(self) -> Runner:
        while True:
            try:
                llama = self._ensure_llama()
                self._report(0, 0, "waiting for another runner" if self.connection.lease else "")
                self.connection.acquire(self._stopping.is_set)
                runner = Runner(settings=self.settings, llama=llama, connection=self.connection)
            except Cancelled:
                raise
            except GgufyError as error:
                logger.warning("llama.cpp is not ready: %s", error)
                self._preparation = replace(self._preparation, error=str(error))
            except Exception as error:  # without this the thread would end, and every job would wait for ever
                logger.exception("llama.cpp is not ready")
                message = f"unexpected error, please report it: {type(error).__name__}: {error}"
                self._preparation = replace(self._preparation, error=message)
            else:
                self._preparation = Preparation(ready=True)
                return runner
            self._again.wait()
            self._again.clear()
            self._preparation = Preparation()

    def _ensure_llama(self) -> Llama:
        self._report(0, 0, "")
        return ensure(
            self.settings.cache,
            override=self.settings.llama_dir,
            threads=max(1, math.floor(throttle.allowed_cpus())),
            progress=self._report,
            pip_environment=self.settings.pip_environment,
            types=BY_NAME,
        )

    def _report(self, done: int, total: int, text: str) -> None:
        if self._stopping.is_set():
            raise Cancelled("stopped while llama.cpp was being made ready.")
        self._preparation = Preparation(done=done, total=total, text=text)

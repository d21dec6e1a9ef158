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
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ggufy import throttle
from ggufy.access import STRANGER, Visitor, check_work, is_owner
from ggufy.catalog import BY_NAME, FIRST
from ggufy.chats import Chats
from ggufy.connection import connect
from ggufy.errors import Cancelled, GgufyError, SourceError, UsageError
from ggufy.fetched import FetchedModels
from ggufy.files import free_bytes, user_path
from ggufy.hub.identity import account_of
from ggufy.intake import Wish, is_query, make_job, model_name
from ggufy.job import Job, Status
from ggufy.jobs.run_state import Live
from ggufy.kept import Kept
from ggufy.llama.install import Llama, ensure
from ggufy.plan import IMATRIX, folder_name
from ggufy.preview import Cost, Order, Preview, cost, preview
from ggufy.progress import Snapshot
from ggufy.quantize import target
from ggufy.quantize.mixes import RWKV
from ggufy.runner import Runner
from ggufy.settings import Settings
from ggufy.sources.gguf import read_head
from ggufy.sources.hub import is_reference
from ggufy.sources.inspect import Report, inspect
from ggufy.sources.search import Found, search
from ggufy.terminal import results
from ggufy.worker import Worker

logger = logging.getLogger(__name__)
T = TypeVar("T")
_AGAIN_S = 60.0  # between tries of what did not succeed, unless somebody asks for one sooner
_END_S = 1.0  # that the end waits for the tool, and again for the Hub
_FRESH_S = 0.4  # all tabs together look at the disk at most so often
_MACHINE_S = 2.0
_MOST_LISTED = 40  # files of a folder
_LOG_BYTES, _LOG_LINES = 6000, 40
_HEADS_S = 0.2  # and spend so long on files not read before; what is left over is read the next time


def _stopping(live: Live | None) -> str:
    if live is None or not live.stop.by_user:
        return ""
    return "cancelling" if live.stop.cancelled.is_set() else "pausing"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How far llama.cpp's set-up is."""

    ready: bool = False
    done: int = 0  # steps of the build
    total: int = 0  # 0: not known yet
    text: str = ""  # what is being done
    error: str = ""  # one sentence, when it failed


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How busy this machine is."""

    cpu: float = 0.0  # share of what this process may use, 0 to 1
    memory: int = 0  # bytes
    memory_used: int = 0
    disk_free: int = 0  # bytes, where results go
    threads: int = 1  # for the tools
    most_threads: int = 1
    percent: int = 100  # of the allowed CPU time that the work may use; throttle.AUTOMATIC


@dataclass(frozen=True, kw_only=True)
class JobView:
    """One job as it is at a moment."""

    job: Job
    snapshot: Snapshot | None = None  # while it waits or runs
    stopping: str = ""  # cancelling or pausing: its tool is just ending
    files: tuple[dict[str, Any], ...] = ()  # as `ggufy.terminal.results` makes them, with bpw
    forecast: dict[str, int] = field(default_factory=dict)  # quant type -> bytes, before they are made
    folder: Path
    log: str = ""  # what its tools printed last, while it runs or when it failed


class Services:
    """Everything that the page may do. Any thread may call any method."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.connection = connect(settings)
        records = self.connection.records
        self.worker = Worker(records=records, make_runner=self._make_runner, wanted=self.connection.ours)
        self._stopping = threading.Event()
        self.limit = throttle.thread_limit(settings.threads, settings.cpu_percent)
        self.llama: Llama | None = None  # once it is ready
        self._preparation = Preparation()
        self._cpu_meter = throttle.CpuMeter()
        self._machine = (-math.inf, Machine(memory=throttle.memory_limit()))
        hub = self.connection.hub
        self.fetched = FetchedModels(hub, settings.cache, self._stopping.is_set) if hub else None
        self.chats = Chats(self._ready_llama, self._models, self.limit)
        self._accounts: Kept[Visitor] = Kept(300.0)
        self._reports: Kept[Report] = Kept(600.0)
        self._previews: Kept[Preview] = Kept(600.0)
        self._again = threading.Event()
        self._lock = threading.Lock()
        self._views: tuple[float, tuple[JobView, ...]] = (-math.inf, ())
        self._read_until = 0.0
        self._heads: dict[tuple[Path, int], tuple[float, str]] = {}

    def start(self) -> None:
        """Starts the worker, which goes on with every unfinished job; returns at once."""
        self.connection.start()
        for job in self.worker.start():
            logger.info("job %s is taken up again", job.id)

    def shutdown(self) -> None:
        """Ends the running tool; what is unfinished goes on at the next start."""
        self._stopping.set()
        self._again.set()
        self.worker.shutdown(_END_S)
        self.connection.close(_END_S)
        self.chats.close()

    @property
    def preparation(self) -> Preparation:
        return self._preparation

    def prepare_again(self, visitor: Visitor = STRANGER) -> None:
        """Another try after a failed set-up."""
        check_work(visitor, self.settings)
        self._again.set()

    def submit(self, wish: Wish, visitor: Visitor = STRANGER) -> Job:
        """Pins the wish and queues the job. Raises a GgufyError, in one sentence, for what cannot work."""
        check_work(visitor, self.settings)
        self.check_places(wish, visitor)
        job = self.worker.submit(make_job(replace(wish, owner=self.connection.known_owner()), self.settings))
        self._look_again()
        return job

    def check_places(self, wish: Wish, visitor: Visitor) -> None:
        """Errors quote what they find, and a Space is not its visitors' machine: raises UsageError when one of them
        names a file of it."""
        if is_owner(visitor, self.settings):
            return
        names = (wish.source, wish.vocab, wish.imatrix, wish.calibration, wish.evaluation)
        elsewhere = [
            name for name in names if name and "://" in name and not is_reference(name)
        ]  # nor is its network theirs
        if wish.vocab or elsewhere or any(name and (name[0] in "/.~" or Path(name).exists()) for name in names):
            raise UsageError("on a Space the source is demo or owner/repo:file.pth, and no file of this machine.")

    def who(self, token: str) -> Visitor:
        """The account that a token belongs to; asked once in a while."""
        return self._accounts.get(hashlib.sha256(token.encode()).hexdigest(), lambda: account_of(token))

    def is_query(self, text: str) -> bool:
        """True for words to search for, False for what can be a source already."""
        return is_query(text)

    def models_in(self, folder: str, visitor: Visitor = STRANGER) -> list[Path]:
        """The .pth and .gguf files of a folder on this machine, for its owner; none if it is no folder."""
        if not is_owner(visitor, self.settings):
            return []
        try:
            path = user_path(folder)
            if not path.is_dir():
                return []
            found = [entry for entry in path.iterdir() if entry.suffix in (".pth", ".gguf") and entry.is_file()]
        except (OSError, UsageError):  # no permission, no path at all
            return []
        return sorted(found)[:_MOST_LISTED]

    def search(self, query: str, visitor: Visitor = STRANGER) -> list[Found]:
        """Repos of that name on the Hub, which anybody may look for. Raises HubAway."""
        return search(query, token=self.settings.hf_token if is_owner(visitor, self.settings) else None)

    def inspect(self, source: str, visitor: Visitor = STRANGER, *, vocab: str | None = None) -> Report:
        """What a source is, from its headers alone. Raises UsageError for what the visitor may not look at."""
        self.check_places(Wish(source=source, quant_types=(), vocab=vocab), visitor)
        owner = is_owner(visitor, self.settings)
        settings = self.settings if owner else replace(self.settings, hf_token=None)  # what it may see is the owner's
        return self._reports.get((source, vocab, owner), lambda: inspect(source, settings, vocab=vocab))

    def look(
        self,
        source: str,
        visitor: Visitor = STRANGER,
        *,
        outtype: str | None = None,
        vocab: str | None = None,
        mix: str = RWKV,
    ) -> Preview:
        """What a source is, and what its quants would be. Raises UsageError, HubAway."""
        report, llama = self.inspect(source, visitor, vocab=vocab), self.llama
        key = (source, vocab, is_owner(visitor, self.settings), outtype, mix, llama is not None)
        return self._previews.get(
            key, lambda: preview(report, self.settings, llama=llama, outtype=outtype, vocab=vocab, mix=mix)
        )

    def cost(
        self,
        source: str,
        visitor: Visitor,
        order: Order,
        *,
        outtype: str | None = None,
        vocab: str | None = None,
        mix: str = RWKV,
    ) -> Cost | None:
        """What a job would take; None where that is not known yet."""
        found = self.look(source, visitor, outtype=outtype, vocab=vocab, mix=mix)
        if not found.report.path:
            return None
        folder = folder_name(model_name(Path(found.report.path).stem))
        account = self.connection.owner
        where = f"{account}/{folder}" if account else str(self.settings.out / folder)
        return cost(found, order, self.settings, where=where, account=account, threads=self.limit())

    def cancel(self, job_id: str, visitor: Visitor = STRANGER) -> None:
        """Ends a waiting, running or paused job; one that has ended already stays as it is."""
        check_work(visitor, self.settings)
        self.worker.cancel(job_id)
        self._look_again()

    def pause(self, job_id: str, visitor: Visitor = STRANGER) -> None:
        """Stops a waiting or running job until somebody resumes it, also over restarts."""
        check_work(visitor, self.settings)
        self.worker.pause(job_id)
        self._look_again()

    def retry(self, job_id: str, visitor: Visitor = STRANGER) -> None:
        """Queues a job again. Raises UsageError if there is none of that id."""
        check_work(visitor, self.settings)
        self.worker.submit(self._known(job_id))
        self._look_again()

    def make_size(self, job_id: str, size: int, visitor: Visitor = STRANGER) -> Job:
        """Queues a job for one more file of what a job was made from: of `size` bytes, one of its frontier. Raises
        UsageError for any other."""
        check_work(visitor, self.settings)
        job = self._known(job_id)
        point = next((point for point in job.frontier if point.size == size), None)
        if point is None:
            raise UsageError("this size is not on the list any more: reload the page.")
        label = f"{target.size_word(size)}-{target.nearest(point.bpw)}{target.SUFFIX}"
        return self._another(job, targets=(label,), mode=job.request.mode)

    def find_sizes(self, job_id: str, visitor: Visitor = STRANGER) -> Job:
        """Queues a job that finds what every size is worth, of what a job was made from."""
        check_work(visitor, self.settings)
        return self._another(self._known(job_id), targets=(), mode=target.STANDARD)

    def _another(self, job: Job, *, targets: tuple[str, ...], mode: str) -> Job:
        """A job with the same base, imatrix and place."""
        request = replace(job.request, quant_types=(), targets=targets, mode=mode)
        queued = self.worker.submit(Job(request=request))
        self._look_again()
        return queued

    def _known(self, job_id: str) -> Job:
        job = next((job for job in self.worker.jobs() if job.id == job_id), None)
        if job is None:
            raise UsageError("this job is not there any more: reload the page.")
        return job

    def set_threads(self, threads: int, visitor: Visitor = STRANGER) -> None:
        """How many threads the tools may use, from now on and also those that run."""
        check_work(visitor, self.settings)
        self.limit.set(threads)

    def set_cpu_percent(self, percent: int, visitor: Visitor = STRANGER) -> None:
        """What part of the allowed CPU time the work may use, from now on: one of throttle.CPU_PERCENTS."""
        check_work(visitor, self.settings)
        if percent in throttle.CPU_PERCENTS:
            self.limit.share.set(percent)

    def machine(self) -> Machine:
        """How busy this machine is."""
        with self._lock:
            taken, machine = self._machine
            if time.monotonic() - taken > _MACHINE_S:
                machine = replace(
                    machine,
                    cpu=self._cpu_meter(),
                    memory_used=max(0, machine.memory - throttle.memory_available()),
                    disk_free=free_bytes(self.settings.out),
                )
                self._machine = time.monotonic(), machine
            limit = self.limit
            return replace(machine, threads=limit(), most_threads=limit.most, percent=limit.share.percent)

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

    def _models(self) -> dict[str, Path]:
        """The models that can be talked to, of the newest job first: finished files here, or in an output repo."""
        found: dict[str, Path] = {}
        for view in self.views():
            rows = [row for row in view.files if row["kind"] != IMATRIX]
            for row in sorted(rows, key=lambda row: row.get("type") != FIRST):
                path, repo_id = view.folder / row["file"], view.job.request.repo_id
                if path.exists():
                    found.setdefault(row["file"], path)
                elif self.fetched and repo_id:
                    found.setdefault(row["file"], self.fetched.path(repo_id, row["file"]))
        return found

    def fetch_model(self, name: str) -> Iterator[float]:
        """Brings a model here that is in its output repo only; yields the fraction that has come."""
        path = self._models().get(name)
        if path is None or path.exists() or self.fetched is None:
            return
        for view in self.views():
            for row in view.files:
                if row["file"] == name and self.fetched.path(view.job.request.repo_id, name) == path:
                    yield from self.fetched.fetch(view.job.request.repo_id, name, row["size"])
                    return

    def _ready_llama(self) -> Llama:
        if self.llama is None:
            raise UsageError("llama.cpp is not ready yet: wait until the page says that it is.")
        return self.llama

    def _view(self, job: Job) -> JobView:
        live = self.worker.live(job.id)
        forecast = live.forecast if live else None
        return JobView(
            job=job,
            snapshot=live.progress.snapshot() if live else None,
            stopping=_stopping(live),
            files=self._files(job),
            forecast=forecast.sizes if forecast else {},
            folder=self._folder(job).absolute(),
            log=self._log_tail(job) if job.status in (Status.RUNNING, Status.FAILED) else "",
        )

    def _log_tail(self, job: Job) -> str:
        """The end of the log that was written last."""
        try:
            newest = max(self.connection.store.log_folder(job.id).glob("*.log"), key=lambda path: path.stat().st_mtime)
            with newest.open("rb") as file:
                file.seek(max(0, newest.stat().st_size - _LOG_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except (ValueError, OSError):  # none yet, or just removed
            return ""
        lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
        return "\n".join(lines[-_LOG_LINES:])

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
                head = read_head(path)
            except (SourceError, OSError) as error:
                logger.warning("%s cannot be read: %s", path, error)
                return None
            types = repr(sorted((t.name, t.type) for t in head.tensors.values()))
            self._heads[path, size] = round(head.bpw, 3), hashlib.sha256(types.encode()).hexdigest()
        return self._heads[path, size]

    def _folder(self, job: Job) -> Path:
        return self.settings.out / folder_name(job.request.name)

    def _look_again(self) -> None:
        with self._lock:
            self._views = -math.inf, ()

    # ---- llama.cpp, in the worker's thread

    def _make_runner(self) -> Runner:
        llama = self._prepared(self._ensure_llama)
        self._prepared(self._acquire, again_s=_AGAIN_S)
        self.llama = llama
        self._preparation = Preparation(ready=True)
        threading.Thread(target=self._look_at_demo, name="ggufy-demo", daemon=True).start()
        return Runner(settings=self.settings, llama=llama, connection=self.connection, limit=self.limit)

    def _prepared(self, call: Callable[[], T], again_s: float | None = None) -> T:
        """`call()`, until it succeeds: again when somebody asks for it, or after so many seconds."""
        while True:
            try:
                return call()
            except Cancelled:
                raise
            except GgufyError as error:
                logger.warning("not ready: %s", error)
                self._preparation = Preparation(error=str(error))
            except Exception as error:  # without this the thread would end, and every job would wait for ever
                logger.exception("not ready")
                message = f"unexpected error, please report it: {type(error).__name__}: {error}"
                self._preparation = Preparation(error=message)
            self._again.wait(again_s)
            self._again.clear()

    def _acquire(self) -> None:
        self.connection.acquire(self._stopping.is_set, lambda reason: self._report(0, 0, reason))

    def _look_at_demo(self) -> None:
        """What most visitors see first is known when they come."""
        try:
            self.look("demo")
        except GgufyError as error:
            logger.warning("the demo cannot be looked at: %s", error)

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

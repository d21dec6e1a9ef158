"""What stands behind the page, one `Services` a process: settings, job records, the worker, and llama.cpp.

The page must be there at once, but llama.cpp may have to be built first, which takes minutes. So it is made ready in
the worker's thread, before the first job; `preparation` says how far that is. If it fails, the thread waits until
somebody asks for another try. Nothing here knows about gradio: the page asks again and again, see job_views.py.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ggufy import throttle
from ggufy.access import STRANGER, Visitor, check_work, is_owner
from ggufy.catalog import BY_NAME, FIRST
from ggufy.chat_models import ChatModel, first_choice
from ggufy.chats import Chats
from ggufy.connection import Connection, connect
from ggufy.errors import Cancelled, GgufyError, HubAway, UsageError
from ggufy.fetched import FetchedModels
from ggufy.files import free_bytes
from ggufy.hub.identity import account_of
from ggufy.intake import Wish, is_query, make_job, model_name
from ggufy.job import Job
from ggufy.job_views import JobView as JobView
from ggufy.job_views import JobViews
from ggufy.kept import Kept
from ggufy.llama.install import Llama, ensure
from ggufy.plan import IMATRIX, folder_name
from ggufy.preview import Cost, Order, Preview, cost, preview
from ggufy.quantize import target
from ggufy.quantize.mixes import RWKV
from ggufy.runner import Runner
from ggufy.settings import Settings
from ggufy.sources.hub import is_reference
from ggufy.sources.inspect import Report, inspect
from ggufy.sources.search import Found, search
from ggufy.worker import Worker

logger = logging.getLogger(__name__)
_AWAY_S = 10.0  # between tries while the Hub is away at the start
_MACHINE_S = 2.0
_MOST_LISTED = 40  # files of a folder


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
class Machine:
    """How busy this machine is."""

    cpu: float = 0.0  # share of what this process may use, 0 to 1
    memory: int = 0  # bytes
    memory_used: int = 0
    disk_free: int = 0  # bytes, where results go
    threads: int = 1  # for the tools
    most_threads: int = 1
    percent: int = 100  # of the allowed CPU time that the work may use; throttle.AUTOMATIC


class Services:
    """Everything that the page may do. Any thread may call any method."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.connection = _connect_patiently(settings)
        self.worker = Worker(store=self.connection.store, make_runner=self._make_runner, wanted=self.connection.ours)
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
        self._views = JobViews(self.worker, settings.out)

    def start(self) -> None:
        """Starts the worker, which goes on with every unfinished job."""
        for job in self.worker.start():
            logger.info("job %s is taken up again", job.id)

    def shutdown(self) -> None:
        """Ends the running tool; what is unfinished goes on at the next start."""
        self._stopping.set()
        self._again.set()
        self.chats.close()
        self.worker.shutdown()
        self.connection.close()

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
        job = self.worker.submit(make_job(replace(wish, owner=self.connection.owner), self.settings))
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
        path = Path(folder).expanduser()
        if not is_owner(visitor, self.settings) or not path.is_dir():
            return []
        try:
            found = [entry for entry in path.iterdir() if entry.suffix in (".pth", ".gguf") and entry.is_file()]
        except OSError:  # no permission
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
            due = time.monotonic() - taken > _MACHINE_S
            if due:  # whoever comes meanwhile gets the figures of before
                self._machine = time.monotonic(), machine
        if due:
            free = machine.memory - throttle.memory_available()
            machine = replace(
                machine, cpu=self._cpu_meter(), memory_used=max(0, free), disk_free=free_bytes(self.settings.out)
            )
            with self._lock:
                self._machine = time.monotonic(), machine
        limit = self.limit
        return replace(machine, threads=limit(), most_threads=limit.most, percent=limit.share.percent)

    def file(self, job_id: str, name: str) -> Path | None:
        """Path of a finished file of a job, or None.

        Both come from a visitor: they are compared with what there is, and never become part of a path.
        """
        view = self._views.of(job_id)
        return view.folder / name if view and name in (row["file"] for row in view.files) else None

    def views(self) -> tuple[JobView, ...]:
        """All jobs, newest first."""
        return self._views()

    def detailed(self, view: JobView, *, heads: bool = True, log: bool = True) -> JobView:
        """A view with what the heads of its files say, and the end of its log."""
        return self._views.detailed(view, heads=heads, log=log)

    def _models(self) -> dict[str, Path]:
        """The models that can be talked to: finished files here, or in an output repo; the one to begin with first."""
        models = self._chat_models()
        first = first_choice(models.values(), throttle.memory_available())
        order = sorted(models, key=lambda name: (name != first, models[name].base))
        return {name: models[name].path for name in order}

    def _chat_models(self) -> dict[str, ChatModel]:
        """By name, of the newest job first."""
        found: dict[str, ChatModel] = {}
        for view in self._views(whole=True):
            repo_id = view.job.request.repo_id
            rows = [row for row in view.files if row["kind"] != IMATRIX]
            for row in sorted(rows, key=lambda row: row.get("type") != FIRST):
                if row["file"] in view.here:
                    path, repo = view.folder / row["file"], ""
                elif self.fetched and repo_id:
                    path, repo = self.fetched.path(repo_id, row["file"]), repo_id
                else:
                    continue
                found.setdefault(row["file"], ChatModel.of(row, path, repo))
        return found

    def fetch_model(self, name: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[float]:
        """Brings a model here that is in its output repo only; yields the fraction that has come. Raises HubError,
        DiskError, and Cancelled once `stopped` says so."""
        model = self._chat_models().get(name)
        if model and model.repo_id and self.fetched:
            yield from self.fetched.fetch(model.repo_id, name, model.size, stopped)

    def _ready_llama(self) -> Llama:
        if self.llama is None:
            raise UsageError("llama.cpp is not ready yet: wait until the page says that it is.")
        return self.llama

    def _look_again(self) -> None:
        self._views.look_again()

    # ---- llama.cpp, in the worker's thread

    def _make_runner(self) -> Runner:
        while True:
            try:
                llama = self._ensure_llama()
                self._report(0, 0, "waiting for another runner" if self.connection.lease else "")
                self.connection.acquire(self._stopping.is_set)
                runner = Runner(settings=self.settings, llama=llama, connection=self.connection, limit=self.limit)
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
                self.llama = llama
                self._preparation = Preparation(ready=True)
                threading.Thread(target=self._look_at_demo, name="ggufy-demo", daemon=True).start()
                return runner
            self._again.wait()
            self._again.clear()
            self._preparation = Preparation()

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

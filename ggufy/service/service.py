"""What stands behind the page, one `Services` a process: settings, job records, the worker, and llama.cpp.

Nothing here knows about gradio: the page asks again and again, see job_views.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ggufy.core.errors import GgufyError, UsageError
from ggufy.core.job import RESTING, Job, Request
from ggufy.core.names import model_name, repo_name
from ggufy.core.outputs import names_of_output
from ggufy.jobs.estimate import BaseOptions, Cost, EstimateOptions, Preview, cost, preview
from ggufy.jobs.options import JobOptions
from ggufy.jobs.orders import ordered
from ggufy.jobs.queue import Worker
from ggufy.jobs.request import file_stem, is_query, make_job
from ggufy.jobs.runner import Runner
from ggufy.jobs.several import make_each
from ggufy.jobs.workspace import connect
from ggufy.quantize.search import target
from ggufy.service.access import STRANGER, Visitor, check_work, is_owner, may_see
from ggufy.service.accounts import Accounts
from ggufy.service.chat_models import ChatModel, first_choice, models_of
from ggufy.service.conversations import Chats
from ggufy.service.following import Following
from ggufy.service.health import Health, Watchdog
from ggufy.service.job_views import JobView as JobView
from ggufy.service.job_views import JobViews
from ggufy.service.library import Library
from ggufy.service.machine_load import LoadMeter
from ggufy.service.model_cache import ModelCache
from ggufy.service.preparation import Preparation, Preparer
from ggufy.service.strangers import check_count, for_stranger
from ggufy.service.webhook import Webhook
from ggufy.sources.format import Report
from ggufy.sources.inspect import inspect
from ggufy.sources.locate import models_in
from ggufy.sources.search import Found, search
from ggufy.steps.outputs.gguf import GGUF
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.system.ttl_cache import TtlCache

logger = logging.getLogger(__name__)
BASE = BaseOptions()
_END_S = 1.0  # that the end waits for the tool, and again for the Hub
_MOST_WAITING = 10  # jobs of strangers at a time


class Services:
    """Everything that the page may do. Any thread may call any method."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.workspace = connect(settings)
        records = self.workspace.records
        self.worker = Worker(
            records=records,
            make_runner=self._make_runner,
            wanted=self.workspace.ours,
            ended=Webhook(settings.webhook).tell,
        )
        self._stopping = threading.Event()
        self.limit = resources.thread_limit(settings.threads, settings.cpu_percent)
        self._preparer = Preparer(settings)
        self.machine = LoadMeter(settings.out, self.limit)
        hub = next(iter(self.workspace.hubs.values()), None)
        self.fetched = ModelCache(hub, settings.cache, self._stopping.is_set) if hub else None
        self.chats = Chats(self._preparer.ready_llama, self._models, self.limit, lambda who: is_owner(who, settings))
        self.who = Accounts(settings.hf_token, lambda: self.workspace.owner)  # whose token a caller has shown
        self._reports: TtlCache[Report] = TtlCache(lambda report: report.lasts_s)
        self._previews: TtlCache[Preview] = TtlCache(lambda found: found.report.lasts_s)
        self._views = JobViews(self.worker, settings.out)
        self.health = Health(settings, self.worker, self.workspace)
        self.library = Library(settings, self.worker, self._views, self._known)
        self.following = Following(
            settings,
            self.workspace,
            make=lambda options: Job(request=self._pin(options)),
            queue=lambda job: self._queue(job.request),
            stopped=self._stopping.is_set,
        )

    def start(self) -> None:
        """Starts the worker, which goes on with every unfinished job; returns at once."""
        self.workspace.start()
        for job in self.worker.start():
            logger.info("job %s is taken up again", job.id)
        self.following.start()
        Watchdog(self.worker.silent_s, self._stopping.wait).start()

    def shutdown(self) -> None:
        """Ends the running tool; what is unfinished goes on at the next start."""
        self._stopping.set()
        self.health.close()
        self.following.close()
        self._preparer.stop()
        self.worker.shutdown(_END_S)
        self.workspace.close(_END_S)
        self.chats.close()

    @property
    def preparation(self) -> Preparation:
        return self._preparer.state

    def prepare_again(self, visitor: Visitor = STRANGER) -> None:
        """Another try after a failed set-up."""
        check_work(visitor, self.settings)
        self._preparer.try_again()

    def submit(self, options: JobOptions, visitor: Visitor = STRANGER) -> Job:
        """Pins the wish and queues the job. Raises a GgufyError, in one sentence, for what cannot work."""
        check_work(visitor, self.settings)
        if not is_owner(visitor, self.settings):
            options = for_stranger(options)
            self._check_room()
        return self._queue(self._pin(options))

    def submit_each(
        self, options: JobOptions, sources: Sequence[str], visitor: Visitor = STRANGER
    ) -> tuple[list[Job], dict[str, GgufyError]]:
        """Queues a job for each source; returns them, and by source why others were refused. Raises GgufyError."""
        check_work(visitor, self.settings)
        if not is_owner(visitor, self.settings):
            check_count(sources)
        return make_each(options, sources, lambda wish: self.submit(wish, visitor))

    def _pin(self, options: JobOptions) -> Request:
        made = make_job(self.workspace.addressed(options), self.settings).request
        hidden = any(job.request.private and job.request.shares_repo(made) for job in self.worker.jobs())
        return replace(made, private=made.private or hidden)  # a repo made private stays so

    def _queue(self, request: Request) -> Job:
        job = self.worker.submit(Job(request=request))
        self._views.look_again()
        return job

    def _check_room(self) -> None:
        """Raises UsageError while strangers have as many jobs here as they may."""
        waiting = [job for job in self.worker.jobs() if job.request.by_stranger and job.status not in RESTING]
        if len(waiting) >= _MOST_WAITING:
            raise UsageError(
                "{count} jobs of visitors wait on this Space already: try again later.", count=len(waiting)
            )

    def is_query(self, text: str, visitor: Visitor = STRANGER) -> bool:
        """True for words to search for, False for what can be a source already."""
        return is_query(text, hub_only=not is_owner(visitor, self.settings))

    def models_in(self, folder: str, visitor: Visitor = STRANGER) -> list[Path]:
        """The models of a folder on this machine to choose from, for its owner; none if it is no folder, or has only
        one, which the folder then stands for."""
        return models_in(folder) if is_owner(visitor, self.settings) else []

    def search(self, query: str, visitor: Visitor = STRANGER) -> list[Found]:
        """Repos of that name on the Hub, which anybody may look for. Raises HubAway."""
        return search(query, token=self.settings.hf_token if is_owner(visitor, self.settings) else None)

    def inspect(
        self, source: str, visitor: Visitor = STRANGER, *, vocab: str | None = None, output: str = GGUF.name
    ) -> Report:
        """What a source is, from its headers alone, and whether quants of a format can be made of it. Raises
        UsageError for what the visitor may not look at."""
        owner, settings = is_owner(visitor, self.settings), self.settings
        if not owner:
            for_stranger(JobOptions(source=source, quant_types=(), vocab=vocab))
            settings = settings.for_strangers()
        return self._reports.get(
            (source, vocab, owner, output),
            lambda: inspect(source, settings, vocab=vocab, output=output, forecast=True),
        )

    def look(self, source: str, visitor: Visitor = STRANGER, wish: BaseOptions = BASE) -> Preview:
        """What a source is, and what its quants would be. Raises UsageError, HubAway."""
        report = self.inspect(source, visitor, vocab=wish.vocab, output=wish.output)
        llama = self._preparer.llama
        key = (source, is_owner(visitor, self.settings), wish, llama is not None)
        return self._previews.get(key, lambda: preview(report, self.settings, wish, llama=llama))

    def cost(self, source: str, visitor: Visitor, order: EstimateOptions, wish: BaseOptions = BASE) -> Cost | None:
        """What a job would take; None where that is not known yet."""
        found = self.look(source, visitor, wish)
        if not found.report.path:
            return None
        by_stranger, account = not is_owner(visitor, self.settings), self.workspace.owner
        stem = file_stem(found.report.path, found.report.model_id, by_stranger=by_stranger)
        folder = self.settings.out / names_of_output(wish.output).folder(model_name(stem))
        where = f"{account}/{repo_name(stem, wish.output)}" if account else str(folder)
        return cost(found, order, self.settings, where=where, account=account, threads=self.limit())

    def cancel(self, job_id: str, visitor: Visitor = STRANGER) -> None:
        """Ends a waiting, running or paused job; one that has ended already stays as it is."""
        check_work(visitor, self.settings)
        if job := self._find(job_id, visitor):
            self.worker.cancel(job.id)
            self._views.look_again()

    def pause(self, job_id: str, visitor: Visitor = STRANGER) -> None:
        """Stops a waiting or running job until somebody resumes it, also over restarts."""
        check_work(visitor, self.settings)
        if job := self._find(job_id, visitor):
            self.worker.pause(job.id)
            self._views.look_again()

    def retry(self, job_id: str, visitor: Visitor = STRANGER) -> None:
        """Queues a job again. Raises UsageError if there is none of that id."""
        check_work(visitor, self.settings)
        job = self._known(job_id, visitor)
        if not is_owner(visitor, self.settings):
            self._check_room()
        self.worker.submit(job)
        self._views.look_again()

    def make_size(self, job_id: str, size: int, visitor: Visitor = STRANGER) -> Job:
        """Queues a job for one more file of what a job was made from: of `size` bytes, one of its frontier. Raises
        UsageError for any other."""
        check_work(visitor, self.settings)
        job = self._known(job_id, visitor)
        point = next((point for point in job.frontier if point.size == size), None)
        if point is None:
            raise UsageError("this size is not on the list any more: reload the page.")
        label = f"{target.size_word(size)}-{target.nearest(point.bpw)}{target.SUFFIX}"
        return self._another(ordered(job.request, label, mode=job.request.mode), visitor)

    def find_sizes(self, job_id: str, visitor: Visitor = STRANGER) -> Job:
        """Queues a job that finds what every size is worth, of what a job was made from."""
        check_work(visitor, self.settings)
        return self._another(ordered(self._known(job_id, visitor).request), visitor)

    def _another(self, wanted: Request, visitor: Visitor) -> Job:
        by_stranger = not is_owner(visitor, self.settings)
        if by_stranger:
            self._check_room()
        return self._queue(replace(wanted, by_stranger=by_stranger))

    def _find(self, job_id: str, visitor: Visitor) -> Job | None:
        """The job of that id, if the visitor may know of it; what a visitor sends is compared, never made a path."""
        jobs = (job for job in self.worker.jobs() if may_see(visitor, job.request, self.settings))
        return next((job for job in jobs if job.id == job_id), None)

    def _known(self, job_id: str, visitor: Visitor) -> Job:
        if (job := self._find(job_id, visitor)) is None:
            raise UsageError("this job is not there any more: reload the page.")
        return job

    def set_threads(self, threads: int, visitor: Visitor = STRANGER) -> None:
        """How many threads the tools may use, from now on and also those that run."""
        check_work(visitor, self.settings)
        self.limit.set(threads)

    def set_cpu_percent(self, percent: int, visitor: Visitor = STRANGER) -> None:
        """What part of the allowed CPU time the work may use, from now on: one of resources.CPU_PERCENTS."""
        check_work(visitor, self.settings)
        if percent in resources.CPU_PERCENTS:
            self.limit.share.set(percent)

    def file(self, job_id: str, name: str, visitor: Visitor = STRANGER) -> Path | None:
        """Path of a finished file of a job that the visitor may see, or None.

        Both come from a visitor: they are compared with what there is, and never become part of a path.
        """
        view = self._views.of(job_id)
        seen = self._seen((view,), self.worker.jobs(), visitor) if view else ()
        return next((view.folder / name for view in seen if name in (row["file"] for row in view.files)), None)

    def views(self, visitor: Visitor = STRANGER, *, whole: bool = False) -> tuple[JobView, ...]:
        """The jobs that a visitor may see, newest first; at first without the files of old ones, unless `whole`."""
        every = self._views(whole=whole)
        return self._seen(every, (view.job for view in every), visitor)

    def _seen(self, views: tuple[JobView, ...], jobs: Iterable[Job], visitor: Visitor) -> tuple[JobView, ...]:
        """Those of the views that a visitor may see. Files are known by their names: in a folder that one of the
        `jobs` that he may not see has used too, they may be that one's."""
        hidden: dict[str, set[str]] = {}
        for request in (job.request for job in jobs):
            if not may_see(visitor, request, self.settings):
                hidden.setdefault(request.folder, set()).add(request.inputs())
        if not hidden:
            return views
        seen = [view for view in views if may_see(visitor, view.job.request, self.settings)]
        shared = [hidden.get(view.job.request.folder, set()) - {view.job.request.inputs()} for view in seen]
        return tuple(
            replace(view, files=(), here=frozenset()) if others else view
            for view, others in zip(seen, shared, strict=True)
        )

    def detailed(self, view: JobView, *, heads: bool = True, log: bool = True) -> JobView:
        """A view with what the heads of its files say, and the end of its log."""
        return self._views.detailed(view, heads=heads, log=log)

    def _models(self, visitor: Visitor) -> dict[str, Path]:
        """The models that a visitor can talk to: finished files here, or in an output repo; the one to begin with
        first."""
        models = self._chat_models(visitor)
        first = first_choice(models.values(), resources.memory_available())
        order = sorted(models, key=lambda name: (name != first, models[name].base))
        return {name: models[name].path for name in order}

    def _chat_models(self, visitor: Visitor) -> dict[str, ChatModel]:
        views = self.views(visitor, whole=True)
        return models_of(views, self.fetched, lambda view: self.workspace.ours(view.job))

    def fetch_model(
        self, name: str, visitor: Visitor = STRANGER, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[float]:
        """Brings a model here that is in its output repo only; yields the fraction that has come. Raises HubError,
        DiskError, and Cancelled once `stopped` says so."""
        model = self._chat_models(visitor).get(name)
        if model and model.repo_id and self.fetched:
            yield from self.fetched.fetch(model.repo_id, name, model.size, stopped)

    def _make_runner(self) -> Runner:
        """In the worker's thread, before the first job."""
        llama = self._preparer.prepare(self.workspace.acquire)
        threading.Thread(target=self._look_at_demo, name="ggufy-demo", daemon=True).start()
        return Runner(settings=self.settings, llama=llama, workspace=self.workspace, limit=self.limit)

    def _look_at_demo(self) -> None:
        """What most visitors see first is known when they come."""
        try:
            self.look("demo")
        except GgufyError as error:
            logger.warning("the demo cannot be looked at: %s", error)

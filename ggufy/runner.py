"""Runs one job to its end; worker.py runs the jobs of a queue in turn.

    run(job)   lock the folder → what is due? → forecast, does it fit? → each due step → done
               an error of ours ends the job as failed; cancel ends it as cancelled; shutdown leaves it running, and
               it is picked up at the next start.

The runner is the one place that writes job records, and one of the three that catch errors.
"""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggufy import throttle
from ggufy.connection import Connection
from ggufy.errors import BusyError, Cancelled, CannotStream, GgufyError, LeaseLost, UsageError
from ggufy.evaluation import Evaluation
from ggufy.files import PART_SUFFIX, lock
from ggufy.hub.state import JobStore
from ggufy.job import FINISHED, Artifact, FrontierPoint, Job, Status
from ggufy.llama import ggml
from ggufy.llama.install import Llama
from ggufy.plan import (
    ANALYSE,
    CONVERT,
    DOWNLOAD,
    EVALUATE,
    FETCH,
    FRONTIER,
    LOCK_NAME,
    MEASURED,
    QUANTIZE,
    SOURCE_PRODUCT,
    UPLOAD,
    UPLOADED,
    Step,
    base_name,
    folder_name,
    pending,
    plan,
)
from ggufy.progress import Progress, Workload
from ggufy.publication import Publication
from ggufy.settings import Settings
from ggufy.sources.hub import remove_orphans
from ggufy.steps import RUN
from ggufy.steps.context import Context
from ggufy.steps.forecast import (
    JobForecast,
    check_download_space,
    check_space,
    forecast_job,
    left_bytes,
)
from ggufy.steps.to_order import recipes_measured

logger = logging.getLogger(__name__)


@dataclass
class Stop:
    """How a running job is asked to end: by its user (cancel, pause) or with the program (shutdown)."""

    cancelled: threading.Event = field(default_factory=threading.Event)
    paused: threading.Event = field(default_factory=threading.Event)
    shutdown: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> bool:
        return self.by_user or self.shutdown.is_set()

    @property
    def by_user(self) -> bool:
        return self.cancelled.is_set() or self.paused.is_set()

    @property
    def status(self) -> Status:
        """What a job is when its user has ended it."""
        return Status.CANCELLED if self.cancelled.is_set() else Status.PAUSED


def _ending(error: GgufyError, stop: Stop) -> Status | None:
    """What an error makes of a job; None if it goes on by itself, here or elsewhere."""
    if isinstance(error, Cancelled):
        return stop.status if stop.by_user else None
    return None if isinstance(error, LeaseLost) else Status.FAILED


def _remove_parts(folder: Path) -> None:
    """Removes what no run will go on with."""
    for stray in folder.glob(f"*{PART_SUFFIX}"):
        stray.unlink()


@dataclass
class Live:
    """What is known of a job while it runs, for the terminal and the page."""

    progress: Progress = field(default_factory=Progress)
    stop: Stop = field(default_factory=Stop)
    forecast: JobForecast | None = None


class Runner:
    """Runs one job at a time, in the calling thread."""

    def __init__(
        self,
        *,
        settings: Settings,
        llama: Llama,
        threads: int | None = None,
        connection: Connection | None = None,
        limit: throttle.ThreadLimit | None = None,
    ):
        self.settings, self.llama = settings, llama
        self.connection = connection or Connection(store=JobStore(settings.out))
        self.limit = limit or throttle.thread_limit(threads or settings.threads, settings.cpu_percent)
        self.store = self.connection.store
        self._saving = threading.Lock()  # of job records: products are finished here and in the publisher's thread

    def folder(self, job: Job) -> Path:
        """Where the job's products are."""
        return self.settings.out / folder_name(job.request.name)

    def run(self, job: Job, live: Live | None = None) -> Job:
        """Takes the job to its end and returns the record that says how it ended.

        Raises Cancelled when the program is shut down, and LeaseLost when another runner has taken over: the record
        is not ours to write then.
        """
        live = live or Live()
        try:
            return self._run(job, live)
        except Cancelled:
            if not live.stop.by_user:
                raise  # shutdown: the record says running, the next start continues
            return self.store.save(self._latest(job).evolve(status=live.stop.status))
        except LeaseLost:
            raise
        except BusyError as error:  # its record belongs to the run that holds the folder
            return job.evolve(status=Status.FAILED, error=str(error))
        except GgufyError as error:
            logger.info("job %s failed: %s", job.id, error)
            return self._failed(job, str(error))
        except Exception as error:
            logger.exception("job %s: unexpected error", job.id)
            return self._failed(job, f"unexpected error, please report it: {type(error).__name__}: {error}")

    def _failed(self, job: Job, message: str) -> Job:
        failed = self._latest(job).evolve(status=Status.FAILED, error=message)
        try:
            return self.store.save(failed)
        except (GgufyError, OSError) as error:  # a disk that is full or read-only: the message still reaches people
            logger.warning("the record of job %s could not be written: %s", job.id, error)
            return failed

    def _latest(self, job: Job) -> Job:
        return self.store.load(job.id) or job

    def _run(self, job: Job, live: Live) -> Job:
        self.connection.acquire(live.stop)  # it may have been lost since
        folder = self.folder(job)
        busy = f"another run is working in {folder}: wait for it, or give this one another --name or --out."
        with lock(folder / LOCK_NAME, wait_s=3.0, message=busy) as descriptor:
            self._check_folder(job, folder)
            self._remove_orphans(job)
            known = self._latest(job)
            ctx = self._context(job, folder, live, descriptor)
            publication = None
            if job.request.repo_id:
                publication = Publication(self, job, ctx, live)
                publication.start(resumed=known.status is Status.RUNNING)
                ctx = replace(ctx, safe=publication.safe)
            try:
                job = self.store.save(known.evolve(request=job.request, status=Status.RUNNING, error=""))
                if publication:
                    publication.adopt()
                self._streamed_or_downloaded(ctx, live, publication)
            except GgufyError as error:
                ending = _ending(error, live.stop)
                if ending is Status.CANCELLED:
                    _remove_parts(folder)
                if publication and ending:
                    publication.tell(self._latest(job).evolve(status=ending, error=str(error)))
                raise
            finally:
                if publication:
                    publication.close()
            _remove_parts(folder)
            shutil.rmtree(ctx.work, ignore_errors=True)
            return self.store.save(self._latest(job).evolve(status=Status.DONE))

    def _streamed_or_downloaded(self, ctx: Context, live: Live, publication: Publication | None) -> None:
        try:
            self._steps(ctx, live, publication)
        except CannotStream as error:
            logger.info("job %s: the source is downloaded first: %s", ctx.request.job_id, error)
            self._steps(replace(ctx, whole=True), live, publication)

    def _steps(self, ctx: Context, live: Live, publication: Publication | None) -> None:
        def exists(product: str) -> bool:
            if product.startswith(UPLOADED):
                return publication is not None and publication.has(product.removeprefix(UPLOADED))
            if product.startswith(MEASURED):
                return product.removeprefix(MEASURED) in self.measured(ctx.request.job_id)
            if product == FRONTIER:
                known = self.store.load(ctx.request.job_id)
                return known is not None and bool(known.frontier)
            return ctx.path(product).exists()

        steps = plan(ctx.request, streamed=ctx.streams)
        due = pending(steps, exists)
        live.progress.planned(steps, due)
        self._prepare(ctx, steps, due, live, publication)
        for step in due:
            ctx.check_stopped()
            self.connection.check()
            if publication and step.kind in (UPLOAD, FETCH):
                publication.run(step)
            elif step.kind != DOWNLOAD:
                if publication and live.forecast:
                    publication.make_room(left_bytes(ctx, step, live.forecast))
                artifact = self._step(ctx, step, live)
                if artifact:
                    ctx.digests[ctx.path(step.product).absolute()] = artifact.sha256
                if publication and step.kind == CONVERT and ctx.request.source.remote:
                    ctx.source.unlink(missing_ok=True)  # on a Space the disk is small; the base comes from the repo
                if artifact and publication:
                    publication.made(artifact)
                elif artifact:
                    self.record(ctx.request.job_id, [artifact])
        if publication:
            publication.finish(measured=any(step.kind == EVALUATE for step in due))

    def _prepare(
        self,
        ctx: Context,
        steps: tuple[Step, ...],
        due: tuple[Step, ...],
        live: Live,
        publication: Publication | None,
    ) -> None:
        """Brings here what is read first (the source, or the base from the output repo), forecasts every size, and
        refuses what cannot fit."""
        needs_source = any(step.product == SOURCE_PRODUCT for step in due)
        source = ctx.request.source
        load = Workload(
            weights=source.size // 2,
            download_bytes=0 if ctx.streams else source.size,
            streamed_bytes=source.size if ctx.streams else 0,
            threads=ctx.threads,
        )
        live.progress.workload(load)
        if needs_source:
            download = next(step for step in steps if step.kind == DOWNLOAD)
            check_download_space(ctx)
            live.progress.started(download)
            RUN[DOWNLOAD](ctx, download)
            live.progress.finished(download, None)
        for step in due:
            if publication and step.kind == FETCH and step.product == base_name(ctx.request):
                publication.run(step)
        if (
            not any(step.kind in (QUANTIZE, EVALUATE, ANALYSE) for step in due)
            and not ctx.path(base_name(ctx.request)).exists()
        ):
            return  # nothing is left but uploads
        live.forecast = forecast_job(ctx, steps[0])
        if any(step.kind in (QUANTIZE, ANALYSE) for step in due):
            ggml.load(self.llama.bin)  # a build without kernels is refused now, not after an hour of imatrix
        check_space(ctx, due, live.forecast, published=publication is not None)
        live.progress.workload(
            replace(
                load,
                weights=live.forecast.weights,
                quants=live.forecast.work(ctx.request.quant_types),
                base_bytes=live.forecast.base.file_size,
                recipes=recipes_measured(ctx.request),
                chunks=ctx.request.chunks or 60,
                evaluation_chunks=ctx.request.evaluation_chunks,
            )
        )

    def _step(self, ctx: Context, step: Step, live: Live) -> Artifact | None:
        logger.info("job %s: %s", ctx.request.job_id, step.label)
        live.progress.started(step)
        artifact = RUN[step.kind](ctx, step)
        live.progress.finished(step, artifact)
        return artifact

    def record(self, job_id: str, artifacts: list[Artifact]) -> None:
        """Notes finished products in the job's record."""
        with self._saving:
            if job := self.store.load(job_id):
                for artifact in artifacts:
                    job = job.with_artifact(artifact)
                self.store.save(job)

    def measured(self, job_id: str) -> frozenset[str]:
        """File names of the quants whose figures the job's record has."""
        job = self.store.load(job_id)
        return frozenset(evaluation.quant for evaluation in job.evaluations) if job else frozenset()

    def _record_figures(self, job_id: str, evaluation: Evaluation) -> None:
        with self._saving:
            if job := self.store.load(job_id):
                self.store.save(job.with_evaluation(evaluation))

    def _record_frontier(self, job_id: str, points: tuple[FrontierPoint, ...]) -> None:
        with self._saving:
            if job := self.store.load(job_id):
                self.store.save(job.evolve(frontier=points))

    def _context(self, job: Job, folder: Path, live: Live, descriptor: int) -> Context:
        return Context(
            request=job.request,
            folder=folder,
            logs=self.store.log_folder(job.id),
            work=self.store.work_folder(job.request.inputs()),
            settings=self.settings,
            llama=self.llama,
            limit=self.limit,
            share=self.limit.share,
            report=live.progress.fraction,
            stopped=live.stop,
            keep_open=(descriptor,),
            digests={(folder / a.name).absolute(): a.sha256 for a in self._latest(job).artifacts},
            measured=lambda evaluation: self._record_figures(job.id, evaluation),
            found=lambda points: self._record_frontier(job.id, points),
        )

    def _remove_orphans(self, job: Job) -> None:
        """Removes half downloads that no unfinished job needs."""
        needed = {j.request.source.key for j in [*self.store.jobs(), job] if j.status not in FINISHED}
        remove_orphans(self.settings.cache / "sources", keep={key[:16] for key in needed})

    def _check_folder(self, job: Job, folder: Path) -> None:
        """Products are trusted by name, so a folder may hold those of one source and one set of options only."""
        if not any(folder.glob("*.gguf")):
            return
        owners = [
            j
            for j in self.store.jobs()
            if j.request.name == job.request.name and (j.artifacts or j.status == Status.RUNNING)
        ]
        owner = max(owners, key=lambda j: j.updated, default=None)
        if owner is None or owner.request.inputs() != job.request.inputs():
            raise UsageError(
                f"{folder} already holds files that were made from something else or with other options: "
                "give this run another --name or --out, or move that folder away."
            )

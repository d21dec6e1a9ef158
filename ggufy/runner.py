"""Runs jobs: one to its end (`Runner.run`), or one after the other in a thread of their own (`Worker`).

    run(job)   lock the folder → what is due? → forecast, does it fit? → each due step → done
               an error of ours ends the job as failed; cancel ends it as cancelled; shutdown leaves it running, and
               it is picked up at the next start.

The runner is the one place that writes job records, and one of the three that catch errors.
"""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggufy import throttle
from ggufy.connection import Connection
from ggufy.errors import BusyError, Cancelled, GgufyError, LeaseLost, UsageError
from ggufy.files import PART_SUFFIX, lock
from ggufy.hub.state import JobStore
from ggufy.job import FINISHED, Artifact, Job, Status
from ggufy.llama.install import Llama
from ggufy.plan import (
    DOWNLOAD,
    FETCH,
    LOCK_NAME,
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
from ggufy.progress import Progress, Snapshot, Workload
from ggufy.publication import Publication
from ggufy.settings import Settings
from ggufy.steps import RUN
from ggufy.steps.context import Context
from ggufy.steps.forecast import JobForecast, check_download_space, check_space, forecast_job, product_size

logger = logging.getLogger(__name__)


@dataclass
class Stop:
    """How a running job is asked to end: by its user (cancel) or with the program (shutdown)."""

    cancelled: threading.Event = field(default_factory=threading.Event)
    shutdown: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> bool:
        return self.cancelled.is_set() or self.shutdown.is_set()


@dataclass
class Live:
    """What is known of a job while it runs, for the terminal and the page."""

    progress: Progress = field(default_factory=Progress)
    stop: Stop = field(default_factory=Stop)
    forecast: JobForecast | None = None


class Runner:
    """Runs one job at a time, in the calling thread."""

    def __init__(
        self, *, settings: Settings, llama: Llama, threads: int | None = None, connection: Connection | None = None
    ):
        self.settings, self.llama = settings, llama
        self.connection = connection or Connection(store=JobStore(settings.out))
        self.threads = threads or settings.threads or throttle.default_threads(throttle.allowed_cpus())
        self.store = self.connection.store
        self._saving = threading.Lock()  # of job records: products are finished here and in the publisher's thread

    def folder(self, job: Job) -> Path:
        """Where the job's products are."""
        return self.settings.out / folder_name(job.request.name)

    def run(self, job: Job, live: Live | None = None) -> Job:
        """Takes the job to its end and returns the record that says how it ended; raises nothing of ours."""
        live = live or Live()
        try:
            return self._run(job, live)
        except Cancelled:
            if not live.stop.cancelled.is_set():
                raise  # shutdown: the record says running, the next start continues
            return self.store.save(self._latest(job).evolve(status=Status.CANCELLED))
        except (BusyError, LeaseLost) as error:  # its record belongs to the run that holds folder or lease
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
            job = self.store.save(self._latest(job).evolve(request=job.request, status=Status.RUNNING, error=""))
            ctx = self._context(job, folder, live, descriptor)
            publication = None
            if job.request.repo_id:
                publication = Publication(self, job, ctx, live)
                ctx = replace(ctx, keep=publication.keep, restore=publication.restore)
            try:
                self._steps(ctx, live, publication)
            except GgufyError as error:
                if publication and not isinstance(error, Cancelled | LeaseLost):
                    publication.tell(self._latest(job).evolve(status=Status.FAILED, error=str(error)))
                raise
            finally:
                if publication:
                    publication.close()
            for stray in folder.glob(f"*{PART_SUFFIX}"):
                stray.unlink()
            shutil.rmtree(ctx.work, ignore_errors=True)
            return self.store.save(self._latest(job).evolve(status=Status.DONE))

    def _steps(self, ctx: Context, live: Live, publication: Publication | None) -> None:
        if publication:
            publication.start()

        def exists(product: str) -> bool:
            if product.startswith(UPLOADED):
                return publication is not None and publication.has(product.removeprefix(UPLOADED))
            return ctx.path(product).exists()

        steps = plan(ctx.request)
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
                    publication.make_room(product_size(ctx.request, step, live.forecast))
                artifact = self._step(ctx, step, live)
                if artifact and publication:
                    publication.made(artifact)
                elif artifact:
                    self.record(ctx.request.job_id, [artifact])
        if publication:
            publication.finish()

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
        live.progress.workload(Workload(weights=source.size // 2, download_bytes=source.size, threads=ctx.threads))
        if needs_source:
            download = next(step for step in steps if step.kind == DOWNLOAD)
            check_download_space(ctx)
            live.progress.started(download)
            RUN[DOWNLOAD](ctx, download)
            live.progress.finished(download, None)
        for step in due:
            if publication and step.kind == FETCH and step.product == base_name(ctx.request):
                publication.run(step)
        if not any(step.kind == QUANTIZE for step in due) and not ctx.path(base_name(ctx.request)).exists():
            return  # nothing is left but uploads
        live.forecast = forecast_job(ctx, steps[0])
        check_space(ctx, due, live.forecast, published=publication is not None)
        live.progress.workload(
            Workload(
                weights=live.forecast.weights,
                base_bytes=live.forecast.base.file_size,
                download_bytes=source.size,
                chunks=ctx.request.chunks or 60,
                threads=ctx.threads,
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

    def _context(self, job: Job, folder: Path, live: Live, descriptor: int) -> Context:
        return Context(
            request=job.request,
            folder=folder,
            logs=self.store.log_folder(job.id),
            work=self.store.work_folder(job.request.inputs()),
            settings=self.settings,
            llama=self.llama,
            threads=self.threads,
            report=live.progress.fraction,
            stopped=live.stop,
            keep_open=(descriptor,),
        )

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


class Worker:
    """One thread that runs queued jobs in turn; pages and tabs only look at it.

    `make_runner` is called once, in that thread, and may take its time: llama.cpp is built there the first time.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        make_runner: Callable[[], Runner],
        wanted: Callable[[Job], bool] = lambda job: True,
    ):
        self.store = store
        self._wanted = wanted  # which unfinished jobs are taken up again
        self._make_runner = make_runner
        self._queue: queue.Queue[tuple[Job, Live] | None] = queue.Queue()
        self._live: dict[str, Live] = {}  # waiting and running jobs
        self._running = ""  # id of the one that runs
        self._unsaved: dict[str, Job] = {}  # how jobs ended whose record could not be written (a full disk)
        self._lock = threading.Lock()
        self._shutdown = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="ggufy-worker", daemon=True)

    def start(self) -> list[Job]:
        """Starts the thread and queues every unfinished job of the store that was not queued yet; returns those."""
        self._thread.start()
        with self._lock:
            return self._take_up()

    def submit(self, job: Job) -> Job:
        """Queues a job (again, if it failed or was cancelled); one that already waits or runs is left alone."""
        with self._lock:
            if (live := self._live.get(job.id)) and not live.stop.cancelled.is_set():
                return job
            self._unsaved.pop(job.id, None)
            known = self.store.load(job.id) or job  # it keeps the digests of what is finished
            job = self.store.save(known.evolve(request=job.request, status=Status.QUEUED, error=""))
            self._enqueue(job)
            return job

    def cancel(self, job_id: str) -> bool:
        """Ends a queued or running job; its finished files stay. False if it is neither."""
        with self._lock:
            live = self._live.get(job_id)
            if live is None:
                return False
            live.stop.cancelled.set()
            if job_id != self._running:
                del self._live[job_id]
                if job := self.store.load(job_id):
                    self.store.save(job.evolve(status=Status.CANCELLED))
            return True

    def jobs(self) -> list[Job]:
        """All job records, oldest first."""
        return [self._unsaved.get(job.id, job) for job in self.store.jobs()]

    def live(self, job_id: str) -> Live | None:
        """What is known of a queued or running job; None for any other."""
        with self._lock:
            return self._live.get(job_id)

    def snapshot(self, job_id: str) -> Snapshot | None:
        """Live progress of a queued or running job."""
        live = self.live(job_id)
        return live.progress.snapshot() if live else None

    def shutdown(self, wait_s: float = 5.0) -> None:
        """Stops the running tool and the thread; what was running resumes at the next start."""
        self._shutdown.set()
        with self._lock:
            for live in self._live.values():
                live.stop.shutdown.set()
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def _take_up(self) -> list[Job]:
        unfinished = [
            job
            for job in self.store.jobs()
            if job.status not in FINISHED and job.id not in self._live and self._wanted(job)
        ]
        for job in unfinished:
            self._enqueue(job)
        return unfinished

    def _enqueue(self, job: Job) -> None:
        self._live[job.id] = live = Live()
        self._queue.put((job, live))

    def _loop(self) -> None:
        try:
            runner = self._make_runner()
        except Cancelled:
            return  # shut down before it was ready
        with self._lock:
            self._take_up()  # jobs that only the state repo knew of
        while (entry := self._queue.get()) is not None and not self._shutdown.is_set():
            job, live = entry
            with self._lock:
                if live.stop.cancelled.is_set():
                    continue
                self._running = job.id
            try:
                ended = runner.run(job, live)
                if (stored := self.store.load(job.id)) and stored.status != ended.status:
                    self._unsaved[job.id] = ended
            except Cancelled:
                logger.info("job %s was interrupted; it resumes at the next start", job.id)
            except (GgufyError, OSError):  # not even its record could be written; the next job may have more luck
                logger.exception("job %s ended without a record", job.id)
            finally:
                with self._lock:
                    self._running = ""
                    if self._live.get(job.id) is live:  # else it was queued again meanwhile
                        del self._live[job.id]

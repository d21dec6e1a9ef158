"""Runs one job to its end; queue.py runs the jobs of a queue in turn.

    run(job)   is the lease ours? → lock the folder → what is due? → forecast, does it fit? → each due step → done
               what passes by itself is waited for; what only a person can help with pauses the job, any other error of
               ours ends it as failed; cancel ends it as cancelled; shutdown leaves it running, and it is picked up at
               the next start. See records/patience.py for what an error makes of a job.

This is one of the three places that catch errors.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

from ggufy.core.errors import BusyError, Cancelled, CannotStream, GgufyError, LeaseLost, UsageError
from ggufy.core.hosts import RepoName
from ggufy.core.job import FINISHED, RESTING, Job, Status
from ggufy.core.messages import Message
from ggufy.core.plan import LOCK_NAME, WHOLE_TEXT_CHUNKS, Fetch, Step, Upload, Workload, base_name
from ggufy.jobs.parts import Alone, Parts, RunPlace, Wanted
from ggufy.jobs.workspace import Workspace, hub_option
from ggufy.llama.install import Llama
from ggufy.publish.destination import Destination, LocalFolder
from ggufy.publish.hub_repo import HubRepo, Places
from ggufy.records.patience import Patience, Verdict, pause_s, verdict
from ggufy.records.records import JobRecords
from ggufy.records.run_state import RunState, Stop
from ggufy.records.store import JobStore
from ggufy.sources.hub import remove_orphans
from ggufy.steps import Makers
from ggufy.steps.context import Context
from ggufy.steps.covariance import SEGMENTS
from ggufy.steps.forecast import check_space
from ggufy.steps.local_step import LocalStep
from ggufy.steps.target_size import recipes_measured
from ggufy.system import resources
from ggufy.system.clock import CLOCK, Clock, sleep
from ggufy.system.files import PART_SUFFIX, disk_error
from ggufy.system.locks import lock
from ggufy.system.settings import Settings

logger = logging.getLogger(__name__)
_LOCK_WAIT_S = 3.0
_FOREVER = 1 << 62


class Runner:
    """Runs one job at a time, in the calling thread."""

    def __init__(
        self,
        *,
        settings: Settings,
        llama: Llama,
        threads: int | None = None,
        workspace: Workspace | None = None,
        limit: resources.ThreadLimit | None = None,
        makers: Makers | None = None,
        clock: Clock = CLOCK,
        parts: Parts | None = None,
    ):
        self.settings, self.llama = settings, llama
        self.workspace = workspace or Workspace(records=JobRecords(JobStore(settings.out)))
        self.limit = limit or resources.thread_limit(threads or settings.threads, settings.cpu_percent)
        self.records = self.workspace.records
        self._makers, self._clock, self._parts = makers or Makers(), clock, parts or Alone()
        self._folders = (settings.out.absolute(), settings.cache.absolute(), settings.home)  # told to nobody else

    def folder(self, job: Job) -> Path:
        """Where the job's products are."""
        return self.settings.out / job.request.folder

    def run(self, job: Job, live: RunState | None = None) -> Job:
        """Takes the job to its end, however long it has to wait for something, and returns the record that says how it
        ended. Raises Cancelled when the program is shut down: the next start goes on; LeaseLost for a part of
        a job that others share."""
        live, moved = live or RunState(), False
        for tries in range(1, _FOREVER):
            try:
                return self._attempt(job, live, moved=moved)
            except GgufyError as error:
                if isinstance(error, Cancelled) and not live.stop.by_user:
                    raise
                if isinstance(error, LeaseLost) and self._parts.shared:  # others wait for what it has claimed
                    raise
                if (ended := self._ended(job, live, error)) is not None:
                    return ended
                moved = isinstance(error, LeaseLost)
                live.progress.waits(error.message)
                with contextlib.suppress(Cancelled):  # the next try begins with that
                    sleep(0.0 if moved else pause_s(tries, error), live.stop, self._clock)
            except Exception as error:
                failure = disk_error(error, self.folder(job)) if isinstance(error, OSError) else None
                if failure is None:
                    logger.exception("job %s: unexpected error", job.id)
                return self._end(job, Status.FAILED, live, failure or error)
        raise AssertionError("unreachable")

    def _ended(self, job: Job, live: RunState, error: GgufyError) -> Job | None:
        """The record that says how the job ended; None if it goes on."""
        if isinstance(error, BusyError):  # its record belongs to the run that holds the folder
            return job.evolve(status=Status.FAILED, error=error.message)
        if (status := _ending(error, live.stop)) is None:
            logger.warning("job %s waits: %s", job.id, error)
            return None
        logger.info("job %s %s: %s", job.id, status, error)
        told = None if isinstance(error, Cancelled) else error
        return self._end(job, status, live, told)

    def _end(self, job: Job, status: Status, live: RunState, error: BaseException | None = None) -> Job:
        if self._parts.helps:
            return self._latest(job).ended(status, error, self._folders)
        return self.records.end(job, status, live.run_id, error, self._folders)

    def _attempt(self, job: Job, live: RunState, *, moved: bool) -> Job:
        if live.stop():
            raise Cancelled("the job was stopped.")
        if self._parts.shared:
            self.workspace.check()
        else:
            self.workspace.acquire(live.stop, live.progress.waits)
        known = self._latest(job)
        if moved and known.status in RESTING:
            return known  # the other runner has ended it
        folder = self.folder(job)
        busy = Message(
            "another run is working in {folder}: wait for it, or give this one another {NAME} or {OUT}.", folder=folder
        )
        with lock(folder / LOCK_NAME, wait_s=_LOCK_WAIT_S, message=busy) as descriptor:
            self._remove_orphans(job)
            ctx = self._context(job, folder, live, descriptor)
            patience = Patience(
                stopped=live.stop, say=live.progress.waits, check=self.workspace.check, clock=self._clock
            )
            destination = self._destination(job, ctx, live, patience)
            begun = False
            try:
                destination.start(resumed=known.begun or known.status is Status.RUNNING)
                if not self._parts.helps:
                    self.records.begin(job, live.run_id)
                self.records.share_evaluations(job)
                begun = True
                ctx = replace(ctx, safe=destination.safe)
                place = RunPlace(ctx=ctx, records=self.records, destination=destination, patience=patience)
                self._all_parts(place, live)
            except Exception as error:
                if begun:
                    self._tell(job, live, destination, error)
                raise
            finally:
                destination.close()
            _remove_parts(folder)
            if not self._parts.helps:  # this runner may lead next
                shutil.rmtree(ctx.work, ignore_errors=True)
            return self._end(job, Status.DONE, live)

    def _destination(self, job: Job, ctx: Context, live: RunState, patience: Patience) -> Destination:
        if not job.request.repo_id:
            return LocalFolder(self.records, job, ctx.folder)
        hubs = self.workspace.hubs
        if any(RepoName.of(name).host not in hubs for name in job.request.repos):
            raise UsageError(
                "{job} goes to {repo}: run it with --hub {hub} and a token for that.",
                job=job.id,
                repo=", ".join(job.request.repos),
                hub=hub_option(job.request.repos),
            )
        places = Places(
            hubs=hubs,
            state=self.workspace.state,
            records=self.records,
            llama_commit=self.llama.commit,
            card=not self._parts.helps,
        )
        return HubRepo(places, job, ctx, live, patience)

    def _tell(self, job: Job, live: RunState, destination: Destination, error: Exception) -> None:
        """Says where people look how the job ended, and removes what no run goes on with."""
        status = _ending(error, live.stop) if isinstance(error, GgufyError) else Status.FAILED
        if status is None:
            return
        if status is Status.CANCELLED:
            folder, work = self.folder(job), self.records.store.work_folder(job.request.inputs())
            _remove_parts(folder)
            for large in ("evaluation", "awq", SEGMENTS):  # predictions, quants and sums, gigabytes of them
                shutil.rmtree(work / large, ignore_errors=True)
            for file in work.glob(f"{SEGMENTS}*"):
                file.unlink()
        destination.tell(self._latest(job).ended(status, error, self._folders))

    def _all_parts(self, place: RunPlace, live: RunState) -> None:
        measured, parts = False, 0
        for wanted in self._parts.turns(place):
            parts += 1
            try:
                measured |= self._steps(place, wanted, live)
            except CannotStream as error:
                logger.info("job %s: the source is downloaded first: %s", place.ctx.request.job_id, error)
                place = replace(place, ctx=replace(place.ctx, streams=False))
                measured |= self._steps(place, wanted, live)
        place.destination.finish(measured=measured or parts > 1)  # then others may have measured

    def _steps(self, place: RunPlace, wanted: Wanted, live: RunState) -> bool:
        """Makes what is wanted and due; True if the card has more to say now."""
        ctx, destination = place.ctx, place.destination
        steps, due = place.steps(wanted)
        live.progress.planned(tuple(step for step in steps if wanted(step) or step in due), due)
        self._prepare(place, steps, due, live)
        for step in due:
            ctx.check_stopped()
            self.workspace.check()
            if isinstance(step, Fetch):
                destination.fetch(step)
            elif isinstance(step, Upload):
                destination.accept(step, None)
            elif isinstance(step, LocalStep) and not step.comes_first:
                if live.forecast:
                    destination.make_room(step.left_bytes(ctx, live.forecast))
                self._make(place, step, live)
        return any(isinstance(step, LocalStep) and step.on_card for step in due)

    def _make(self, place: RunPlace, step: LocalStep, live: RunState) -> None:
        ctx = place.ctx
        logger.info("job %s: %s", ctx.request.job_id, step.label)
        live.progress.started(step)
        artifact = place.patience(lambda: self._makers.run(step, ctx))
        if artifact:
            ctx.digests[ctx.path(step.product).absolute()] = artifact.sha256
        live.progress.finished(step, artifact)
        place.destination.accept(step, artifact)

    def _prepare(self, place: RunPlace, steps: tuple[Step, ...], due: tuple[Step, ...], live: RunState) -> None:
        """Brings here what is read first (the source, or the base from the output repo), forecasts every size, and
        refuses what cannot fit."""
        ctx, destination = place.ctx, place.destination
        base, load = base_name(ctx.request), _load_of_source(ctx)
        live.progress.workload(load)
        local = [step for step in due if isinstance(step, LocalStep)]
        for step in local:
            if step.comes_first:
                self._makers.check(step, ctx)
                self._make(place, step, live)
        for transfer in due:
            if isinstance(transfer, Fetch) and transfer.product == base:
                destination.fetch(transfer)
        if not any(base in step.reads for step in local) and not ctx.path(base).exists():
            return  # nothing is left whose size matters
        forecast = live.forecast = place.patience(lambda: self._makers.forecast(ctx, steps[0]))
        for step in local:
            if not step.comes_first:
                self._makers.check(step, ctx)
        check_space(ctx, local, forecast, published=not destination.keeps_all)
        live.progress.workload(
            replace(
                load,
                weights=forecast.weights,
                quants=forecast.work(ctx.request.quant_types),
                base_bytes=forecast.base_size,
                recipes=recipes_measured(ctx.request),
                chunks=ctx.request.chunks or WHOLE_TEXT_CHUNKS,
                evaluation_chunks=ctx.request.evaluation_chunks * len(ctx.request.evaluation_texts),
                sizes={s.product: s.size(forecast) for s in steps if isinstance(s, LocalStep) and s.makes_file},
            )
        )

    def _latest(self, job: Job) -> Job:
        return self.records.latest(job.id) or job

    def _context(self, job: Job, folder: Path, live: RunState, descriptor: int) -> Context:
        ctx = Context(
            request=job.request,
            folder=folder,
            logs=self.records.store.log_folder(job.id),
            work=self.records.store.work_folder(job.request.inputs()),
            settings=self.settings,
            llama=self.llama,
            limit=self.limit,
            share=self.limit.share,
            report=live.progress.fraction,
            stopped=live.stop,
            waits=live.progress.waits,
            keep_open=(descriptor,),
            digests={(folder / a.name).absolute(): a.sha256 for a in self._latest(job).artifacts},
            measured=lambda evaluation: self.records.add_evaluation(job.id, evaluation),
            found=lambda points: self.records.set_frontier(job.id, points),
        )
        return replace(ctx, streams=ctx.can_stream())

    def _remove_orphans(self, job: Job) -> None:
        """Removes half downloads that no unfinished job needs, and what cancelled and finished jobs left of theirs."""
        jobs = [*self.records.all(), job]
        unfinished = [j.request for j in jobs if j.status not in FINISHED or j.id == job.id]
        needed = {source.key[:16] for request in unfinished for source in request.sources}
        remove_orphans(self.settings.cache / "sources", keep=needed)
        ended = (Status.DONE, Status.CANCELLED)
        kept = {self.records.store.work_folder(j.request.inputs()) for j in jobs if j.status not in ended or j is job}
        for work in set(self.records.store.work_folder("").glob("*")) - kept:
            shutil.rmtree(work, ignore_errors=True)


def _load_of_source(ctx: Context) -> Workload:
    """What is known before anything is forecast; most sources have two bytes a weight."""
    source = ctx.request.source
    return Workload(
        weights=source.size // 2,
        download_bytes=0 if ctx.streams else source.size,
        streamed_bytes=source.size if ctx.streams else 0,
        threads=ctx.threads,
    )


def _ending(error: GgufyError, stop: Stop) -> Status | None:
    """What an error makes of a job; None if it goes on by itself, here or elsewhere."""
    if isinstance(error, Cancelled):
        return stop.status if stop.by_user else None
    return {Verdict.PAUSES: Status.PAUSED, Verdict.FAILS: Status.FAILED}.get(verdict(error))


def _remove_parts(folder: Path) -> None:
    """Removes what no run will go on with."""
    for stray in folder.glob(f"*{PART_SUFFIX}"):
        stray.unlink()

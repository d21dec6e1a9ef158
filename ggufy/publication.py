"""What a job that goes to the Hub does besides its steps: uploads and fetches, room on the disk, the card."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy import card_facts
from ggufy.card import pages
from ggufy.catalog import BY_NAME
from ggufy.errors import DiskError, HubAway, HubError, QuotaError, UsageError
from ggufy.files import free_bytes, human_size
from ggufy.hub.state import JobStore
from ggufy.job import Artifact, Job, Status
from ggufy.plan import EVALUATE, FETCH, QUANTIZE, UPLOAD, UPLOADED, Step, plan
from ggufy.publisher import Publisher
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.forecast import MARGIN
from ggufy.steps.salvage import saved_files

if TYPE_CHECKING:
    from ggufy.runner import Live, Runner

logger = logging.getLogger(__name__)


class StateSafe:
    """Unfinished work of one job, in the state repo, which only this runner changes while it has the lease."""

    def __init__(self, store: JobStore, key: str):
        self._store, self._key = store, key
        self._names: set[str] | None = None  # once the Hub was asked

    def names(self) -> list[str]:
        if self._names is None:
            self._names = set(self._store.kept(self._key))
        return sorted(self._names)

    def put(self, path: Path, drop: Collection[str] = ()) -> None:
        names = {path.name, *self.names()} - set(drop)
        self._store.keep(self._key, {path.name: path}, drop=drop)
        self._names = names

    def get(self, name: str, target: Path) -> None:
        self._store.fetch(self._key, name, target)

    def drop(self, names: Collection[str]) -> None:
        self._store.keep(self._key, {}, drop=names)
        self._names = set(self.names()) - set(names)

    def wait_s(self) -> float:
        return self._store.wait_s()


class Publication:
    """One run of one job towards its output repo."""

    def __init__(self, runner: Runner, job: Job, ctx: Context, live: Live):
        self._runner, self._job, self._ctx, self._live = runner, job, ctx, live
        self._ending: Job | None = None
        self._made: dict[str, Artifact] = {}
        self.safe = StateSafe(runner.store, job.request.inputs()[:16])
        self._uploads = {step.reads[0]: step for step in plan(job.request) if step.kind == UPLOAD}
        connection = runner.connection
        if connection.hub is None:
            raise UsageError(f"{job.id} goes to {job.request.repo_id}: run it with --hub hf and HF_TOKEN.")
        self._publisher = Publisher(
            connection.hub,
            job.request.repo_id,
            private=job.request.private,
            pages=self._pages,
            check=connection.check,
            stopped=ctx.stopped,
            uploaded=self._uploaded,
            fraction=lambda artifact, done: live.progress.fraction(self._uploads[artifact.name], done),
        )

    def start(self, *, resumed: bool) -> None:
        """Looks at the repo. Unless this job was at work there before, raises UsageError if it holds files of
        something else under this job's names; nothing is touched then."""
        self._publisher.start()
        self._runner.connection.remember(self._job.request.repo_id, "model")
        names = [name for name in self._uploads if self._publisher.file(name)]
        request = self._job.request
        owners = [
            job
            for job in self._runner.store.jobs()
            if job.request.repo_id == request.repo_id and (job.artifacts or job.status is Status.RUNNING)
        ]
        owner = max(owners, key=lambda job: job.updated, default=None)
        if names and not resumed and (owner is None or owner.request.inputs() != request.inputs()):
            self._publisher.close()
            raise UsageError(
                f"{request.repo_id} already holds {names[0]}, made from something else or with other options: "
                "give this run another --repo or --name."
            )

    def adopt(self) -> None:
        """Notes products that the repo holds and the record does not know: the run before this one was killed when
        they had just been uploaded."""
        known = {artifact.name for artifact in self._runner._latest(self._job).artifacts}
        there = {name: self._publisher.file(name) for name in self._uploads if name not in known}
        found = [Artifact(name=n, size=f.size, sha256=f.sha256) for n, f in there.items() if f and f.sha256]
        if found:
            self._runner.record(self._job.id, found)

    def has(self, name: str) -> bool:
        """True if the repo holds this product; one that differs from what this job has made does not count."""
        there = self._publisher.file(name)
        known = next((a for a in self._runner._latest(self._job).artifacts if a.name == name), None)
        return there is not None and (known is None or there.sha256 in (None, known.sha256))

    def made(self, artifact: Artifact) -> None:
        """Notes a product that was just made; its record is written when it is uploaded."""
        self._made[artifact.name] = artifact

    def run(self, step: Step) -> None:
        """Queues an upload, or fetches what the repo has and this machine needs."""
        self._live.progress.started(step)
        name = step.product.removeprefix(UPLOADED)
        path = self._ctx.folder / name
        if step.kind == FETCH:
            if not path.exists():
                size = (there.size if (there := self._publisher.file(name)) else 0) or 1
                self.make_room(size)
                self._publisher.fetch(name, path, lambda done: self._live.progress.fraction(step, done / size))
            self._live.progress.finished(step, None)
            return
        self._publisher.put(path, self._made.get(name) or artifact_of(path))

    def make_room(self, needed: int) -> None:
        """Deletes quants that the repo holds, and waits for uploads, until `needed` bytes are free."""
        while free_bytes(self._ctx.folder) < needed + MARGIN:
            self._ctx.check_stopped()
            if not self._delete_one():
                if not self._publisher.busy:
                    free = free_bytes(self._ctx.folder)
                    raise DiskError(
                        f"{human_size(needed)} are needed in {self._ctx.folder} and {human_size(free)} are free: "
                        "free some space and run the same command again; what is finished stays."
                    )
                time.sleep(0.5)

    def finish(self, *, measured: bool) -> None:
        """Waits for the uploads, and the card with the last figures; then lets go of what was saved for a restart."""
        if measured:
            self._publisher.drain()  # files bring a card along: this one comes after them
            self._publisher.refresh_card()
        self._publisher.drain()
        try:
            if names := self.safe.names():
                self.safe.drop(names)
        except (HubAway, QuotaError) as error:
            logger.warning("unfinished work stays in the state repo: %s", error)

    def tell(self, job: Job) -> None:
        """Says on the card how the job ended."""
        self._ending = job
        self._publisher.last_card()

    def close(self) -> None:
        self._publisher.close()

    def _delete_one(self) -> bool:
        """Deletes a quant that is in the repo; if it can be, one that no later quant would copy tensors from."""
        steps = plan(self._job.request)
        waiting = {step.reads[1] for step in steps if step.kind == EVALUATE} - self._runner.measured(self._job.id)
        quants = [step for step in steps if step.kind == QUANTIZE]
        here = {step.product for step in quants if (self._ctx.folder / step.product).exists()}
        safe = {step.product for step in quants if self.has(step.product)}
        due = {_tensor_type(step) for step in quants if step.product not in here | safe}
        can_go = [step for step in quants if step.product in (here & safe) - waiting]
        for step in sorted(can_go, key=lambda step: _tensor_type(step) in due)[:1]:
            (self._ctx.folder / step.product).unlink()
            return True
        return False

    def _uploaded(self, artifacts: list[Artifact]) -> None:
        for artifact in artifacts:
            self._live.progress.finished(self._uploads[artifact.name], artifact)
        self._runner.record(self._job.id, artifacts)
        self._let_go(artifacts)

    def _let_go(self, artifacts: list[Artifact]) -> None:
        """Deletes what was saved of these while they were being made."""
        try:
            names = self.safe.names()
            if stale := [name for artifact in artifacts for name in saved_files(names, artifact.name)]:
                self.safe.drop(stale)
        except HubError as error:  # it goes at the end of the job, or with the next one
            logger.warning("parts of finished quants stay in the state repo: %s", error)

    def _pages(self, uploaded: Mapping[str, int]) -> dict[str, str]:
        job = self._ending or self._runner._latest(self._job)
        for artifact in list(self._made.values()):  # the record knows them when they are uploaded
            job = job.with_artifact(artifact)
        facts = card_facts.gather(
            job,
            self._runner.store.jobs(),
            sizes=uploaded,
            file=self._publisher.file,
            folder=self._ctx.folder,
            forecast=self._live.forecast,
            llama_commit=self._runner.llama.commit,
        )
        return pages(job, facts)


def _tensor_type(step: Step) -> str:
    """Of most tensors of a quant; empty if it is made to order."""
    row = BY_NAME.get(step.quant_type)
    return row.tensor_type if row else ""

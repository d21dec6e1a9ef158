"""The output repo on the Hub as a run's destination: uploads and fetches, room on the disk, the card."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ggufy.core.errors import Cancelled, DiskError, HubError, UsageError
from ggufy.core.job import Artifact, Job, was_at_work
from ggufy.core.names import check_card
from ggufy.core.plan import Products, Step, Upload
from ggufy.core.words import human_size
from ggufy.hub.protocol import Hub
from ggufy.publish import card_facts
from ggufy.publish.card import CARD, pages
from ggufy.publish.readme import check_readme
from ggufy.publish.uploader import Uploader
from ggufy.records.patience import Patience
from ggufy.records.records import JobRecords
from ggufy.records.run_state import RunState
from ggufy.records.state_repo import StateRepo
from ggufy.steps import files_made, plan
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.forecast import MARGIN
from ggufy.steps.outputs import output_of
from ggufy.steps.partial_backup import saved_files
from ggufy.system.clock import sleep
from ggufy.system.files import free_bytes

logger = logging.getLogger(__name__)
_ROOM_S = 0.5  # between looks at the disk while uploads make room


class StateBackupStore:
    """Unfinished work of jobs with the same inputs, in the state repo, which only this runner changes while it has the
    lease. What is asked for waits for a Hub that is away; what is saved does not."""

    def __init__(self, state: StateRepo, key: str, patience: Patience):
        self._state, self._key, self._patience = state, key, patience
        self._names: set[str] | None = None  # once the Hub was asked

    def names(self) -> list[str]:
        if self._names is None:
            self._names = set(self._patience(lambda: self._state.kept(self._key)))
        return sorted(self._names)

    def put(self, path: Path, drop: Collection[str] = ()) -> None:
        names = {path.name, *self.names()}
        self._state.keep(self._key, {path.name: path}, self._patience.stopped)
        self._names = names
        self.drop(drop)

    def get(self, name: str, target: Path) -> None:
        self._patience(lambda: self._state.fetch(self._key, name, target))

    def drop(self, names: Collection[str]) -> None:
        if names:
            self._state.drop(self._key, names)
            self._names = set(self.names()) - set(names)

    def wait_s(self) -> float:
        return self._state.wait_s()


@dataclass(frozen=True, kw_only=True)
class Places:
    """What a destination on the Hub works with, besides the job."""

    hub: Hub
    state: StateRepo
    records: JobRecords
    llama_commit: str


class HubRepo:
    """One run of one job towards its output repo."""

    keeps_all = False

    def __init__(self, places: Places, job: Job, ctx: Context, live: RunState, patience: Patience):
        self._places, self._records, self._hub = places, places.records, places.hub
        self._job, self._ctx, self._live, self._patience = job, ctx, live, patience
        self._ending: Job | None = None
        self._made: dict[str, Artifact] = {}
        self.safe = StateBackupStore(places.state, job.request.inputs()[:16], patience)
        self._uploads = {step.file_name: step for step in plan(job.request) if isinstance(step, Upload)}
        self._uploader = Uploader(
            places.hub,
            job.request.repo_id,
            private=job.request.private,
            pages=self._pages,
            patience=patience,
            held_up=lambda: places.state.misses(job.id),
            uploaded=self._uploaded,
            fraction=lambda artifact, done: live.progress.fraction(self._uploads[artifact.name], done),
        )

    def start(self, *, resumed: bool) -> None:
        self._uploader.start(self._patience)
        repo_id = self._job.request.repo_id
        self._patience(lambda: self._hub.count_past_commits(repo_id, kind="model"))
        request = self._job.request
        if not request.keep_card and (readme := self._patience(self._readme)):
            check_readme(readme, request.repo_id)
            check_card(readme, repo_id=request.repo_id, name=request.name)
        names = [name for name in self._uploads if self._uploader.file(name)]
        owners = [job for job in self._records.all() if job.request.repo_id == request.repo_id and was_at_work(job)]
        owner = max(owners, key=lambda job: job.updated, default=None)
        if names and not resumed and (owner is None or owner.request.inputs() != request.inputs()):
            raise UsageError(
                "{repo} already holds {file}, made from something else or with other options: give this run "
                "another {REPO} or {NAME}.",
                repo=request.repo_id,
                file=names[0],
            )
        self._adopt()

    def _adopt(self) -> None:
        """Notes products that the repo holds and the record does not know: the run before this one was killed when
        they had just been uploaded."""
        known = {artifact.name for artifact in self._latest().artifacts}
        there = {name: self._uploader.file(name) for name in self._uploads if name not in known}
        found = [Artifact(name=n, size=f.size, sha256=f.sha256) for n, f in there.items() if f and f.sha256]
        if found:
            self._records.add_artifacts(self._job.id, found)

    def has(self, name: str) -> bool:
        """One that differs from what this job has made does not count."""
        there = self._uploader.file(name)
        known = next((a for a in self._latest().artifacts if a.name == name), None)
        return there is not None and (known is None or there.sha256 in (None, known.sha256))

    def accept(self, step: Step, artifact: Artifact | None) -> None:
        if artifact:
            self._made[artifact.name] = artifact  # its record is written when it has arrived
        elif isinstance(step, Upload):
            self._live.progress.started(step)
            path = self._ctx.folder / step.file_name
            self._uploader.put(path, self._made.get(step.file_name) or artifact_of(path))

    def fetch(self, step: Step) -> None:
        self._live.progress.started(step)
        path = self._ctx.folder / step.product
        if not path.exists():
            size = (there.size if (there := self._uploader.file(step.product)) else 0) or 1
            self.make_room(size)
            self._patience(lambda: self._download(step, path, size))
        self._live.progress.finished(step, None)

    def _download(self, step: Step, path: Path, size: int) -> None:
        self._hub.download(
            self._job.request.repo_id,
            step.product,
            path,
            kind="model",
            progress=lambda done: self._live.progress.fraction(step, done / size),
            stopped=self._ctx.stopped,
        )

    def make_room(self, needed: int) -> None:
        """Deletes quants that the repo holds, and waits for uploads, until `needed` bytes are free."""
        idle = False
        while free_bytes(self._ctx.folder) < needed + MARGIN:
            self._ctx.check_stopped()
            if self._delete_one():
                continue
            if idle:
                free = free_bytes(self._ctx.folder)
                raise DiskError(
                    "{needed} are needed in {folder} and {free} are free: free some space and {AGAIN}; what is "
                    "finished stays.",
                    needed=human_size(needed),
                    folder=self._ctx.folder,
                    free=human_size(free),
                )
            idle = not self._uploader.busy  # an upload may have ended since the disk was looked at: once more
            if not idle:
                self._live.progress.waits(self._uploader.waits_for)
                sleep(_ROOM_S, self._ctx.stopped, self._patience.clock)
        self._live.progress.waits("")

    def finish(self, *, measured: bool) -> None:
        """Waits for the uploads, and the card with the last figures; then lets go of what was saved for a restart."""
        say = self._live.progress.waits
        if measured:
            self._uploader.drain(say)  # files bring a card along: this one comes after them
            self._uploader.refresh_card()
        self._uploader.drain(say)
        self.safe.drop(self.safe.names())

    def tell(self, job: Job) -> None:
        self._ending = job
        self._uploader.last_card()

    def close(self) -> None:
        self._uploader.close()

    def _latest(self) -> Job:
        return self._records.latest(self._job.id) or self._job

    def _delete_one(self) -> bool:
        """Deletes a quant that is in the repo and that no step waits for; if it can be, one that no later quant would
        copy tensors from."""
        job, request = self._latest(), self._job.request
        products = Products(
            job=job,
            here=lambda product: self._ctx.path(product).exists(),
            arrived=self.has,
            measured={figures.quant for figures in job.evaluations},
        )
        waiting = {name for step in plan(request) if not step.done(products) for name in step.reads}
        quants = [step for step in files_made(request) if not step.stays]
        here = {step.product for step in quants if step.done(products)}
        safe = {step.product for step in quants if self.has(step.product)}
        due = {self._tensor_type(step) for step in quants if step.product not in here | safe}
        can_go = [step for step in quants if step.product in (here & safe) - waiting]
        for step in sorted(can_go, key=lambda step: self._tensor_type(step) in due)[:1]:
            (self._ctx.folder / step.product).unlink()
            return True
        return False

    def _tensor_type(self, step: Step) -> str:
        """Of most tensors of a quant; empty if it is made to order."""
        row = output_of(self._job.request).types.get(step.quant_type)
        return row.tensor_type if row else ""

    # ---- in the uploader's thread

    def _uploaded(self, artifacts: list[Artifact]) -> None:
        for artifact in artifacts:
            self._live.progress.finished(self._uploads[artifact.name], artifact)
        self._records.add_artifacts(self._job.id, artifacts)
        self._let_go(artifacts)

    def _let_go(self, artifacts: list[Artifact]) -> None:
        """Deletes what was saved of these while they were being made."""
        try:
            names = self.safe.names()
            self.safe.drop([name for artifact in artifacts for name in saved_files(names, artifact.name)])
        except (HubError, Cancelled) as error:  # it goes at the end of the job, or with the next one
            logger.warning("parts of finished quants stay in the state repo: %s", error)

    def _pages(self, uploaded: Mapping[str, int]) -> dict[str, str]:
        job = self._ending or self._latest()
        for artifact in list(self._made.values()):  # the record knows them when they are uploaded
            job = job.with_artifact(artifact)
        facts = card_facts.gather(
            job,
            self._records.all(),
            sizes=uploaded,
            file=self._uploader.file,
            folder=self._ctx.folder,
            forecast=self._live.forecast,
            llama_commit=self._places.llama_commit,
        )
        return pages(job, facts, readme=None if job.request.keep_card else self._readme())

    def _readme(self) -> str | None:
        """What the repo's README.md says now: somebody may have written into it since the last commit."""
        data = self._hub.read(self._job.request.repo_id, CARD, kind="model")
        return None if data is None else data.decode("utf-8", errors="replace")

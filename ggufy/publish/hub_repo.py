"""The output repo as a run's destination, or several that get the same files: uploads, fetches, room on the disk."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ggufy.core.errors import Cancelled, DiskError, HubError
from ggufy.core.hosts import RepoName
from ggufy.core.job import Artifact, Job
from ggufy.core.plan import Products, Step, Upload
from ggufy.core.words import human_size
from ggufy.hub.protocol import OutputHub
from ggufy.publish import card_facts
from ggufy.publish.card import CardFacts
from ggufy.publish.output_repo import OutputRepo
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
    """What a destination on hubs works with, besides the job."""

    hubs: Mapping[str, OutputHub]  # by the names of core/hosts.py
    state: StateRepo | None  # None: records stay on this machine, and so does unfinished work
    records: JobRecords
    llama_commit: str
    card: bool = True  # False: another runner writes it


class HubRepo:
    """One run of one job towards its output repos. A file has arrived when it is in all of them."""

    keeps_all = False

    def __init__(self, places: Places, job: Job, ctx: Context, live: RunState, patience: Patience):
        self._records, self._job, self._ctx, self._live, self._patience = places.records, job, ctx, live, patience
        self._made: dict[str, Artifact] = {}
        self._fractions: dict[tuple[str, str], float] = {}  # by file name and repo
        self.safe: StateBackupStore | None = None
        if places.state is not None:
            self.safe = StateBackupStore(places.state, job.request.inputs()[:16], patience)
        self._uploads = {step.file_name: step for step in plan(job.request) if isinstance(step, Upload)}
        self._repos = [
            OutputRepo(
                places.hubs[RepoName.of(name).host],
                name,
                self._latest,
                card=partial(self._facts, places.llama_commit) if places.card else None,
                patience=patience,
                held_up=partial(places.state.misses, job.id) if places.state is not None else lambda: "",
                uploaded=self._uploaded,
                fraction=partial(self._fraction, name),
            )
            for name in job.request.repos
        ]

    def start(self, *, resumed: bool) -> None:
        for repo in self._repos:
            repo.start(self._records.all(), self._uploads, resumed=resumed)
        self._adopt()

    def look_again(self) -> None:
        for repo in self._repos:
            self._patience(repo.uploader.look_again)
        self._adopt()

    def _adopt(self) -> None:
        """Notes products that the repos hold and the record does not know: who made them was killed when they had
        just been uploaded."""
        known = {artifact.name for artifact in self._latest().artifacts}
        there = {name: self._repos[0].file(name) for name in self._uploads if name not in known and self.has(name)}
        found = [Artifact(name=n, size=f.size, sha256=f.sha256) for n, f in there.items() if f and f.sha256]
        if found:
            self._records.add_artifacts(self._job.id, found)

    def has(self, name: str) -> bool:
        """One that differs from what this job has made does not count."""
        return all(self._holds(repo, name) for repo in self._repos)

    def _holds(self, repo: OutputRepo, name: str) -> bool:
        there = repo.file(name)
        known = next((a for a in self._latest().artifacts if a.name == name), None)
        return there is not None and (known is None or there.sha256 in (None, known.sha256))

    def accept(self, step: Step, artifact: Artifact | None) -> None:
        if artifact:
            self._made[artifact.name] = artifact  # its record is written when it has arrived
        elif isinstance(step, Upload):
            self._live.progress.started(step)
            path = self._ctx.folder / step.file_name
            artifact = self._made.get(step.file_name) or artifact_of(path)
            for repo in self._repos:
                repo.uploader.put(path, artifact)

    def fetch(self, step: Step) -> None:
        self._live.progress.started(step)
        path = self._ctx.folder / step.product
        if not path.exists():
            repo = next((repo for repo in self._repos if repo.file(step.product)), self._repos[0])
            size = (there.size if (there := repo.file(step.product)) else 0) or 1
            self.make_room(size)
            self._patience(lambda: self._download(repo, step, path, size))
        self._live.progress.finished(step, None)

    def _download(self, repo: OutputRepo, step: Step, path: Path, size: int) -> None:
        repo.hub.download(
            repo.repo_id,
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
            # An upload may have ended since the disk was looked at: once more.
            busy = [repo.uploader for repo in self._repos if repo.uploader.busy]
            idle = not busy
            if busy:
                self._live.progress.waits(next((one.waits_for for one in busy if one.waits_for), ""))
                sleep(_ROOM_S, self._ctx.stopped, self._patience.clock)
        self._live.progress.waits("")

    def finish(self, *, measured: bool) -> None:
        """Waits for the uploads, and the card with the last figures; then lets go of what was saved for a restart."""
        self._drain()
        if measured:  # files bring a card along: this one comes after them
            for repo in self._repos:
                repo.uploader.refresh_card()
            self._drain()
        if self.safe is not None:
            self.safe.drop(self.safe.names())

    def _drain(self) -> None:
        for repo in self._repos:
            repo.uploader.drain(self._live.progress.waits)

    def tell(self, job: Job) -> None:
        for repo in self._repos:
            repo.last_card(job)

    def close(self) -> None:
        for repo in self._repos:
            repo.uploader.close()

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

    # ---- in the uploaders' threads

    def _fraction(self, repo: str, artifact: Artifact, done: float) -> None:
        """How much of a file has arrived, of all that is to be sent."""
        self._fractions[artifact.name, repo] = done
        parts = [self._fractions.get((artifact.name, one.name), 0.0) for one in self._repos]
        self._live.progress.fraction(self._uploads[artifact.name], sum(parts) / len(parts))

    def _uploaded(self, artifacts: list[Artifact]) -> None:
        if not (arrived := [one for one in artifacts if all(repo.holds(one) for repo in self._repos)]):
            return
        for artifact in arrived:
            self._live.progress.finished(self._uploads[artifact.name], artifact)
        self._records.add_artifacts(self._job.id, arrived)
        self._let_go(arrived)

    def _let_go(self, artifacts: list[Artifact]) -> None:
        """Deletes what was saved of these while they were being made."""
        if self.safe is None:
            return
        try:
            names = self.safe.names()
            self.safe.drop([name for artifact in artifacts for name in saved_files(names, artifact.name)])
        except (HubError, Cancelled) as error:  # it goes at the end of the job, or with the next one
            logger.warning("parts of finished quants stay in the state repo: %s", error)

    def _facts(
        self, llama_commit: str, job: Job, repo: OutputRepo, uploaded: Mapping[str, int]
    ) -> tuple[Job, CardFacts]:
        """What the card of a repo that holds these files (name -> bytes) is made from."""
        for artifact in list(self._made.values()):  # the record knows them when they are uploaded
            job = job.with_artifact(artifact)
        facts = card_facts.gather(
            job,
            self._records.all(),
            sizes=uploaded,
            file=repo.file,
            folder=self._ctx.folder,
            forecast=self._live.forecast,
            llama_commit=llama_commit,
        )
        return job, facts

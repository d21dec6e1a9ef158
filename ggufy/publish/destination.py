"""Where one run's products go: a folder of this machine, or a repo (hub_repo.py). The runner does not know which."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ggufy.core.errors import UsageError
from ggufy.core.job import Artifact, Job
from ggufy.core.job_sharing import folder_owners
from ggufy.core.plan import Step
from ggufy.records.records import JobRecords
from ggufy.steps.context import BackupStore
from ggufy.steps.outputs import output_of


class Destination(Protocol):
    """For one run of one job. Every method waits for what passes, and raises what does not."""

    @property
    def safe(self) -> BackupStore | None:
        """Where unfinished work outlives this machine; None: nowhere."""

    @property
    def keeps_all(self) -> bool:
        """True if everything stays on this disk; else the disk holds what is needed just now."""

    def start(self, *, resumed: bool) -> None:
        """Looks at what is there. Unless this job was at work there before, raises UsageError if it holds files of
        something else under this job's names; nothing is touched then."""

    def has(self, name: str) -> bool:
        """True if this product has arrived."""

    def look_again(self) -> None:
        """Takes note of what other runners have brought there since. Raises what went wrong with an upload."""

    def accept(self, step: Step, artifact: Artifact | None) -> None:
        """Takes what a step has made (`artifact`), or, with an upload step, the file that it names."""

    def fetch(self, step: Step) -> None:
        """Brings a product back here that a step reads."""

    def make_room(self, needed: int) -> None:
        """Sees to it that so many bytes are free here. Raises DiskError."""

    def finish(self, *, measured: bool) -> None:
        """Returns when everything has arrived; `measured`: this run has found new figures."""

    def tell(self, job: Job) -> None:
        """Says where people look how the job ended, if it did not end well."""

    def close(self) -> None:
        """Ends what still goes on; may be called at any time, and twice."""


class LocalFolder:
    """The output folder: what a step leaves there has arrived."""

    safe: BackupStore | None = None
    keeps_all = True

    def __init__(self, records: JobRecords, job: Job, folder: Path):
        self._records, self._job, self._folder = records, job, folder

    def start(self, *, resumed: bool) -> None:
        check_folder(self._records, self._job, self._folder)

    def has(self, name: str) -> bool:
        return (self._folder / name).exists()

    def look_again(self) -> None:
        pass  # one runner works in a folder

    def accept(self, step: Step, artifact: Artifact | None) -> None:
        if artifact:
            self._records.add_artifacts(self._job.id, [artifact])

    def fetch(self, step: Step) -> None:
        raise AssertionError("what is in the folder need not be fetched")

    def make_room(self, needed: int) -> None:
        pass  # the forecast has counted everything

    def finish(self, *, measured: bool) -> None:
        pass

    def tell(self, job: Job) -> None:
        pass

    def close(self) -> None:
        pass


def check_folder(records: JobRecords, job: Job, folder: Path) -> None:
    """Products are trusted by name, so a folder may hold those of one source and one set of options only. Raises
    UsageError."""
    names = output_of(job.request).names
    if not any(True for suffix in (names.suffix, names.base_suffix) for _ in folder.glob(f"*.{suffix}")):
        return
    owner = folder_owners(records.all()).get(job.request.folder)
    if owner is None or owner.request.inputs() != job.request.inputs():
        raise UsageError(
            "{folder} already holds files that were made from something else or with other options: give this run "
            "another {NAME} or {OUT}, or move that folder away.",
            folder=folder,
        )

"""Deletes what jobs have left on this machine: a file, a job's record, or a model with all of it.

Only for the page's owner, and never while a job of the model waits or runs. What is published stays where it is.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from ggufy.core.errors import DiskError, UsageError
from ggufy.core.job import RESTING, Job
from ggufy.jobs.queue import Worker
from ggufy.service.access import Visitor, check_delete
from ggufy.service.job_views import JobViews
from ggufy.steps import files_made
from ggufy.system.files import PART_SUFFIX
from ggufy.system.settings import Settings

Known = Callable[[str, Visitor], Job]  # the job of an id that a visitor may know of; raises UsageError
_LOCK = ".lock"


class Library:
    """See above. Any thread may call any method; each raises UsageError or DiskError."""

    def __init__(self, settings: Settings, worker: Worker, views: JobViews, known: Known):
        self._settings, self._worker, self._views, self._known = settings, worker, views, known

    def delete_file(self, job_id: str, name: str, visitor: Visitor) -> None:
        """Deletes a finished file of a job here; jobs that are not published forget that they made it."""
        job = self._allowed(job_id, visitor)
        view = self._views.of(job.id)
        if view is None or name not in view.here or name not in [row["file"] for row in view.files]:
            raise UsageError("this file is not there any more: reload the page.")
        path, jobs = view.folder / name, self._same_model(job)

        def work() -> None:
            _unlink(path)
            for one in jobs:
                if not one.request.repos:
                    self._worker.records.forget_artifact(one.id, name)

        self._while_resting(jobs, work)

    def delete_job(self, job_id: str, visitor: Visitor) -> None:
        """Deletes the record and the logs of a job whose files other jobs of its model know too."""
        job = self._allowed(job_id, visitor)
        if self.only_of(job):
            raise UsageError("the list of its files would be lost: delete these first, or the whole model.")
        self._while_resting([job], lambda: self._worker.records.remove(job.id))

    def delete_model(self, job_id: str, visitor: Visitor) -> None:
        """Deletes all files, records and logs of a job's model; what else somebody put into its folder stays."""
        job = self._allowed(job_id, visitor)
        folder, jobs = self._settings.out / job.request.folder, self._same_model(job)
        store = self._worker.records.store
        made = {step.product for one in jobs for step in files_made(one.request)}

        def work() -> None:
            for name in sorted(made):
                for path in (folder / name, folder / f"{name}{PART_SUFFIX}"):
                    _unlink(path)
            for one in jobs:
                shutil.rmtree(store.work_folder(one.request.inputs()), ignore_errors=True)
                self._worker.records.remove(one.id)
            if folder.is_dir() and {path.name for path in folder.iterdir()} <= {_LOCK}:
                with contextlib.suppress(OSError):  # somebody has put something there just now
                    (folder / _LOCK).unlink(missing_ok=True)
                    folder.rmdir()

        self._while_resting(jobs, work)

    def only_of(self, job: Job) -> set[str]:
        """Names of the files that no other job of the model lists."""
        own = {step.product for step in files_made(job.request)}
        others = {
            step.product for one in self._same_model(job) if one.id != job.id for step in files_made(one.request)
        }
        view = self._views.of(job.id)
        return {row["file"] for row in view.files if row["file"] in own - others} if view else set()

    def _allowed(self, job_id: str, visitor: Visitor) -> Job:
        check_delete(visitor, self._settings)
        return self._known(job_id, visitor)

    def _same_model(self, job: Job) -> list[Job]:
        return [one for one in self._worker.jobs() if one.request.folder == job.request.folder]

    def _while_resting(self, jobs: Iterable[Job], work: Callable[[], None]) -> None:
        """Does it while none of the jobs can begin."""
        given = list(jobs)
        if any(job.status not in RESTING for job in given) or not self._worker.while_resting(
            {job.id for job in given}, work
        ):
            raise UsageError("a job of this model waits or runs: cancel it first, or wait for its end.")
        self._views.look_again()


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(
            "{name} cannot be deleted ({reason}): check its permissions.", name=path.name, reason=error.strerror or ""
        ) from error

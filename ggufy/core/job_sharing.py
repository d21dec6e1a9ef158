"""What jobs have of each other: figures of the same files, and whose the files in a folder are. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from ggufy.core.job import Job, Request, Status
from ggufy.core.metrics import Evaluation


def evaluations_for(request: Request, jobs: Iterable[Job]) -> tuple[Evaluation, ...]:
    """What `jobs` have measured that a job with this request would measure again: the same files, by their digests,
    over the same text.

    Where several have measured a file, the oldest record counts, so that all show the same figures.
    """
    if not request.evaluate:
        return ()
    inputs = request.inputs()
    same = sorted((j for j in jobs if j.request.inputs() == inputs), key=lambda j: (j.created, j.id))
    own = [j for j in same if j.id == request.job_id]
    digests = {a.name: a.sha256 for j in (*sorted(same, key=lambda j: j.updated), *own) for a in j.artifacts}
    names = {request.file_of(quant): quant in request.targets for quant in request.quants}
    text = (request.evaluation_sha256, request.evaluation_chunks)
    more = {text.sha256 for text in request.evaluation_more}
    found: dict[str, Evaluation] = {}
    for other in (*own, *same):
        if (other.request.evaluation_sha256, other.request.evaluation_chunks) != text:
            continue
        for figures in other.evaluations:
            made_to_order = names.get(figures.quant)
            known = digests.get(figures.quant, "" if made_to_order else figures.quant_sha256)
            whole = more <= {one.text_sha256 for one in figures.others}
            if made_to_order is not None and figures.quant_sha256 == known and whole:
                found.setdefault(figures.quant, figures)
    most = max((figures.tokens for figures in found.values()), default=0)  # a fuller disk gave older records fewer
    return tuple(figures for figures in found.values() if figures.tokens == most)


def was_at_work(job: Job) -> bool:
    """True if files may be this job's."""
    return job.begun or bool(job.artifacts) or job.status is Status.RUNNING  # the latter two: as older records tell


def folder_owners(jobs: Iterable[Job]) -> dict[str, Job]:
    """By name of the output folder, the job that worked last in it: the files there are of its inputs."""
    owners: dict[str, Job] = {}
    for job in jobs:
        if was_at_work(job):
            name = job.request.folder
            owners[name] = max(owners.get(name, job), job, key=lambda one: one.updated)
    return owners

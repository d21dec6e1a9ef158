"""Which of two records of one job counts: of this machine, and of the state repo. No I/O."""

from __future__ import annotations

from ggufy.core.job import DECIDED, Job, Status


def merged(own: Job, theirs: Job, *, unsent: bool) -> Job:
    """What counts of two records of a job: of this machine, and of the state repo.

    The one written later counts, and nothing that only the other knows is lost: neither products nor figures nor,
    while the own one is `unsent`, what a person has decided about the job here.
    """
    own_is_newer = _age(own) > _age(theirs)
    newer, older = (own, theirs) if own_is_newer else (theirs, own)
    created = min(filter(None, (own.created, theirs.created)), default="")
    begun = newer.begun or older.begun
    took_s = max(newer.took_s, older.took_s)
    found = newer.evolve(frontier=newer.frontier or older.frontier, created=created, begun=begun, took_s=took_s)
    known, measured = {a.name for a in newer.artifacts}, {e.quant for e in newer.evaluations}
    for artifact in (a for a in older.artifacts if a.name not in known):
        found = found.with_artifact(artifact)
    for figures in (e for e in older.evaluations if e.quant not in measured):
        found = found.with_evaluation(figures)
    if unsent and own.status in DECIDED and (theirs.status is not Status.DONE or own.status is Status.QUEUED):
        found = found.evolve(status=own.status, error=own.error, cause=own.cause)
    return found


def _age(job: Job) -> tuple[int, int, str]:
    """Records of older versions know nothing but the time."""
    return job.term, job.serial, job.updated

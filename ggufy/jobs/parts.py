"""A run goes through its job part by part: all of it at once, or quant by quant where several Jobs share the work
(sharing.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from ggufy.core.job import Job
from ggufy.core.job_sharing import evaluations_for
from ggufy.core.plan import Products, Step, pending
from ggufy.publish.destination import Destination
from ggufy.records.patience import Patience
from ggufy.records.records import JobRecords
from ggufy.steps import plan
from ggufy.steps.context import Context

Wanted = Callable[[Step], bool]  # whether a part is about what a step leaves


@dataclass(frozen=True, kw_only=True)
class RunPlace:
    """Where one run of a job works, and what is due there."""

    ctx: Context
    records: JobRecords
    destination: Destination
    patience: Patience

    def steps(self, wanted: Wanted) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        """All steps, and those that are due for what is wanted: what is not is made only if that needs it."""
        request = self.ctx.request
        job = self.records.latest(request.job_id) or Job(request=request)
        products = Products(
            job=job,
            here=lambda product: self.ctx.path(product).exists(),
            arrived=self.destination.has,
            measured=frozenset(figures.quant for figures in evaluations_for(request, [job])),
        )
        steps = plan(request, streamed=self.ctx.streams)
        steps = tuple(step if wanted(step) else replace(step, final=False) for step in steps)
        return steps, pending(steps, lambda step: step.done(products))


class Parts(Protocol):
    """How a job is divided, and what of it this run makes."""

    shared: bool  # others are at work on the job, and a run that has lost the lease goes on as one that helps
    helps: bool  # another runner has the lease, and writes record and card

    def turns(self, place: RunPlace) -> Iterator[Wanted]:
        """One part after the other, each as soon as it can be made; the run makes it before it asks for the next."""


class Alone:
    """One run makes everything."""

    shared = helps = False

    def turns(self, place: RunPlace) -> Iterator[Wanted]:
        yield everything


def everything(step: Step) -> bool:
    return True

"""Several Jobs of the Hub share the work of one job.

All run the same command. Whoever gets the account's lease leads: it makes base, imatrix and what else is no quant,
writes record and card, and makes sizes to order at the end. The others help as soon as the base is in the output repo.
Each, the leader too, claims a quant (records/shares.py), makes, uploads and measures it, and claims the next.

    a helper ends        what it had claimed and not finished is claimed by others as soon as the Hub says that it has
                         ended; the Hub begins it again when it failed, and then it goes on with its own claims
    the leader ends      its lease runs out, a helper gets it and leads, with the files that it has
    it loses the lease   it goes on as a helper, with its claims
    nothing is left      helpers end when every quant is made; the leader joins what all have found
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from ggufy.core.errors import Cancelled, HubError, LeaseLost
from ggufy.core.job import COMPENSATED, Job, Request, Status
from ggufy.core.messages import Message
from ggufy.core.plan import Step, base_name, imatrix_name
from ggufy.hub.remote_jobs import RemoteJobs
from ggufy.jobs.parts import RunPlace, Wanted, everything
from ggufy.jobs.runner import Runner
from ggufy.jobs.workspace import Workspace
from ggufy.llama.install import Llama
from ggufy.records.patience import Patience
from ggufy.records.records import JobRecords
from ggufy.records.run_state import RunState
from ggufy.records.shares import Claim, Shares
from ggufy.steps.analyse import AnalyseStep
from ggufy.system.clock import sleep
from ggufy.system.settings import Settings

logger = logging.getLogger(__name__)
JOB_LABEL, WORKER_LABEL = "ggufy", "ggufy-worker"  # of a Job: the job's id, and its own name among those that share it
_POLL_S = 15.0  # between looks at what the others do


class SharedRunner(Runner):
    """Runs jobs together with others."""

    def __init__(self, *, settings: Settings, llama: Llama, threads: int | None, workspace: Workspace):
        """The workspace has a state repo, and the settings say which worker this is."""
        super().__init__(settings=settings, llama=llama, threads=threads, workspace=workspace)
        self._poll_s = min(_POLL_S, self.settings.lease_s / 40)
        self._jobs = RemoteJobs(self.settings.hf_token)

    def run(self, job: Job, live: RunState | None = None) -> Job:
        """Leads or helps until the job has ended, or nothing is left to help with. Raises Cancelled at a shutdown."""
        live, hub, state = live or RunState(), self.workspace.hub, self.workspace.state
        assert hub is not None and state is not None
        shares = Shares(hub, state.repo_id, job.id, self.settings.worker)
        patience = Patience(stopped=live.stop, say=live.progress.waits)
        while True:
            if self._leads_soon(live):
                try:
                    return self._lead(job, live, shares)
                except LeaseLost as error:
                    logger.warning("job %s is led by another Job: this one helps: %s", job.id, error)
            record = patience(shares.record)
            if record is not None and record.status is Status.DONE:
                return record
            if record is not None and can_be_helped(record):
                self.records.take_over(record, unsent=False)
                parts = self._parts_of(job, shares, helps=True)
                ended = self._help(job, live, parts)
                if parts.all_made or ended.status is not Status.DONE:
                    return ended

    def _help(self, job: Job, live: RunState, parts: SharedParts) -> Job:
        workspace = replace(self.workspace, state=None)
        helper = Runner(settings=self.settings, llama=self.llama, workspace=workspace, limit=self.limit, parts=parts)
        changed = self.records.changed
        self.records.changed = lambda job_id: None  # the leader's record is the one that goes to the Hub
        try:
            return helper.run(job, live)
        finally:
            self.records.changed = changed

    def _lead(self, job: Job, live: RunState, shares: Shares) -> Job:
        self._parts = self._parts_of(job, shares, helps=False)
        ended = super().run(job, live)
        if ended.status is Status.DONE and self.workspace.state is not None:
            try:  # with or after the record, which says all that they say
                self.workspace.state.drop(shares.key, [f"{quant}.json" for quant in shares.claims()])
            except HubError as error:
                logger.warning("the claims of job %s stay in the state repo: %s", job.id, error)
        return ended

    def _parts_of(self, job: Job, shares: Shares, *, helps: bool) -> SharedParts:
        state = self.workspace.state
        assert state is not None
        return SharedParts(
            shares,
            self.records,
            lambda: Counter(labels.get(WORKER_LABEL, "") for labels in self._jobs.alive({JOB_LABEL: job.id}).values()),
            stands_in=(lambda: state.held) if helps else None,
            poll_s=self._poll_s,
        )

    def _leads_soon(self, live: RunState) -> bool:
        """True as soon as the lease is ours; False if it is not after a while."""
        until = time.monotonic() + self._poll_s
        try:
            self.workspace.acquire(lambda: live.stop() or time.monotonic() > until, live.progress.waits)
        except Cancelled:
            if live.stop():
                raise
            return False
        return True


class SharedParts:
    """What one run makes of a job that others work on: quants that nobody else has claimed."""

    shared = True

    def __init__(
        self,
        shares: Shares,
        records: JobRecords,
        alive: Callable[[], Counter[str]],
        *,
        stands_in: Callable[[], bool] | None,
        poll_s: float,
    ):
        """`alive` counts the Jobs at work by the names of their workers. `stands_in` makes this run a helper's, which
        ends when that is true: there is nobody else to lead."""
        self._shares, self._records, self._alive, self._poll_s = shares, records, alive, poll_s
        self._stands_in, self.helps = stands_in, stands_in is not None
        self.all_made = False

    def turns(self, place: RunPlace) -> Iterator[Wanted]:
        request, begun = place.ctx.request, set[str]()
        if not self.helps:
            yield lambda step: not (isinstance(step, AnalyseStep) or about_any(request, request.quants, step))
        while not (self._stands_in and self._stands_in()):
            place.destination.look_again()
            taken = place.patience(lambda: self._claim(place, begun))
            if taken:
                begun.add(taken)
                yield lambda step, taken=taken: about_any(request, [taken], step)  # type: ignore[misc]
            elif self.all_made:
                break
            else:
                place.patience.say(Message("other Jobs make the quants that are left."))
                sleep(self._poll_s, place.ctx.stopped)
        place.patience.say("")
        if not self.helps:
            yield everything

    def _claim(self, place: RunPlace, begun: Collection[str]) -> str:
        """Notes which own quants have arrived, and claims one that is left; empty if there is none to be had."""
        taken = ""

        def choose(claims: Mapping[str, Claim]) -> dict[str, Claim]:
            nonlocal taken
            taken = ""
            left = self._left(place, claims)
            chosen = dict(self._arrived(place, claims, left))
            claims, alive = {**claims, **chosen}, self._alive() if claims else Counter[str]()
            held = {quant for quant, claim in claims.items() if self._holds(quant, claim, begun, alive)}
            if free := [quant for quant in left if quant not in held]:
                taken = free[0]
                chosen[taken] = self._shares.own
            self.all_made = not free and all(claims[quant].made for quant in held)
            return chosen

        written = self._shares.commit(choose)
        return taken if taken in written else ""

    def _holds(self, quant: str, claim: Claim, begun: Collection[str], alive: Mapping[str, int]) -> bool:
        """True if nobody else may make the quant. Of an own earlier attempt, or a twin, only Jobs beside this one
        count."""
        own = self._shares.own
        if claim.made:
            return True
        if claim.run == own.run:
            return quant in begun
        return alive.get(claim.worker, 0) > (claim.worker == own.worker)

    def _left(self, place: RunPlace, claims: Mapping[str, Claim]) -> list[str]:
        """Quants that are not in the repo, or not measured, when all that others have found is known here."""
        request = place.ctx.request
        if self.helps and (record := self._shares.record()):
            self._learn(record)
        for claim in claims.values():
            if claim.made:
                self._learn(claim.made)
        _, due = place.steps(everything)
        return [quant for quant in request.quant_types if any(about_any(request, [quant], step) for step in due)]

    def _arrived(
        self, place: RunPlace, claims: Mapping[str, Claim], left: Collection[str]
    ) -> Iterator[tuple[str, Claim]]:
        """Own quants that nobody knows yet to be made, with what is to be said of them."""
        request = place.ctx.request
        known = self._records.latest(request.job_id)
        for quant, claim in claims.items():
            if known and claim.run == self._shares.own.run and not claim.made and quant not in left:
                yield quant, replace(claim, made=alone(known, request.file_of(quant)))

    def _learn(self, record: Job) -> None:
        """Notes products and figures of others."""
        known = self._records.latest(record.id)
        if known is None:
            return
        here = {(one.name, one.sha256, told) for one in known.artifacts for told in {False, one.making is not None}}
        new = [one for one in record.artifacts if (one.name, one.sha256, one.making is not None) not in here]
        if new:
            self._records.add_artifacts(record.id, new)
        measured = {one.quant for one in known.evaluations}
        for figures in record.evaluations:
            if figures.quant not in measured:
                self._records.add_evaluation(record.id, figures)


def can_be_helped(record: Job) -> bool:
    """True if what quants are made from is in the output repo. Covariances are not: each runner collects them, and
    the imatrix with them."""
    request, there = record.request, {artifact.name for artifact in record.artifacts}
    with_imatrix = request.imatrix != "none" and request.rounding != COMPENSATED
    return base_name(request) in there and (not with_imatrix or imatrix_name(request) in there)


def about_any(request: Request, quants: Collection[str], step: Step) -> bool:
    """True if the step makes, moves or measures one of these quants."""
    return step.quant_type in quants or step.file_name in {request.file_of(quant) for quant in quants}


def alone(job: Job, name: str) -> Job:
    """The record with one file alone."""
    return job.evolve(
        artifacts=tuple(one for one in job.artifacts if one.name == name),
        evaluations=tuple(one for one in job.evaluations if one.quant == name),
        frontier=(),
    )

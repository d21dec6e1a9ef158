"""Where jobs and results go: folders on this machine, or repos on the Hugging Face Hub; chosen once, at the start.

With the Hub, the state repo `<owner>/ggufy-state` says which jobs there are, and a lease in it sees to it that one
runner works at a time: the others wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ggufy.core.errors import HubAway, UsageError
from ggufy.core.job import Job
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.hub.lease import Lease
from ggufy.hub.protocol import Hub
from ggufy.records.account import Account
from ggufy.records.records import JobRecords
from ggufy.records.state_repo import StateRepo
from ggufy.records.store import JobStore
from ggufy.system.clock import never
from ggufy.system.settings import HUB_HF, Settings


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The places of one run of the program. Nothing but `acquire` waits for the network."""

    records: JobRecords
    hub: Hub | None = None  # None: results stay in folders here
    state: StateRepo | None = None
    interval_s: float | None = None  # between renewals of the lease

    @property
    def store(self) -> JobStore:
        return self.records.store

    @property
    def owner(self) -> str:
        """The account that results go to; empty if they stay here, or as long as the Hub has not said whose it is."""
        return self.state.owner if self.state else ""

    def known_owner(self) -> str:
        """As `owner`. Raises HubAway if it is not known yet."""
        if self.state and not self.state.owner:
            raise HubAway("the Hub has not said yet whose token this is: wait until it answers, and start again.")
        return self.owner

    def ours(self, job: Job) -> bool:
        """True if the job's results go where this connection leads."""
        return bool(job.request.repo_id) == (self.hub is not None)

    def start(self) -> None:
        """Begins to ask the Hub; returns at once."""
        if self.state:
            self.state.start(self.interval_s)

    def check(self) -> None:
        """Raises LeaseLost when another runner has taken over; to be asked before anything is changed."""
        if self.state:
            self.state.check()

    def acquire(self, stopped: Callable[[], bool] = never, say: Callable[[str], None] = lambda reason: None) -> None:
        """Waits until this is the one runner and knows every job; `say` gets what is waited for. Raises Cancelled, and
        what somebody must act on."""
        if self.state:
            self.state.acquire(stopped, say)

    def close(self, wait_s: float = 30.0) -> None:
        """Saves what waits, and lets the next runner start at once, if that takes no longer than this."""
        if self.state:
            self.state.close(wait_s)


def connect(settings: Settings) -> Workspace:
    """Looks at the settings and asks nobody. Raises UsageError."""
    records = JobRecords(JobStore(settings.out))
    if settings.hub != HUB_HF:
        return Workspace(records=records)
    if settings.hf_token is None:
        raise UsageError("publishing to the Hub needs a token that may write: set HF_TOKEN, or leave --hub hf out.")
    limit = settings.commits_an_hour
    budget = CommitBudget(limit=limit, reserve=limit // 2, burst=max(1, limit // 6))
    hub = HuggingFaceHub(token=settings.hf_token, budget=budget)
    interval_s = settings.lease_s / 5
    state = StateRepo(
        records,
        hub,
        Account.of_token(hub.user, settings.hf_token),
        make_lease=lambda hub, repo_id: Lease(hub, repo_id, interval_s=interval_s, expires_s=settings.lease_s),
    )
    return Workspace(records=records, hub=hub, state=state, interval_s=interval_s)

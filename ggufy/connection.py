"""Where jobs and results go: folders on this machine, or repos on the Hugging Face Hub; chosen once, at the start.

With the Hub, the state repo `<owner>/ggufy-state` says which jobs there are, and a lease in it sees to it that one
runner works at a time: the others wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ggufy.errors import HubError, UsageError
from ggufy.hub.budget import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.hub.lease import Lease
from ggufy.hub.protocol import Hub, Kind
from ggufy.hub.state import STATE_REPO, JobStore
from ggufy.job import Job
from ggufy.settings import HUB_HF, Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The places of one run of the program."""

    store: JobStore
    hub: Hub | None = None  # None: results stay in folders here
    lease: Lease | None = None
    owner: str = ""  # the account that the token belongs to

    def ours(self, job: Job) -> bool:
        """True if the job's results go where this connection leads."""
        return bool(job.request.repo_id) == (self.hub is not None)

    def check(self) -> None:
        """Raises LeaseLost when another runner has taken over; to be asked before anything is changed."""
        if self.lease is not None:
            self.lease.check()

    def remember(self, repo_id: str, kind: Kind) -> None:
        """Counts the commits of the last hour to this repo, which the process before this one made."""
        if isinstance(self.hub, HuggingFaceHub):
            self.hub.remember(repo_id, kind=kind)

    def acquire(self, stopped: Callable[[], bool]) -> None:
        """Waits for the lease, takes the records of the state repo over, and keeps the lease renewed; does nothing
        while it is held."""
        if self.lease is None or self.lease.held:
            return
        self.lease.stop()
        if not self.lease.try_acquire():
            logger.warning("another runner is at work on %s: this one waits for it", self.lease.repo_id)
            self.lease.acquire(stopped=stopped)
        self.remember(self.lease.repo_id, "dataset")
        self.store.refresh()
        self.lease.start(self.store.beat)

    def close(self) -> None:
        """Saves what waits, and lets the next runner start at once."""
        if self.lease is None:
            return
        try:
            self.store.flush()
        except HubError as error:
            logger.warning("job records could not be saved: %s", error)
        self.lease.release()


def connect(settings: Settings) -> Connection:
    """Looks at the settings; asks the Hub whose token it is. Raises UsageError, HubError."""
    if settings.hub != HUB_HF:
        return Connection(store=JobStore(settings.out))
    if settings.hf_token is None:
        raise UsageError("publishing to the Hub needs a token that may write: set HF_TOKEN, or leave --hub hf out.")
    limit = settings.commits_an_hour
    budget = CommitBudget(limit=limit, reserve=limit // 2, burst=max(1, limit // 6))
    hub = HuggingFaceHub(token=settings.hf_token, budget=budget)
    owner = hub.user()
    repo_id = f"{owner}/{STATE_REPO}"
    lease = Lease(hub, repo_id, interval_s=settings.lease_s / 5, expires_s=settings.lease_s)
    store = JobStore(settings.out, hub=hub, repo_id=repo_id, lease=lease)
    return Connection(store=store, hub=hub, lease=lease, owner=owner)

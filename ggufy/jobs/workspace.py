"""Where jobs and results go: folders on this machine, or repos on the Hugging Face Hub, on ModelScope or on both;
chosen once, at the start.

With the Hub, the state repo `<owner>/ggufy-state` says which jobs there are, and a lease in it sees to it that one
runner works at a time: the others wait. ModelScope cannot compare and swap, so there is no such repo there: with
ModelScope alone, jobs are known on this machine only, as those whose results go to folders.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ggufy.core.errors import Cancelled, GgufyError, HubAway, UsageError
from ggufy.core.hosts import HUGGING_FACE, MODELSCOPE, RepoName
from ggufy.core.job import Job
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.hub.lease import Lease
from ggufy.hub.modelscope import ModelScopeHub
from ggufy.hub.protocol import Hub, OutputHub
from ggufy.jobs.options import JobOptions
from ggufy.net.http_get import hub_host
from ggufy.records.account import Account
from ggufy.records.patience import Patience
from ggufy.records.records import JobRecords
from ggufy.records.state_repo import StateRepo
from ggufy.records.store import JobStore
from ggufy.system.clock import never
from ggufy.system.settings import HUB_HF, HUB_MODELSCOPE, Settings

logger = logging.getLogger(__name__)
_READS_ONLY = ("hf-mirror.com",)  # mirrors of the Hub that take no uploads


class ModelScopeAccount:
    """Repos on ModelScope, and whose they are."""

    def __init__(self, hub: OutputHub, account: Account, records: JobRecords):
        self.hub, self._account, self._folder = hub, account, records.store.root
        self._owner = account.remembered(self._folder)
        self._ends, self._writing = threading.Event(), threading.Lock()

    @property
    def owner(self) -> str:
        """`ms:` and the account's name; empty as long as ModelScope has not told it."""
        return str(RepoName(MODELSCOPE, self._owner)) if self._owner else ""

    def start(self) -> None:
        """Begins to ask; returns at once."""
        threading.Thread(target=self._find_out, name="ggufy-modelscope", daemon=True).start()

    def close(self) -> None:
        self._ends.set()

    def acquire(self, stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Waits until the owner is known. Raises Cancelled, and what somebody must act on."""
        if self._owner:
            return
        owner = Patience(stopped=lambda: stopped() or self._ends.is_set(), say=say)(self._account.ask)
        with self._writing:  # the thread that asked at the start may have its answer now too
            self._account.remember(self._folder, owner)
            self._owner = owner

    def _find_out(self) -> None:
        try:
            self.acquire(never, lambda reason: None)
        except Cancelled:
            return
        except GgufyError as error:  # whoever needs the answer asks again, and is told
            logger.warning("ModelScope: %s", error)


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The places of one run of the program. Nothing but `acquire` waits for the network."""

    records: JobRecords
    hub: Hub | None = None  # the Hugging Face Hub; None: no results go there
    state: StateRepo | None = None
    interval_s: float | None = None  # between renewals of the lease
    modelscope: ModelScopeAccount | None = None  # None: no results go there

    @property
    def store(self) -> JobStore:
        return self.records.store

    @property
    def hubs(self) -> Mapping[str, OutputHub]:
        """Where results go, by the names of core/hosts.py; none: they stay in folders here."""
        found: dict[str, OutputHub] = {HUGGING_FACE: self.hub} if self.hub else {}
        return found | ({MODELSCOPE: self.modelscope.hub} if self.modelscope else {})

    @property
    def owner(self) -> str:
        """The account that results go to, `ms:name` on ModelScope; empty if they stay here, or as long as the hub has
        not said whose it is."""
        if self.state:
            return self.state.owner
        return self.modelscope.owner if self.modelscope else ""

    @property
    def copy_owner(self) -> str:
        """The account that results go to besides, if there are two; empty as `owner`."""
        return self.modelscope.owner if self.state and self.modelscope else ""

    def addressed(self, options: JobOptions) -> JobOptions:
        """The wish with the accounts that its results go to. Raises HubAway if one is not known yet."""
        if self.state and not self.state.owner:
            raise HubAway("the Hub has not said yet whose token this is: wait until it answers, and start again.")
        if self.modelscope and not self.modelscope.owner:
            raise HubAway("ModelScope has not said yet whose token this is: wait until it answers, and start again.")
        return replace(options, owner=self.owner, copy_owner=self.copy_owner)

    def ours(self, job: Job) -> bool:
        """True if the job's results go where this connection leads."""
        return {RepoName.of(name).host for name in job.request.repos} == self.hubs.keys()

    def start(self) -> None:
        """Begins to ask the hubs; returns at once."""
        if self.state:
            self.state.start(self.interval_s)
        if self.modelscope:
            self.modelscope.start()

    def check(self) -> None:
        """Raises LeaseLost when another runner has taken over; to be asked before anything is changed."""
        if self.state:
            self.state.check()

    def acquire(self, stopped: Callable[[], bool] = never, say: Callable[[str], None] = lambda reason: None) -> None:
        """Waits until this is the one runner and knows every job; `say` gets what is waited for. Raises Cancelled, and
        what somebody must act on."""
        if self.state:
            self.state.acquire(stopped, say)
        if self.modelscope:
            self.modelscope.acquire(stopped, say)

    def close(self, wait_s: float = 30.0) -> None:
        """Saves what waits, and lets the next runner start at once, if that takes no longer than this."""
        if self.modelscope:
            self.modelscope.close()
        if self.state:
            self.state.close(wait_s)


def hub_option(request_repos: tuple[str, ...]) -> str:
    """What --hub has to be for a job with these output repos."""
    names = {HUGGING_FACE: HUB_HF, MODELSCOPE: HUB_MODELSCOPE}
    return ",".join(names[RepoName.of(name).host] for name in request_repos) or "local"


def connect(settings: Settings) -> Workspace:
    """Looks at the settings and asks nobody. Raises UsageError."""
    records, places = JobRecords(JobStore(settings.out)), settings.hub.split(",")
    modelscope = _modelscope(settings, records) if HUB_MODELSCOPE in places else None
    if HUB_HF not in places:
        return Workspace(records=records, modelscope=modelscope)
    _check_endpoint(settings)
    if settings.hf_token is None:
        raise UsageError("publishing to the Hub needs a token that may write: set HF_TOKEN, or leave --hub hf out.")
    hub = HuggingFaceHub(token=settings.hf_token, budget=_budget(settings))
    interval_s = settings.lease_s / 5
    state = StateRepo(
        records,
        hub,
        Account.of_token(hub.user, settings.hf_token),
        make_lease=lambda hub, repo_id: Lease(hub, repo_id, interval_s=interval_s, expires_s=settings.lease_s),
    )
    return Workspace(records=records, hub=hub, state=state, interval_s=interval_s, modelscope=modelscope)


def _modelscope(settings: Settings, records: JobRecords) -> ModelScopeAccount:
    if settings.modelscope_token is None:
        raise UsageError(
            "publishing to ModelScope needs a token that may write: set MODELSCOPE_API_TOKEN, or leave modelscope out "
            "of --hub."
        )
    hub = ModelScopeHub(token=settings.modelscope_token, budget=_budget(settings))
    account = Account.of_token(hub.user, settings.modelscope_token).on_modelscope()
    return ModelScopeAccount(hub, account, records)


def _check_endpoint(settings: Settings) -> None:
    """Raises UsageError if HF_ENDPOINT leads to a mirror that takes no uploads, or that should not see the token."""
    host = hub_host().partition(":")[0]
    if any(host == name or host.endswith(f".{name}") for name in _READS_ONLY):
        raise UsageError(
            "{host} is a mirror that takes no uploads: unset HF_ENDPOINT to publish to the Hub, or publish to "
            "ModelScope.",
            host=host,
        )
    if settings.withheld:
        raise UsageError(
            "publishing by way of {host} shows it your token: set GGUFY_TOKEN_TO_MIRROR=1 if it may see it, or unset "
            "HF_ENDPOINT.",
            host=settings.withheld,
        )


def _budget(settings: Settings) -> CommitBudget:
    limit = settings.commits_an_hour
    reserve = limit // 2
    if settings.jobs == 1:
        return CommitBudget(limit=limit, reserve=reserve, burst=max(1, limit // 6))
    most = max(4, (limit + reserve) // settings.jobs)  # together twice the limit at most: the Hub stops at about that
    return CommitBudget(limit=reserve + most, reserve=reserve, burst=most, part_of_several=True)

"""Hugging Face Jobs: commands in the image of a Space, on machines of the Hub that are paid by the minute."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import HfApi

from ggufy.core.errors import TokenError
from ggufy.core.messages import Message
from ggufy.net.hub_errors import hub_errors
from ggufy.net.session import ASK_TRIES, use_timeouts, with_retries

T = TypeVar("T")
ALIVE = ("RUNNING", "SCHEDULING")  # stages of one that has not ended
_MINUTES = {"minute": 1.0, "hour": 1 / 60, "second": 60.0}  # units of a price in a minute


@dataclass(frozen=True, kw_only=True)
class Flavor:
    """A kind of machine."""

    name: str
    cpus: int
    memory: str  # in the Hub's words
    disk: str
    price: float  # dollars an hour


@dataclass(frozen=True, kw_only=True)
class RemoteTask:
    """What is to be run."""

    space: str  # owner/name of the Space whose image it is
    command: Sequence[str]
    flavor: str
    timeout_s: int  # when it is ended, however far it is
    attempts: int  # how often it is begun while it fails
    environment: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RemoteJob:
    """What runs."""

    id: str
    page: str


class RemoteJobs:
    """The Jobs of the account that the token belongs to. Raises HubError, HubAway, TokenError."""

    def __init__(self, token: str | None):
        use_timeouts()
        if not token:
            raise TokenError("no token was given: set HF_TOKEN to one that may write.")
        self._api, self._token = HfApi(token=token), token

    def account(self) -> str:
        return str(self._ask(lambda: self._api.whoami(cache=True))["name"])

    def flavors(self) -> dict[str, Flavor]:
        """By their names, as the Hub lists them today."""
        found = self._ask(self._api.list_jobs_hardware)
        return {
            one.name: Flavor(
                name=one.name,
                cpus=int("".join(re.findall(r"^\d+", one.cpu)) or 1),
                memory=one.ram,
                disk=one.ephemeral_storage,
                price=one.unit_cost_usd * 60 * _MINUTES.get(one.unit_label, 1.0),
            )
            for one in found
        }

    def run(self, task: RemoteTask) -> RemoteJob:
        """Starts it, with the token as a secret. Asked once: an answer that is lost may have started it."""
        with hub_errors(Message("your account"), "model"):
            made = self._api.run_job(
                image=f"hf.co/spaces/{task.space}",
                command=list(task.command),
                env=dict(task.environment),
                secrets={"HF_TOKEN": self._token},
                flavor=task.flavor,
                timeout=task.timeout_s,
                attempts=task.attempts,
                labels=dict(task.labels),
                namespace=self.account(),
            )
        return RemoteJob(id=made.id, page=made.url)

    def alive(self, labels: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
        """Labels of those that have all of these and have not ended, by id."""
        found = self._ask(
            lambda: list(self._api.list_jobs(status=list(ALIVE), labels=dict(labels), namespace=self.account()))
        )
        return {one.id: one.labels or {} for one in found}

    def cancel(self, job_id: str) -> None:
        """Ends one; it is told by SIGTERM."""
        self._ask(lambda: self._api.cancel_job(job_id=job_id, namespace=self.account()))

    def stage(self, job_id: str) -> str:
        """RUNNING or SCHEDULING, or how it ended: COMPLETED, CANCELED, ERROR or DELETED."""
        return str(self._ask(lambda: self._api.inspect_job(job_id=job_id, namespace=self.account())).status.stage)

    def lines(self, job_id: str) -> Iterator[str]:
        """What it prints, from the beginning, until it ends."""
        with hub_errors(Message("your account"), "model"):
            yield from self._api.fetch_job_logs(job_id=job_id, follow=True, namespace=self.account())

    def _ask(self, call: Callable[[], T]) -> T:
        with hub_errors(Message("your account"), "model"):
            return with_retries(call, tries=ASK_TRIES)

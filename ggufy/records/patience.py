"""Waiting is not failing: what an error makes of a job is decided here, and what passes is waited for.

waits     the Hub or a source's server is away, or too much was asked of it: asked again, for as long as it takes
moves     another runner has the lease: the job is queued until the lease is ours again
pauses    only a person can help (a new token, more room, a repo that is hidden): the record says what it needs
fails     anything else
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from ggufy.core.errors import (
    GgufyError,
    HubAway,
    LeaseLost,
    QuotaError,
    RepoMissing,
    SourceAway,
    StaleParent,
    StorageError,
    TokenError,
)
from ggufy.system.clock import CLOCK, Clock, never, sleep

logger = logging.getLogger(__name__)
PAUSES_S = (2.0, 5.0, 15.0, 60.0)  # between tries; the last one again and again
T = TypeVar("T")


class Verdict(Enum):
    """What becomes of a job that met an error."""

    WAITS = "waits"
    MOVES = "moves"
    PAUSES = "pauses"
    FAILS = "fails"


def verdict(error: GgufyError) -> Verdict:
    """What this error makes of a job."""
    if isinstance(error, HubAway | QuotaError | SourceAway | StaleParent):
        return Verdict.WAITS
    if isinstance(error, LeaseLost):
        return Verdict.MOVES
    if isinstance(error, TokenError | StorageError | RepoMissing):
        return Verdict.PAUSES
    return Verdict.FAILS


def pause_s(failed: int, error: GgufyError | None = None) -> float:
    """Seconds until the next try after `failed` failures in a row, the last of them `error`."""
    asked = error.retry_after if isinstance(error, QuotaError) else 0.0
    return max(PAUSES_S[min(max(failed, 1), len(PAUSES_S)) - 1], asked)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Makes calls for one job, again while what they raise passes by itself."""

    stopped: Callable[[], bool] = never
    say: Callable[[str], None] = lambda reason: None  # gets what is waited for, and "" when it goes on
    check: Callable[[], None] = lambda: None  # before every try; raises LeaseLost when nothing may be touched any more
    clock: Clock = CLOCK

    def __call__(self, call: Callable[[], T]) -> T:
        """`call()`. Raises Cancelled soon after `stopped()` turned true, and what does not pass."""
        said = ""
        for failed in itertools.count(1):
            self.check()
            try:
                result = call()
            except GgufyError as error:
                if verdict(error) is not Verdict.WAITS:
                    raise
                if error.message != said:
                    logger.warning("waiting: %s", error)
                said = error.message
                self.say(said)
                sleep(pause_s(failed, error), self.stopped, self.clock)
            else:
                if said:
                    self.say("")
                return result
        raise AssertionError("unreachable")

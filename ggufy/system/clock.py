"""Time as the program sees it: injected where something waits, so that tests turn the hands themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from ggufy.core.errors import Cancelled

_LOOK_S = 0.2  # somebody who stops a wait is noticed as fast as this


def never() -> bool:
    """For `stopped`: nobody stops this."""
    return False


class Clock(Protocol):
    """Seconds, from any beginning."""

    def now(self) -> float:
        """The time; it never goes back."""

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        """Waits, with the condition held, until it is notified, the time is over, or for no reason at all."""


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        condition.wait(seconds)


CLOCK = SystemClock()


def sleep(seconds: float, stopped: Callable[[], bool] = never, clock: Clock = CLOCK) -> None:
    """Raises Cancelled soon after `stopped()` turned true."""
    until, nobody = clock.now() + seconds, threading.Condition()
    while (left := until - clock.now()) > 0:
        if stopped():
            raise Cancelled("stopped while waiting.")
        with nobody:
            clock.wait(nobody, min(left, _LOOK_S))

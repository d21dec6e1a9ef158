"""A clock that tests turn by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable


class HandClock:
    """Time passes while somebody waits, at once; then `meanwhile` happens."""

    def __init__(self, time: float = 0.0):
        self.time = time
        self.meanwhile: Callable[[], object] = lambda: None
        self.waits: list[float] = []  # seconds

    def now(self) -> float:
        return self.time

    __call__ = now  # as the lease and the budget take it

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        self.time += seconds
        self.waits.append(seconds)
        condition.release()
        try:
            self.meanwhile()
        finally:
            condition.acquire()


class QuickClock(HandClock):
    """For several threads: they do wait for each other, but a minute is over in a moment."""

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        self.time += seconds
        self.waits.append(seconds)
        condition.wait(min(seconds, 0.001))

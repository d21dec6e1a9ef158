"""Threads that take turns: so many may be busy at once, for such a share of the time, until all is over."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from ggufy.system.control import TICK_S, rest


class Ended(Exception):
    """The run ended while a thread waited for its turn."""


class Turns:
    """What all threads of a run share."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.limit, self.duty = 1, 1.0
        self.done = 0  # weights
        self._busy = 0
        self._lock = threading.Condition()

    def allow(self, limit: int, duty: float) -> None:
        with self._lock:
            self.limit, self.duty = limit, duty
            self._lock.notify_all()

    def begin(self) -> None:
        """Waits until one more thread may be busy. Raises Ended."""
        with self._lock:
            while self._busy >= self.limit and not self.ended.is_set():
                self._lock.wait(TICK_S)
            if self.ended.is_set():
                raise Ended
            self._busy += 1

    def end(self, weights: int) -> None:
        with self._lock:
            self._busy -= 1
            self.done += weights
            self._lock.notify()


class Turn:
    """Work of one thread, a context: after it, and at each `pause` within, the thread rests as the duty wants."""

    def __init__(self, turns: Turns, weights: int = 0):
        self.seconds = 0.0  # of CPU
        self._turns, self._weights, self._busy = turns, weights, False

    def __enter__(self) -> Turn:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._busy:
            self._end(self._weights)

    def pause(self) -> None:
        """To be called often in work that takes long. Raises Ended."""
        self._end(0)
        self._begin()

    def _begin(self) -> None:
        self._turns.begin()
        self._busy, self._before = True, time.thread_time()

    def _end(self, weights: int) -> None:
        spent = time.thread_time() - self._before
        self.seconds += spent
        rest(spent, lambda: self._turns.duty, self._turns.ended.wait)
        self._busy = False
        self._turns.end(weights)

"""How many commits this process makes: at most so many in any hour, and without using them all up at once.

    limit     never more in a window (the Hub stops a user at about 128 an hour)
    reserve   kept back for urgent ones: without its renewals a lease is lost
    burst     ordinary commits that may follow each other at once; from there on they come at even distances, so that
              files that are finished meanwhile share a commit and nobody waits for the end of the window

All clocks are injected; times are in seconds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from ggufy.errors import QuotaError


class CommitBudget:
    """One for everything that a process commits. May be used from several threads."""

    def __init__(
        self,
        *,
        limit: int = 60,
        window_s: float = 3600.0,
        reserve: int = 30,
        burst: int = 10,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.limit, self.window_s, self.reserve, self.burst = limit, window_s, reserve, burst
        self._clock = clock
        self._made: deque[tuple[float, bool]] = deque()  # time, urgent; oldest first
        self._paused_until = float("-inf")
        self._lock = threading.Lock()

    def wait_s(self, *, urgent: bool = False) -> float:
        """Seconds until the next commit may be made; 0 if it may be made now."""
        with self._lock:
            return self._wait_s(urgent)

    def take(self, *, urgent: bool = False) -> None:
        """Counts a commit that is about to be made. Raises QuotaError, with the time to wait, if it may not be."""
        with self._lock:
            if (wait := self._wait_s(urgent)) > 0:
                raise QuotaError(
                    f"{self.limit} commits an hour are enough: the next one may be made in {wait:.0f} s.", wait
                )
            self._made.append((self._clock(), urgent))

    def pause(self, seconds: float) -> None:
        """No commit at all for so long: the Hub has asked for it."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)

    def seed(self, ages_s: Iterable[float]) -> None:
        """Counts commits that were made so many seconds ago, by the process before this one."""
        with self._lock:
            now = self._clock()
            old = [(now - max(age, 0.0), True) for age in ages_s]
            self._made = deque(sorted([*self._made, *old]))

    def _wait_s(self, urgent: bool) -> float:
        now = self._clock()
        while self._made and self._made[0][0] <= now - self.window_s:
            self._made.popleft()
        waits = [0.0, self._paused_until - now, self._until_fewer_than(self.limit, [t for t, _ in self._made], now)]
        if not urgent:
            ordinary = [t for t, made_urgent in self._made if not made_urgent]
            most = max(1, self.limit - self.reserve)
            waits.append(self._until_fewer_than(most, ordinary, now))
            if len(ordinary) >= self.burst:
                waits.append(ordinary[-1] + self.window_s / most - now)
        return max(waits)

    def _until_fewer_than(self, most: int, made: list[float], now: float) -> float:
        return made[-most] + self.window_s - now if len(made) >= most else 0.0

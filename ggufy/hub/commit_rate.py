"""How many commits this process makes: at most so many in any hour, and without using them all up at once.

    limit     never more in a window by this process (the Hub stops a user at about 128 an hour)
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
from dataclasses import dataclass

from ggufy.core.errors import QuotaError


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A commit."""

    at: float  # by the clock
    urgent: bool = False
    ours: bool = True  # False: of another process, the one before this one most likely


class CommitBudget:
    """One for everything that a process commits. May be used from several threads."""

    def __init__(
        self,
        *,
        limit: int = 60,
        window_s: float = 3600.0,
        reserve: int = 30,
        burst: int = 10,
        part_of_several: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.limit, self.window_s, self.reserve, self.burst = limit, window_s, reserve, burst
        self._clock, self._part_of_several = clock, part_of_several
        self._made: deque[_Made] = deque()  # oldest first
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
                    "{limit} commits an hour are enough: the next one may be made in {wait} s.",
                    wait,
                    limit=self.limit,
                    wait=f"{wait:.0f}",
                )
            self._made.append(_Made(at=self._clock(), urgent=urgent))

    def pause(self, seconds: float) -> None:
        """No commit at all for so long: the Hub has asked for it."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)

    def seed(self, ages_s: Iterable[float]) -> None:
        """Counts commits that others made so many seconds ago, as ordinary ones: they delay files, never a lease. Of
        several processes that are at work at once, each has a part of the whole, and counts its own alone."""
        if self._part_of_several:
            return
        with self._lock:
            now = self._clock()
            old = [_Made(at=now - max(age, 0.0), ours=False) for age in ages_s]
            self._made = deque(sorted([*self._made, *old], key=lambda made: made.at))

    def _wait_s(self, urgent: bool) -> float:
        now = self._clock()
        while self._made and self._made[0].at <= now - self.window_s:
            self._made.popleft()
        own = [made.at for made in self._made if made.ours]
        waits = [0.0, self._paused_until - now, self._until_fewer_than(self.limit, own, now)]
        if not urgent:
            ordinary = [made.at for made in self._made if not made.urgent]
            most = max(1, self.limit - self.reserve)
            waits.append(self._until_fewer_than(most, ordinary, now))
            if len(ordinary) >= self.burst:
                waits.append(ordinary[-1] + self.window_s / most - now)
        return max(waits)

    def _until_fewer_than(self, most: int, made: list[float], now: float) -> float:
        return made[-most] + self.window_s - now if len(made) >= most else 0.0

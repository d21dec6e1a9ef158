"""How work of many threads is held back while it runs: by its caller, who may think differently every moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

TICK_S = 0.1  # how often limit, duty, stop and progress are looked at


@dataclass(frozen=True, kw_only=True)
class Control:
    """What may change while it runs; asked ten times a second."""

    limit: Callable[[], int] = lambda: 1  # threads that may be busy now
    duty: Callable[[], float] = lambda: 1.0  # share of the time, 0 to 1, in which a busy thread works; 0 is a pause
    stopped: Callable[[], bool] = lambda: False
    report: Callable[[float], None] = lambda fraction: None  # gets the fraction of the weights that is done


def rest(spent: float, duty: Callable[[], float], pause: Callable[[float], bool]) -> None:
    """Waits so long that the `spent` seconds of work are the duty's share of the time. `pause` waits some seconds, and
    says true when there is nothing to wait for any more."""
    began = time.monotonic()
    while True:
        share = min(max(0.0, duty()), 1.0)
        left = spent * (1 - share) - (time.monotonic() - began) * share
        if left <= 0 or pause(min(TICK_S, left / share) if share else TICK_S):
            return

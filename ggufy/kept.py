"""Answers that are kept for a while."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Kept(Generic[Answer]):
    """At most `most` answers, each for `seconds`; safe to share between threads, which do not wait for each other."""

    def __init__(self, seconds: float, most: int = 256):
        self._seconds, self._most = seconds, most
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, tuple[float, Answer]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Answer]) -> Answer:
        """The answer for a key: the one that is kept, or a new one; what `make` raises is not kept."""
        with self._lock:
            until, known = self._known.get(key, (0.0, None))
        if known is not None and time.monotonic() < until:
            return known
        answer = make()
        with self._lock:
            self._known[key] = time.monotonic() + self._seconds, answer
            self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return answer

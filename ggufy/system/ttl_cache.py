"""Answers that are kept for a while, and weighed: cachetools with a lock around it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from cachetools import TLRUCache

Answer = TypeVar("Answer")


class TtlCache(Generic[Answer]):
    """Answers of at most `most_bytes` together, each for the seconds that `seconds_of` gives it. Safe to share between
    threads, which do not wait for each other."""

    def __init__(
        self,
        seconds_of: Callable[[Answer], float],
        most_bytes: int = 64 << 20,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        def until(key: Hashable, value: tuple[Answer], now: float) -> float:
            return now + seconds_of(value[0])

        self._lock = threading.Lock()
        self._known: TLRUCache[Hashable, tuple[Answer]] = TLRUCache(most_bytes, until, clock, memory_of)

    def get(self, key: Hashable, make: Callable[[], Answer]) -> Answer:
        """The answer for a key: the one that is kept, or a new one; what `make` raises is not kept."""
        with self._lock:
            known = self._known.get(key)
        if known is not None:
            return known[0]
        answer = make()
        with self._lock, contextlib.suppress(ValueError):  # too large to be kept
            self._known[key] = (answer,)
        return answer

    def __len__(self) -> int:
        with self._lock:
            return len(self._known)


def memory_of(value: object) -> int:
    """Bytes of memory that a value of plain data takes, with everything in it; what occurs twice counts once."""
    seen: set[int] = set()
    todo, total = [value], 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        if isinstance(one, Mapping):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, AbstractSet)):
            todo += one
        elif hasattr(one, "__dict__"):
            todo += vars(one).values()
    return total

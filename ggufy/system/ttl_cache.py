"""Answers that are kept for a while."""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Kept(Generic[Answer]):
    """At most `most` answers of `most_bytes` together, each for `seconds`, the longest known go first. Safe to share
    between threads, which do not wait for each other."""

    def __init__(
        self,
        seconds: float,
        most: int = 256,
        most_bytes: int = 64 << 20,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._seconds, self._most, self._most_bytes, self._clock = seconds, most, most_bytes, clock
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, tuple[float, int, Answer]] = OrderedDict()  # until, bytes, answer
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Answer]) -> Answer:
        """The answer for a key: the one that is kept, or a new one; what `make` raises is not kept."""
        with self._lock:
            self._drop(self._clock())
            if key in self._known:
                return self._known[key][-1]
        answer = make()
        size = memory_of(answer)
        with self._lock:
            now = self._clock()
            self._forget(key)
            self._known[key] = now + self._seconds, size, answer
            self._bytes += size
            self._drop(now)
        return answer

    def __len__(self) -> int:
        return len(self._known)

    def _drop(self, now: float) -> None:
        """What is out of date, and then the oldest while there is too much: the order is that of coming."""
        while self._known:
            key, (until, _, _) = next(iter(self._known.items()))
            if now < until and len(self._known) <= self._most and self._bytes <= self._most_bytes:
                return
            self._forget(key)

    def _forget(self, key: Hashable) -> None:
        _, size, _ = self._known.pop(key, (0.0, 0, None))
        self._bytes -= size


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

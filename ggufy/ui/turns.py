"""Which replies are waited for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Turns:
    """Which turn each visitor waits for, so that a stop ends all of it; a new turn ends the one before."""

    def __init__(self) -> None:
        self._ends: dict[str, threading.Event] = {}

    @contextlib.contextmanager
    def begin(self, session: str) -> Iterator[Callable[[], bool]]:
        """Yields what says whether the turn is to end."""
        self.stop(session)
        self._ends[session] = end = threading.Event()
        try:
            yield end.is_set
        finally:
            if self._ends.get(session) is end:
                self._ends.pop(session, None)

    def stop(self, session: str) -> None:
        if end := self._ends.get(session):
            end.set()

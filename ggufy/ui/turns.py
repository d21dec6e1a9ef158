"""Which replies are waited for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turn:
    """One message and what is replied to it."""

    def __init__(self) -> None:
        self.left = False  # something else is shown instead
        self._end = threading.Event()
        self.stopped, self.stop = self._end.is_set, self._end.set


class Turns:
    """Which turn each visitor waits for, so that a stop ends all of it; a new turn ends the one before."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}

    @contextlib.contextmanager
    def begin(self, session: str) -> Iterator[Turn]:
        self.leave(session)
        self._turns[session] = turn = Turn()
        try:
            yield turn
        finally:
            if self._turns.get(session) is turn:
                self._turns.pop(session, None)

    def stop(self, session: str) -> None:
        if turn := self._turns.get(session):
            turn.stop()

    def leave(self, session: str) -> None:
        """A stop, after which the turn is no longer shown."""
        if turn := self._turns.get(session):
            turn.left = True
            turn.stop()

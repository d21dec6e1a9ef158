"""Of what a visitor asked in turn only the newest is shown: an older answer that comes late is dropped."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable

_MOST = 1024  # visitors


class Newest:
    """The newest question of each visitor. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = itertools.count(1)
        self._newest: OrderedDict[str, int] = OrderedDict()

    def begin(self, visitor: str) -> Callable[[], bool]:
        """Notes a new question; what is returned says whether it still is the newest."""
        with self._lock:
            self._newest[visitor] = next(self._count)
            self._newest.move_to_end(visitor)
            while len(self._newest) > _MOST:
                self._newest.popitem(last=False)
        return self.look(visitor)

    def look(self, visitor: str) -> Callable[[], bool]:
        """Says, later, whether no question has come since."""
        number = self._newest.get(visitor, 0)
        return lambda: self._newest.get(visitor, 0) == number

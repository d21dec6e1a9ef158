"""The few chat processes that are kept: a loaded model is memory, so they are counted, reused, and ended when idle.

A process is lent to one reply at a time. The same model with the same options gets the process that has it loaded; if
all places are taken, the idle one that was used longest ago is ended. One that is replying is never taken away.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from ggufy.core.errors import BusyError, UsageError
from ggufy.core.words import human_size
from ggufy.llama.chat.backend import ChatBackend
from ggufy.system import resources

logger = logging.getLogger(__name__)

MARGIN = 400_000_000  # bytes beside the weights: buffers, the state, another model's KV cache


@dataclass(eq=False)
class _Slot:
    key: Hashable
    chat_backend: ChatBackend
    busy: bool
    used: float  # time.monotonic() of the last reply's end


class Pool:
    """At most `size` processes, each ended when it had nothing to do for `idle_s` seconds.

    One that replies is ended when nobody has asked for more of the reply for `abandoned_s` seconds.
    """

    def __init__(
        self,
        *,
        size: int,
        idle_s: float,
        abandoned_s: float,
        available: Callable[[], int] = resources.memory_available,
    ):
        self.size, self.idle_s, self.abandoned_s, self._available = size, idle_s, abandoned_s, available
        self._lock = threading.RLock()  # a dropped reply may be finished by the garbage collector, in any thread
        self._places: list[_Slot] = []
        self._closed = threading.Event()
        self._starter = ThreadPoolExecutor(1, "chat-starter")  # one thread: the processes die when it ends
        self._janitor: threading.Thread | None = None

    @contextlib.contextmanager
    def lend(
        self, key: Hashable, *, name: str, file_size: int, make: Callable[[Executor], ChatBackend]
    ) -> Iterator[ChatBackend]:
        """A process for one reply: an idle one with this key, or what `make` gives, which is called with the starter.

        Raises BusyError when every process is replying, UsageError when the model (`name`, a file of `file_size`
        bytes) does not fit in memory.
        """
        place = self._take(key, name, file_size, make)
        try:
            yield place.chat_backend
        finally:
            with self._lock:
                place.busy, place.used = False, time.monotonic()
                if not place.chat_backend.alive:
                    self._end(place)

    def close(self) -> None:
        """Ends every process, busy or not."""
        self._closed.set()
        with self._lock:
            for place in list(self._places):
                self._end(place)
        if self._janitor is not None:
            self._janitor.join()
        self._starter.shutdown()

    def talkers(self) -> list[ChatBackend]:
        """The processes that are kept, for who wants to look."""
        with self._lock:
            return [place.chat_backend for place in self._places]

    def _take(self, key: Hashable, name: str, file_size: int, make: Callable[[Executor], ChatBackend]) -> _Slot:
        with self._lock:
            if self._closed.is_set():
                raise BusyError("ggufy is being stopped: try again when it runs.")
            for place in [place for place in self._places if not place.chat_backend.alive and not place.busy]:
                self._end(place)
            for place in self._places:
                if place.key == key and not place.busy:
                    place.busy = True
                    return place
            self._make_room(name, file_size)
            place = _Slot(key, make(self._starter), busy=True, used=time.monotonic())
            self._places.append(place)
            if self._janitor is None:
                self._janitor = threading.Thread(target=self._end_idle, name="chat-janitor", daemon=True)
                self._janitor.start()
            return place

    def _make_room(self, name: str, file_size: int) -> None:
        need = file_size + file_size // 10 + MARGIN
        while (full := len(self._places) >= self.size) or self._available() < need:
            idle = [place for place in self._places if not place.busy]
            if idle:
                self._end(min(idle, key=lambda place: place.used))
            elif full:
                raise BusyError(
                    "{count} replies are being made, and no more fit: try again in a moment.", count=self.size
                )
            else:
                raise UsageError(
                    "{name} needs about {needed} of memory, and {free} are free: choose a smaller quant, or try "
                    "again when less is running.",
                    name=name,
                    needed=human_size(need),
                    free=human_size(self._available()),
                )

    def _end(self, place: _Slot) -> None:
        if place in self._places:
            self._places.remove(place)
            place.chat_backend.close()

    def _end_idle(self) -> None:
        while not self._closed.wait(min(5.0, self.idle_s / 4, self.abandoned_s / 4)):
            try:
                self._end_late(time.monotonic())
            except Exception:  # this thread's edge: one process that cannot be ended does not keep the others
                logger.exception("an idle model could not be put away")

    def _end_late(self, now: float) -> None:
        with self._lock:
            for place in list(self._places):
                limit = place.chat_backend.read_at + self.abandoned_s if place.busy else place.used + self.idle_s
                if now > limit:
                    self._end(place)

"""The programs of llama.cpp that no job begins with, built in a thread while the first job runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ggufy.core.errors import Cancelled, ToolError
from ggufy.core.messages import Message

logger = logging.getLogger(__name__)
_LOOK_S = 0.2  # between two questions whether a wait is to end


class Rest:
    """A build that goes on by itself. Any thread may wait for it."""

    def __init__(self, build: Callable[[Callable[[int, int, str], None]], object]):
        """Starts `build(report)`; `report` gets steps done, of how many, and what is done, and raises once it is to
        end."""
        self.done = self.total = 0  # steps; 0 of 0 while that is not known
        self._build = build
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._thread = self._started()

    def wait(self, stopped: Callable[[], bool] | None, say: Callable[[str], None]) -> None:
        """Returns when it is built; one that failed is tried again. `say` gets what is waited for. Raises what the
        build raised, and Cancelled once `stopped`, asked several times a second, says so; without it nobody waits:
        ToolError."""
        with self._lock:
            if self._error is not None and not self._closed.is_set():
                self._thread = self._started()
            thread = self._thread
        if thread.is_alive() and stopped is None:
            raise ToolError(
                "this program of llama.cpp is still being built ({done} of {total} steps): try again in some minutes.",
                done=self.done,
                total=self.total,
            )
        if stopped is not None and thread.is_alive():
            say(Message("the other programs of llama.cpp are being built, nothing is measured beside that."))
            try:
                while thread.is_alive():
                    if stopped():
                        raise Cancelled("the job was stopped.")
                    thread.join(_LOOK_S)
            finally:
                say("")
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the build at its next step; what it has compiled stays for the next one."""
        self._closed.set()

    def _started(self) -> threading.Thread:
        self._error = None
        thread = threading.Thread(target=self._run, name="ggufy-llama", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            self._build(self._report)
        except Exception as error:  # handed on to whoever waits
            if not self._closed.is_set():
                logger.warning("not all of llama.cpp is built: %s", error)
            self._error = error

    def _report(self, done: int, total: int, text: str) -> None:
        if self._closed.is_set():
            raise Cancelled("stopped while llama.cpp was being made ready.")
        self.done, self.total = done, total

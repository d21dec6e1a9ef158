"""Whether the program is well: what GET /health tells a container's health check, and a watchdog.

A job that runs asks ten times a second whether it should end, whatever it does. One that has not asked for an hour
hangs, in a library or a kernel that nothing in this process can end; then the program starts itself anew, and goes on
with every job as after any other restart. Tools end with the thread that started them.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from ggufy.jobs.queue import Worker
from ggufy.jobs.workspace import Workspace
from ggufy.system.files import free_bytes
from ggufy.system.settings import Settings

logger = logging.getLogger(__name__)
HANGS_S = 3600.0
_LOOK_S = 30.0


class LastError(logging.Handler):
    """When something was last logged as an error, and where: what it was may be private, and is in the log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: Mapping[str, str] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")
        self.seen = {"at": at, "logger": record.name, "error": kind.__name__ if kind else ""}


class Health:
    """Of one program; any thread may ask."""

    def __init__(self, settings: Settings, worker: Worker, workspace: Workspace):
        self._settings, self._worker, self._workspace = settings, worker, workspace
        self._errors = LastError()
        logging.getLogger("ggufy").addHandler(self._errors)

    def facts(self) -> Mapping[str, object]:
        """What anybody may know; `ok` is False when nothing would go on by itself."""
        state = self._workspace.state
        lease = state.lease if state else None
        alive, silent_s = self._worker.alive, self._worker.silent_s()
        return {
            "ok": alive and silent_s < HANGS_S,
            "worker": {"alive": alive, "silent_s": round(silent_s, 1)},
            "lease": None if lease is None else {"held": lease.held, "age_s": lease.age_s},
            "disk_free": free_bytes(self._settings.out),
            "last_error": self._errors.seen,
        }

    def close(self) -> None:
        logging.getLogger("ggufy").removeHandler(self._errors)


class Watchdog:
    """Calls `restart` once the worker has been silent for too long. `wait` waits so many seconds, and says true when
    there is nothing to watch any more."""

    def __init__(
        self,
        silent_s: Callable[[], float],
        wait: Callable[[float], bool],
        restart: Callable[[], None] | None = None,
        hangs_s: float = HANGS_S,
    ):
        self._silent_s, self._wait, self._hangs_s = silent_s, wait, hangs_s
        self._restart = restart or start_anew

    def start(self) -> None:
        threading.Thread(target=self.watch, name="ggufy-watchdog", daemon=True).start()

    def watch(self) -> None:
        while not self._wait(min(_LOOK_S, self._hangs_s)):
            if (silent := self._silent_s()) >= self._hangs_s:
                logger.error("the job that runs has hung for %.0f minutes: the program starts anew", silent / 60)
                self._restart()
                return


def start_anew() -> None:
    """This program again, in this process, as it was called; does not return."""
    logging.shutdown()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

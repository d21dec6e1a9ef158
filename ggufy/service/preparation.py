"""llama.cpp is made ready, and the lease taken, in the worker's thread, before the first job: the page is there at
once, but a build takes minutes. If it fails, the thread waits until somebody asks for another try. The programs that
no job begins with are built beside the first one, and chats say so."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ggufy.core.catalog import BY_NAME
from ggufy.core.errors import Cancelled, GgufyError, UsageError, sentence_of
from ggufy.llama.install import Llama, begin
from ggufy.system import resources
from ggufy.system.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")
_AGAIN_S = 60.0  # between tries to get the lease after what somebody must act on


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How far llama.cpp's set-up is."""

    ready: bool = False
    done: int = 0  # steps of the build
    total: int = 0  # 0: not known yet
    text: str = ""  # what is being done
    waiting: str = ""  # what is waited for instead: the Hub, or another runner
    error: str = ""  # one sentence, when it failed


class Preparer:
    """How far it is (`state`), and what comes of it (`llama`). Any thread may ask; the worker's prepares."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._stopping, self._again = threading.Event(), threading.Event()
        self.state = Preparation()
        self.llama: Llama | None = None  # once everything is ready

    def try_again(self) -> None:
        """Another try after one that failed."""
        self._again.set()

    def stop(self) -> None:
        """Ends what is being prepared."""
        self._stopping.set()
        self._again.set()
        if self.llama and self.llama.rest:
            self.llama.rest.close()

    def prepare(self, acquire: Callable[[Callable[[], bool], Callable[[str], None]], None]) -> Llama:
        """Returns when llama.cpp and, by `acquire(stopped, say)`, the lease are here. Raises Cancelled."""
        llama = self._until_done(self._ensure_llama)
        self._until_done(lambda: acquire(self._stopping.is_set, self._say_waiting), again_s=_AGAIN_S)
        self.llama = llama
        self.state = Preparation(ready=True)
        return llama

    def ready_llama(self) -> Llama:
        if self.llama is None:
            raise UsageError("llama.cpp is not ready yet: wait until the page says that it is.")
        return self.llama

    def _until_done(self, call: Callable[[], T], again_s: float | None = None) -> T:
        """`call()`, until it succeeds: again when somebody asks for it, or after so many seconds."""
        while True:
            try:
                return call()
            except Cancelled:
                raise
            except GgufyError as error:
                logger.warning("not ready: %s", error)
                self.state = Preparation(error=error.message)
            except Exception as error:  # without this the thread would end, and every job would wait for ever
                logger.exception("not ready")
                self.state = Preparation(error=sentence_of(error))
            self._again.wait(again_s)
            self._again.clear()

    def _ensure_llama(self) -> Llama:
        self._report(0, 0, "")
        return begin(
            self._settings.cache,
            override=self._settings.llama_dir,
            threads=max(1, math.floor(resources.allowed_cpus())),
            progress=self._report,
            pip_environment=self._settings.pip_environment,
            types=BY_NAME,
        )

    def _say_waiting(self, reason: str) -> None:
        self.state = Preparation(waiting=reason)

    def _report(self, done: int, total: int, text: str) -> None:
        if self._stopping.is_set():
            raise Cancelled("stopped while llama.cpp was being made ready.")
        self.state = Preparation(done=done, total=total, text=text)

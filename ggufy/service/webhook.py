"""Tells GGUFY_WEBHOOK how jobs end, from a thread of its own: no job waits for it, or hears that it failed."""

from __future__ import annotations

import logging
import queue
import threading

from ggufy.core.job import Job
from ggufy.core.scrub import scrub
from ggufy.net.session import FAILURES, reason
from ggufy.net.webhook import post_json

logger = logging.getLogger(__name__)
_MOST_WAITING = 100  # behind an address that is slow; what comes then is not told


class Webhook:
    """`tell` may be called from any thread, and returns at once. Without an address it does nothing."""

    def __init__(self, address: str):
        self._address = address
        self._waiting: queue.Queue[Job] = queue.Queue(_MOST_WAITING)
        self._failing = False
        if address:
            threading.Thread(target=self._loop, name="ggufy-webhook", daemon=True).start()

    def tell(self, job: Job) -> None:
        """Sends what became of a job: its id, name, status, error (a sentence, or empty) and repos."""
        if self._address:
            try:
                self._waiting.put_nowait(job)
            except queue.Full:
                self._fail("it is too slow")

    def join(self) -> None:
        """Waits until everything that was to be told is told, or could not be."""
        self._waiting.join()

    def _loop(self) -> None:
        while True:
            self._send(self._waiting.get())
            self._waiting.task_done()

    def _send(self, job: Job) -> None:
        body = {"job": job.id, "name": job.request.name, "status": str(job.status), "error": scrub(job.error)}
        try:
            status = post_json(self._address, body | {"repos": [*job.request.repos]})
        except (*FAILURES, RuntimeError) as error:
            self._fail(reason(error))
        else:
            if 200 <= status < 300:
                self._failing = False
            else:
                self._fail(f"HTTP status {status}")

    def _fail(self, why: str) -> None:
        """Once, until it works again."""
        if not self._failing:
            logger.warning("GGUFY_WEBHOOK could not be told how a job ended: %s", scrub(why))
        self._failing = True

"""What is known of a job while it waits for its turn or runs, and how it is asked to end."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass, field

from ggufy.core.job import Status
from ggufy.core.progress import Progress
from ggufy.steps.job_forecast import JobForecast


@dataclass
class Stop:
    """How a running job is asked to end: by its user (cancel, pause) or with the program (shutdown)."""

    cancelled: threading.Event = field(default_factory=threading.Event)
    paused: threading.Event = field(default_factory=threading.Event)
    shutdown: threading.Event = field(default_factory=threading.Event)
    asked: float = field(default_factory=time.monotonic)  # when it last was, which a job that runs does all the time

    def __call__(self) -> bool:
        self.asked = time.monotonic()
        return self.by_user or self.shutdown.is_set()

    @property
    def by_user(self) -> bool:
        return self.cancelled.is_set() or self.paused.is_set()

    @property
    def status(self) -> Status:
        """What a job is when its user has ended it."""
        return Status.CANCELLED if self.cancelled.is_set() else Status.PAUSED


@dataclass
class RunState:
    """One run of a job, for the terminal and the page."""

    progress: Progress = field(default_factory=Progress)
    stop: Stop = field(default_factory=Stop)
    forecast: JobForecast | None = None
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))

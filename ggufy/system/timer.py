"""What is done again and again in the background."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler


def start_timer(call: Callable[[], object], seconds: float, *, at_once: bool = False) -> BackgroundScheduler:
    """Calls `call` every so many seconds in a thread of its own, never twice at the same time, until what is returned
    is shut down; the first time now if `at_once`."""
    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # it tells of every call
    jobs = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}
    scheduler = BackgroundScheduler(timezone="UTC", job_defaults=jobs)
    first: dict[str, Any] = {"next_run_time": datetime.now(UTC)} if at_once else {}
    scheduler.add_job(call, "interval", seconds=seconds, **first)
    scheduler.start()
    return scheduler

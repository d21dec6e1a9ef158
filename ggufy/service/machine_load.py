"""How busy this machine is, measured at most every two seconds, however many ask."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ggufy.system import resources
from ggufy.system.files import free_bytes

_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class MachineLoad:
    """How busy this machine is."""

    cpu: float = 0.0  # share of what this process may use, 0 to 1
    memory: int = 0  # bytes
    memory_used: int = 0
    disk_free: int = 0  # bytes, where results go
    threads: int = 1  # for the tools
    most_threads: int = 1
    percent: int = 100  # of the allowed CPU time that the work may use; resources.AUTOMATIC


class LoadMeter:
    """Any thread may ask it."""

    def __init__(self, out: Path, limit: resources.ThreadLimit):
        """`out` is where results go, on the disk whose room is told; `limit` what the tools may use."""
        self._out, self._limit = out, limit
        self._cpu = resources.CpuMeter()
        self._lock = threading.Lock()
        self._last = (-math.inf, MachineLoad(memory=resources.memory_limit()))

    def __call__(self) -> MachineLoad:
        with self._lock:
            taken, load = self._last
            due = time.monotonic() - taken > _EVERY_S
            if due:  # whoever comes meanwhile gets the figures of before
                self._last = time.monotonic(), load
        if due:
            used = max(0, load.memory - resources.memory_available())
            load = replace(load, cpu=self._cpu(), memory_used=used, disk_free=free_bytes(self._out))
            with self._lock:
                self._last = time.monotonic(), load
        limit = self._limit
        return replace(load, threads=limit(), most_threads=limit.most, percent=limit.share.percent)

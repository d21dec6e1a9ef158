"""Wall time and peak memory of a command, each run in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One run of one command."""

    seconds: float
    peak_bytes: int  # of its largest process
    cpu_s: float = 0.0  # of all its threads


def run(*command: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Run:
    """Runs a command to its end; raises CalledProcessError, with its stderr shown, when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], env=env, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        sys.stderr.write(errors.decode(errors="replace"))
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return Run(seconds, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)


def median(runs: list[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def spread(runs: list[Run]) -> str:
    """`3.4 s (3.1 to 4.0)`: median, least and most."""
    seconds = sorted(run.seconds for run in runs)
    return f"{statistics.median(seconds):.1f} s ({seconds[0]:.1f} to {seconds[-1]:.1f})"

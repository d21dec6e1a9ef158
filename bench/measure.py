"""Wall time and peak memory of a command, each run in a process of its own."""

from __future__ import annotations

import json
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


# A child's peak memory, as Linux counts it, starts at its parent's: so a small process of our own is the parent.
_PARENT = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
told = [os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime]
os.write(int(sys.argv[1]), json.dumps(told).encode())
"""


def run(*command: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Run:
    """Runs a command to its end; raises CalledProcessError, with its stderr shown, when it fails."""
    read, write = os.pipe()
    words = [sys.executable, "-I", "-S", "-c", _PARENT, str(write), *(str(part) for part in command)]
    started = time.perf_counter()
    done = subprocess.run(words, env=env, cwd=cwd, stderr=subprocess.PIPE, pass_fds=(write,), check=False)
    seconds = time.perf_counter() - started
    os.close(write)
    with os.fdopen(read) as told:
        code, peak, cpu = json.loads(told.read() or "[1, 0, 0]")
    if code:
        sys.stderr.write(done.stderr.decode(errors="replace"))
        raise subprocess.CalledProcessError(code, [str(part) for part in command])
    return Run(seconds, peak, cpu)


def median(runs: list[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def spread(runs: list[Run]) -> str:
    """`3.4 s (3.1 to 4.0)`: median, least and most."""
    seconds = sorted(run.seconds for run in runs)
    return f"{statistics.median(seconds):.1f} s ({seconds[0]:.1f} to {seconds[-1]:.1f})"

"""A script of ours in a process of its own, for what a stranger's file may do to the code that reads it.

The process has limits of memory and time, an environment without any token, and a new folder as its home. It works as
a script and not as part of the package, so it may import the standard library and installed packages alone; what it
finds it prints as one line of JSON. Run as a script, this file sets the limits and becomes the other one.
"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PATIENCE = 20  # times the CPU time that is allowed: other programs may keep the CPUs busy


class IsolatedFailure(Exception):
    """The script ended without an answer; the text says why, empty if it was ended for its memory or its time."""


def run_isolated(script: Path, arguments: Sequence[str], *, cpu_s: int, memory: int) -> Any:
    """What `script`, an absolute path, has printed, with so many seconds of CPU time and bytes of address space.

    Raises IsolatedFailure.
    """
    from ggufy.system import child_process, resources  # noqa: PLC0415 - not there when this is run as a script

    with tempfile.TemporaryDirectory(prefix="ggufy-isolated-") as folder:
        command = [sys.executable, "-I", str(Path(__file__).absolute()), str(cpu_s), str(memory)]
        command += [str(script), *arguments]
        environment = resources.child_environment(threads=1, home=Path(folder))
        try:
            done = child_process.run(command, cwd=Path(folder), env=environment, timeout_s=_PATIENCE * cpu_s)
        except child_process.TimeoutExpired:
            raise IsolatedFailure("") from None
    if done.returncode < 0 or done.stdout.rstrip().endswith("\nMemoryError"):
        raise IsolatedFailure("")
    if done.returncode != 0:
        last = (done.stdout.split("\n\n")[-1].strip().splitlines() or ["it printed nothing"])[-1]
        raise IsolatedFailure(last.partition(": ")[2] or last)
    return json.loads(done.stdout.rstrip().rpartition("\n")[2])  # libraries may warn before it


def _limit(cpu_s: int, memory: int) -> None:
    if sys.platform == "linux":
        import resource  # noqa: PLC0415 - Unix alone has it

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))


if __name__ == "__main__":
    _limit(int(sys.argv[1]), int(sys.argv[2]))
    sys.argv = sys.argv[3:]
    runpy.run_path(sys.argv[0], run_name="__main__")

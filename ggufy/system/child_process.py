"""Child processes that cannot outlive ggufy.

This file is two things. Imported, it offers `start`, `stop` and `run`. Run as a script by `start`, it is the launcher
between ggufy and a tool: it asks the kernel to kill it when its parent dies, makes sure that the parent had not died
just before, lowers its priority, and then becomes the tool. As a script it runs under `python -I -S`, so it may
import nothing but the standard library.

Two limits of the kernel's promise (PR_SET_PDEATHSIG, Linux only): it holds when the *thread* that called `start` ends,
so start tools from a thread that lives as long as they should; and it covers the tool, not the tool's own children.
Give a tool that has children the descriptor of a lock (`pass_fds`), and the lock is held until the last one is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

NICE = 5
_PR_SET_PDEATHSIG = 1
_DUTY_S = 1.0  # a child that may work half of the time works half of each second
_CANNOT_START = 127  # what a shell answers for a program that it cannot start

Stream = int | IO[bytes] | None
TimeoutExpired = subprocess.TimeoutExpired  # what `run` raises, for who may not import subprocess
PIPE = subprocess.PIPE


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    nice: int = NICE,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = subprocess.DEVNULL,
    stderr: Stream = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Starts `command` in a session of its own; it dies with the calling thread, at the latest.

    `command[0]` is an absolute path: nothing is looked up. `env` is the whole environment. `nice` is added to the
    priority number of this process. A program that cannot be started ends with exit code 127 and a line on stderr.
    """
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).absolute()), str(os.getpid()), str(nice)]
    return subprocess.Popen(
        [*launcher, *command],
        cwd=cwd,
        env=dict(env),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes], grace_s: float = 2.0) -> None:
    """Ends a child of `start` and its own children: SIGTERM, and SIGKILL after `grace_s` seconds. Returns when gone.

    A child that ended before is left alone, since its number may belong to somebody else by now.
    """
    if process.poll() is not None:
        return
    _signal_group(process.pid, signal.SIGTERM)
    _signal_group(process.pid, signal.SIGCONT)  # one that rests cannot obey
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace_s)
    _signal_group(process.pid, signal.SIGKILL)  # also when the child itself obeyed: its own children may not have
    process.wait()


def keep_to_cpus(process: subprocess.Popen[bytes], count: int) -> None:
    """Lets a running child use at most `count` CPUs from now on (Linux; elsewhere nothing happens).

    Its threads stay as many as they are, and share them; more CPUs than this process may use are never given.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cpus = sorted(os.sched_getaffinity(0))[: max(1, count)]
    # A thread, or the child itself, may have ended meanwhile.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cpus)


class Duty:
    """Lets a running child and its own children work for part of the time only: it is stopped for the rest of it."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process
        self._rests = False

    def keep(self, share: float) -> None:
        """To be called several times in _DUTY_S seconds; with a share of 1, the child works all the time."""
        rests = time.monotonic() % _DUTY_S >= share * _DUTY_S
        if rests != self._rests and self._process.poll() is None:
            _signal_group(self._process.pid, signal.SIGSTOP if rests else signal.SIGCONT)
            self._rests = rests


class CpuWait:
    """How long a running child waits for a CPU that others use, beside the time that it works (Linux; elsewhere it
    is not known)."""

    def __init__(self) -> None:
        self._times: dict[str, tuple[int, int]] = {}  # of each thread, nanoseconds: worked, waited

    def look(self, pid: int) -> None:
        """To be called several times a second: what ends in between is lost."""
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            for task in Path(f"/proc/{pid}/task").iterdir():
                words = (task / "schedstat").read_text(encoding="ascii").split()
                self._times[task.name] = (int(words[0]), int(words[1]))

    @property
    def share(self) -> float | None:
        """Of the time in which it could have worked, the part in which it waited."""
        worked, waited = (sum(times[i] for times in self._times.values()) for i in (0, 1))
        return waited / (worked + waited) if worked else None


def run(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Runs a short command to its end and returns its exit code and output, stderr after stdout in `stdout`.

    Raises subprocess.TimeoutExpired, with the command stopped, if it takes longer than `timeout_s`.
    """
    with start(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            stop(process)
    text = (out + err).decode("utf-8", errors="replace")
    return subprocess.CompletedProcess(list(command), process.returncode, stdout=text)


def die_with_parent() -> None:
    """This process itself is killed when the one that started it ends (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def lower_own_priority() -> None:
    """The calling thread runs at a tool's priority from now on (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICE))


def _signal_group(group: int, number: signal.Signals) -> None:
    # Nobody is left in the group, or (macOS) only a process that has ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _launch(parent: int, nice: int, command: list[str]) -> NoReturn:
    """Ties this process to its parent, and becomes `command`."""
    die_with_parent()
    if os.getppid() != parent:
        sys.exit(_CANNOT_START)  # it died before the kernel was asked, and nobody is left to read a message
    os.nice(nice)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two, and a program inherits that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.stderr.write(f"error: cannot start {command[0]}: {error.strerror}\n")
    sys.exit(_CANNOT_START)


if __name__ == "__main__":
    _launch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

"""Programs that tests start: a port for them, what they come to in time, and their end."""

from __future__ import annotations

import inspect
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until(condition: Callable[[], object]) -> None:
    """Waits for something that must happen; the limit only keeps a broken test from hanging."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, f"it never came: {inspect.getsource(condition)}"
        time.sleep(0.02)


def ended(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
    """Tells the leader of a group to end; returns what it wrote. If it does not end, the test fails with what each of
    its threads waits for, and nothing of it is left."""
    process.send_signal(number)
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        state = process.poll(), [_state(task) for task in Path(f"/proc/{process.pid}/task").glob("*")]
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"it did not end: {state}, {process.communicate()}") from None


def _state(task: Path) -> dict[str, str]:
    lines = [line.split(":", 1) for line in (task / "status").read_text().splitlines()]
    kept = {name: value.strip() for name, value in lines if name in ("Name", "State", "SigPnd", "ShdPnd", "SigBlk")}
    return kept | {"waits": (task / "wchan").read_text(), "id": task.name}

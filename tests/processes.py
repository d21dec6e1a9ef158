"""Programs that tests start: a port for them, and their end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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

"""Who holds a lease, and is that process still there?

A lease that a dead process left must run out before another may take it, since its holder may be on another machine
and only be slow. But if it was held by a process of this very container that is gone, nobody has to wait. A container
is told from any other by its kernel's boot, its namespace of processes, its host name and its first process's start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_BOOT_ID = _PROC / "sys/kernel/random/boot_id"


@dataclass(frozen=True, kw_only=True)
class LeaseRecord:
    """What lease.json says. Its times are for people; nothing is decided by them."""

    boot_id: str = ""  # of the runner that holds the lease; empty: free
    nonce: str = ""  # another one in each write
    since: str = ""  # UTC, ISO 8601
    renewed: str = ""
    expires_s: float = 0.0  # without another write it may be taken over after so long
    process: str = ""  # see `identity`
    term: int = 0  # one more each time that another runner takes it
    commits: int = 0  # to the state repo since the history was squashed last

    def to_bytes(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes | None) -> LeaseRecord:
        """What cannot be read holds nothing: the lease is free."""
        try:
            record = json.loads(data or b"{}")
            blanks = {name: blank for name, blank in vars(cls()).items() if record.get(name) is not None}
            read = {name: type(blank)(record[name]) for name, blank in blanks.items()}
            return cls(**read)
        except (ValueError, TypeError, AttributeError):
            return cls()


def identity(pid: int | None = None) -> str:
    """`<container> <pid> <start>` of a process here, by default this one; empty where there is no /proc."""
    pid = os.getpid() if pid is None else pid
    try:
        parts = (
            _BOOT_ID.read_text(encoding="ascii").strip(),
            str((_PROC / "self/ns/pid").readlink()),
            socket.gethostname(),
            _start(1),
        )
        container = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        return f"{container} {pid} {_start(pid)}"
    except (OSError, ValueError, IndexError):
        return ""


def process_is_dead(who: str) -> bool:
    """True only if the process lived in this container and is no more."""
    container, _, process = who.partition(" ")
    own = identity()
    if not own or not process or own.partition(" ")[0] != container:
        return False
    pid, _, start = process.partition(" ")
    try:
        return _start(int(pid)) != start
    except FileNotFoundError:
        return True
    except (OSError, ValueError, IndexError):
        return False


def _start(pid: int) -> str:
    """When the process began, in clock ticks since the boot (field 22 of proc_pid_stat(5)); `dead` for a zombie."""
    fields = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return "dead" if fields[0] in "ZX" else fields[19]


def boot_clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

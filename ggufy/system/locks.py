"""Locks between processes, also on disks that know none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ggufy.core.errors import BusyError, Cancelled
from ggufy.core.messages import Message
from ggufy.system.files import UNSUPPORTED, disk_errors

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(
    path: Path, wait_s: float = 0.0, message: str = "", *, stopped: Callable[[], bool] = lambda: False
) -> Iterator[int]:
    """Holds an exclusive lock on `path`; yields its file descriptor, which children may inherit to keep the lock.

    Raises BusyError with `message` when somebody else still holds it after `wait_s` seconds, Cancelled soon after
    `stopped()` turned true.
    """
    with contextlib.ExitStack() as stack:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _opened(stack, path, os.O_RDWR | os.O_CREAT)
            if (taken := _flock(descriptor, fcntl.LOCK_EX)) is None:
                _warn_of_no_locks(path.parent)
                descriptor = _opened(stack, _stand_in(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
                taken = _flock(descriptor, fcntl.LOCK_EX)
            deadline = time.monotonic() + wait_s
            while taken is False:
                if time.monotonic() >= deadline:
                    raise BusyError(message or Message("another run holds {path}: wait for it to end.", path=path))
                if stopped():
                    raise Cancelled("the job was stopped.")
                time.sleep(0.2)
                taken = _flock(descriptor, fcntl.LOCK_EX)
        yield descriptor


def is_locked(path: Path) -> bool:
    """True if somebody holds the lock now. Only reads: nothing is made, no permission to write is needed."""
    with contextlib.ExitStack() as stack:
        try:
            taken = _flock(_opened(stack, path, os.O_RDONLY), fcntl.LOCK_SH)
            if taken is None:
                taken = _flock(_opened(stack, _stand_in(path), os.O_RDONLY), fcntl.LOCK_SH)
        except OSError:  # there is none, or it is not for us to look at
            return False
        return taken is False


def _opened(stack: contextlib.ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    stack.callback(os.close, descriptor)
    return descriptor


def _flock(descriptor: int, how: int) -> bool | None:
    """Whether the lock could be had; None on a disk that has none."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, *UNSUPPORTED):
            raise
        return None
    return True


def _stand_in(path: Path) -> Path:
    """What is locked instead of `path` on a disk without locks."""
    digest = hashlib.sha256(os.fsencode(path.parent.resolve() / path.name)).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"ggufy-{os.getuid()}-{digest}.lock"


@functools.cache
def _warn_of_no_locks(folder: Path) -> None:
    logger.warning("the disk of %s has no locks: start no second run on it from another machine or container.", folder)

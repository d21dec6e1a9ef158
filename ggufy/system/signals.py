"""SIGTERM and Ctrl-C as an event that the main thread may wait for.

Python runs a handler in the main thread, once that thread runs again. So a signal that the kernel hands to another
thread, as it may, does not wake a main thread that waits for a lock; and a handler that sets an event while the main
thread is inside that very event waits for itself. Here the handlers do nothing: whichever thread is hit, Python writes
the number of the signal into a pipe at once (`signal.set_wakeup_fd`), and a thread of ours sets the event.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set until the block ends; in the main thread only."""
    told = threading.Event()
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    listener = threading.Thread(target=_listen, args=[receiver, told], name="ggufy-signals", daemon=True)
    listener.start()
    pipe_before = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(pipe_before)
        os.close(sender)
        listener.join()
        os.close(receiver)


def _listen(receiver: int, told: threading.Event) -> None:
    while number := os.read(receiver, 1):
        if number[0] in (signal.SIGTERM, signal.SIGINT):
            told.set()


def _handler(number: int, frame: FrameType | None) -> None:
    """Must be there, so that the signal does not end the process."""

"""A program that replies: how it is started, read, stopped and put away. What it is asked is in the files beside.

It runs in an empty folder of its own, which is its home too, with an environment made from nothing. It is started by
a thread that the caller keeps (`starter`), since it dies with the thread that starts it. One thread at a time asks it
and reads the reply, and any thread may interrupt it or close it.
"""

from __future__ import annotations

import abc
import codecs
import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO

from ggufy.core.errors import BusyError, ToolError
from ggufy.core.messages import Message
from ggufy.llama.chat.options import ChatOptions, Model
from ggufy.llama.tools import failure_reason
from ggufy.models.chat_format import OFF
from ggufy.system import child_process, resources

_POLL_MS = 100
GIVE_UP_S = 5.0  # how long a reply may take to end after it was told to


class ProcessExited(ToolError):
    """The process had ended before the question reached it: ask a new one."""


class ChatBackend(abc.ABC):
    """A program that replies. It is started when it is asked for the first time."""

    name: str  # of the program

    def __init__(
        self,
        model: Model,
        options: ChatOptions,
        *,
        threads: int,
        starter: Executor,
        extra: Sequence[str] = (),
    ):
        """`extra` is added to its command."""
        self.model, self.options = model, options
        self.speeds: tuple[float, float] | None = None  # tokens a second of the last reply: reading, writing
        self.used: int | None = None  # tokens of the context after the last reply; None: not known
        self.read_at = time.monotonic()  # when its output was last asked for
        self._threads, self._starter, self._extra = threads, starter, list(extra)
        self._busy = threading.Lock()  # held while a reply is made
        self._stop = threading.Event()
        self._also_stopped: Callable[[], bool] | None = None  # the caller's own reason to stop
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._errors: BinaryIO | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @abc.abstractmethod
    def say(
        self,
        text: str,
        before: Sequence[str] = (),
        *,
        think: str = OFF,
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[str, None, None]:
        """Gives the reply to `text` in pieces; see the two kinds in chat.py."""

    @abc.abstractmethod
    def _command(self, folder: Path, text: str) -> list[str]:
        """The command that is started in `folder`; `text` is the prompt of a completion."""

    @property
    def alive(self) -> bool:
        """Can be asked something: it runs, or was not started yet."""
        return not self._closed and (self._process is None or self._process.poll() is None)

    @property
    def pid(self) -> int | None:
        """Number of the running process."""
        return self._process.pid if self._process is not None and self.alive else None

    def interrupt(self) -> None:
        """Ends the reply that is being made, if there is one."""
        self._stop.set()

    def close(self) -> None:
        """Ends the process, at the latest after two seconds, and removes its folder."""
        self._closed = True
        self._stop.set()
        if process := self._process:
            assert process.stdin is not None
            with contextlib.suppress(OSError, ValueError):  # it is gone, or a reply's thread is at the pipe
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.0 if self._busy.locked() else 1.0)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # llama-cli goes at the second one, which child.stop sends
            child_process.stop(process, grace_s=0.5)
        if self._busy.acquire(blocking=False):  # otherwise whoever reads cleans up
            self._clean_up()
            self._busy.release()

    def _environment(self, folder: Path) -> dict[str, str]:
        return resources.child_environment(threads=self._threads, home=folder)

    def _stopped(self) -> bool:
        return self._stop.is_set() or (self._also_stopped is not None and self._also_stopped())

    def _launch(self, text: str) -> None:
        """Starts the program; `text` is the prompt of a completion."""
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="ggufy-chat-")
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
            folder = Path(self._folder.name)
            command = [*self._command(folder, text), *self._extra]
            self._process = self._starter.submit(
                child_process.start,
                command,
                cwd=folder,
                env=self._environment(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            ).result()
        except (OSError, RuntimeError) as error:  # RuntimeError: the thread that starts programs was ended
            self._closed = True
            raise ToolError(
                "{name} cannot be started ({reason}): free some disk and memory, and try again.",
                name=self.name,
                reason=error,
            ) from error
        if self._closed:  # while it was being started
            child_process.stop(self._process, grace_s=0.5)

    def _read(self) -> str | None:
        """What has come, "" when nothing came for a moment, None at the end of the output."""
        assert self._process is not None and self._process.stdout is not None
        self.read_at = time.monotonic()
        pipe = self._process.stdout.fileno()
        poll = select.poll()  # select itself fails above 1024 open files
        poll.register(pipe, select.POLLIN)
        if not poll.poll(_POLL_MS):
            return ""
        data = os.read(pipe, 1 << 16)
        return self._decoder.decode(data) if data else None

    def _failure(self) -> str:
        assert self._errors is not None and self._process is not None
        end = self._errors.seek(0, 2)
        self._errors.seek(max(0, end - 10_000))
        text = self._errors.read().decode("utf-8", errors="replace")
        code = self._process.wait()
        return failure_reason(text) if text.strip() else Message("exit code {code}", code=code)

    def _clean_up(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    assert pipe is not None
                    pipe.close()
        if self._errors is not None:
            self._errors.close()
        if self._folder is not None:
            self._folder.cleanup()

    @contextlib.contextmanager
    def _replying(self, stopped: Callable[[], bool] | None) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise BusyError("the model is still replying: wait for it, or stop it.")
        try:
            self._stop.clear()
            self._also_stopped = stopped
            if self._closed:
                raise ProcessExited("the model was put away: send the message again.")
            yield
        finally:
            if not self.alive:
                self._clean_up()
            self._busy.release()

    def _end(self) -> None:
        assert self._process is not None
        self._closed = True
        child_process.stop(self._process, grace_s=0.0)

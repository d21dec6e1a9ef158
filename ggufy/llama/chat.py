"""Talks with a model through llama.cpp's own programs.

    ChatProcess        a llama-cli that stays loaded, for one model and one set of options: a reply starts at once
    CompletionProcess  a llama-completion for one raw text, which it continues

Both give a reply in pieces as it is made (`say`), can be told to stop (`interrupt`) and to go away (`close`), from any
thread. A reply is read in the thread that asks for it, and only that thread sends signals: llama-cli ends a reply at
SIGINT, but ends itself when it is asked while waiting for a question.

The end of a reply is the line of timings and the prompt that llama-cli prints after it. Text that may turn out to be
the beginning of that line is held back until more has come.

The programs run in an empty folder of their own, which is their home too, with an environment made from nothing. They
are started by a thread that the caller keeps (`starter`), since they die with the thread that starts them.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
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

from ggufy import throttle
from ggufy.errors import BusyError, ToolError
from ggufy.llama import child, messages
from ggufy.llama.chat_options import Model, Options, chat_command, completion_command
from ggufy.llama.install import Llama
from ggufy.llama.messages import Follower
from ggufy.llama.tools import failure_reason

_GIVE_UP_S = 5.0  # how long a reply may take to end after it was told to
_POLL_S = 0.1
_RATE = re.compile(r"(prompt eval|eval) time = .*?([\d.]+) tokens per second")
_END_OF_TEXT = " [end of text]\n"


class Gone(ToolError):
    """The process had ended before the question reached it: ask a new one."""


class _Process:
    """A program, its folder and its pipes."""

    name = ""

    def __init__(
        self,
        llama: Llama,
        model: Model,
        options: Options,
        *,
        threads: int,
        starter: Executor,
        extra: Sequence[str] = (),
    ):
        self.model, self.options = model, options
        self.speeds: tuple[float, float] | None = None  # tokens a second of the last reply: reading, writing
        self.read_at = time.monotonic()  # when its output was last asked for
        self._tool, self._threads, self._starter, self._extra = llama.tool(self.name), threads, starter, list(extra)
        self._busy = threading.Lock()  # held while a reply is made
        self._stop = threading.Event()
        self._also_stopped: Callable[[], bool] = bool  # the caller's own reason to stop; bool() is False
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._errors: BinaryIO | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

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
            child.stop(process, grace_s=0.5)
        if self._busy.acquire(blocking=False):  # otherwise whoever reads cleans up
            self._clean_up()
            self._busy.release()

    def _stopped(self) -> bool:
        return self._stop.is_set() or self._also_stopped()

    def _launch(self, text: str) -> None:
        """Starts the program; `text` is the prompt of a completion."""
        self._folder = tempfile.TemporaryDirectory(prefix="ggufy-chat-")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        folder = Path(self._folder.name)
        command = [*self._command(folder, text), *self._extra]
        environment = throttle.child_environment(threads=self._threads, home=folder)
        try:
            self._process = self._starter.submit(
                child.start,
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            ).result()
        except BaseException:
            self._closed = True
            raise
        if self._closed:  # while it was being started
            child.stop(self._process, grace_s=0.5)

    def _command(self, folder: Path, text: str) -> list[str]:
        raise NotImplementedError

    def _read(self) -> str | None:
        """What has come, "" when nothing came for a moment, None at the end of the output."""
        assert self._process is not None and self._process.stdout is not None
        pipe, self.read_at = self._process.stdout, time.monotonic()
        if not select.select([pipe], [], [], _POLL_S)[0]:
            return ""
        data = os.read(pipe.fileno(), 1 << 16)
        return self._decoder.decode(data) if data else None

    def _failure(self) -> str:
        assert self._errors is not None and self._process is not None
        end = self._errors.seek(0, 2)
        self._errors.seek(max(0, end - 10_000))
        text = self._errors.read().decode("utf-8", errors="replace")
        code = self._process.wait()
        return failure_reason(text) if text.strip() else f"exit code {code}"

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
            self._also_stopped = stopped or bool
            if self._closed:
                raise Gone("the model was put away: send the message again.")
            yield
        finally:
            if not self.alive:
                self._clean_up()
            self._busy.release()


class ChatProcess(_Process):
    """One llama-cli. It is started by the first message, and keeps no memory of a conversation."""

    name = "llama-cli"

    def say(
        self, text: str, before: Sequence[str] = (), *, stopped: Callable[[], bool] | None = None
    ) -> Generator[str, None, None]:
        """Asks, and gives the reply in pieces, without blanks around it.

        `before` is what was said until now: the user's and the model's texts in turn. Ends early when interrupted,
        when `stopped` turns true (asked several times a second) or when the generator is closed; the process can then
        be asked again, unless it took too long and was ended. Raises UsageError (empty text), BusyError (a reply is
        being made), ToolError (the model cannot be loaded, or llama-cli ended or reported an error), Gone.
        """
        question = b"/clear\n" + messages.encode_conversation([*before, text], world=self.model.world)
        with self._replying(stopped):
            fresh = self._process is None
            if fresh and not self._load():
                return
            self._ask(question)
            yield from self._reply()

    def _command(self, folder: Path, text: str) -> list[str]:
        return chat_command(self._tool, self.model, self.options, threads=self._threads, folder=folder)

    def _load(self) -> bool:
        """Starts llama-cli and waits for its first prompt; False when that was interrupted."""
        self._launch("")
        banner = ""
        while not ("available commands:" in banner and banner.endswith("\n\n> ")):
            piece = self._read()
            if self._stopped():
                self._end()
                return False
            if piece is None:
                raise ToolError(f"llama-cli cannot load {self.model.path.name}: {self._failure()}")
            banner += piece
        return True

    def _ask(self, question: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(question)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise Gone("llama-cli had ended: send the message again.") from None

    def _reply(self) -> Iterator[str]:
        text, shown, ended = "", "", False
        follower = Follower()
        try:
            while not ended:
                if self._stopped():
                    return
                piece = self._read()
                if piece is None:
                    kind = ToolError if follower.began else Gone
                    raise kind(f"llama-cli ended ({self._failure()}): send the message again.")
                text, ended = follower.feed(piece)
                shown = (shown + text)[:500]
                if text:
                    yield text
        finally:  # also when the generator is closed at the yield
            if not ended:
                self._break_off(follower)
            self.speeds = follower.speeds
        if follower.speeds == (0.0, 0.0) and shown.startswith("Error: "):
            raise ToolError(f"llama-cli reported an error: {shown.removeprefix('Error: ').splitlines()[0]}")

    def _break_off(self, follower: Follower) -> None:
        """Ends a reply that nobody reads any more, and waits for the prompt; ends llama-cli if that takes long.

        It heeds SIGINT at the next token. While it reads a question there is none, and a signal that comes before it
        begins to would end it: so the signal waits for the first token.
        """
        assert self._process is not None
        limit = time.monotonic() + _GIVE_UP_S
        told = False
        while time.monotonic() < limit and not self._closed:
            if follower.began and not told and self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
                told = True
            piece = self._read()
            if piece is None:
                return
            if follower.feed(piece)[1]:
                return
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._closed = True
        child.stop(self._process, grace_s=0.0)


class CompletionProcess(_Process):
    """One llama-completion, for one text."""

    name = "llama-completion"

    def say(
        self, text: str, before: Sequence[str] = (), *, stopped: Callable[[], bool] | None = None
    ) -> Generator[str, None, None]:
        """Continues `text` and gives what comes after it in pieces; `before` has no meaning here.

        Ends early, and raises, as ChatProcess.say does.
        """
        with self._replying(stopped):
            self._launch(messages.clean(text))
            held, ended = "", False
            try:
                while not ended:
                    piece = self._read()
                    if self._stopped():
                        return
                    ended = piece is None
                    held += piece or ""
                    if ended:
                        held = held.removesuffix("\n\n").removesuffix(_END_OF_TEXT)
                    cut = len(held) if ended else max(0, len(held) - len(_END_OF_TEXT) - 2)
                    ready, held = held[:cut], held[cut:]
                    if ready:
                        yield ready
                self._finish()
            finally:
                self._closed = True
                assert self._process is not None
                child.stop(self._process, grace_s=0.0)

    def _command(self, folder: Path, text: str) -> list[str]:
        return completion_command(
            self._tool, self.model, self.options, threads=self._threads, folder=folder, text=text
        )

    def _finish(self) -> None:
        assert self._process is not None and self._errors is not None
        if self._process.wait() != 0:
            raise ToolError(f"llama-completion cannot continue the text: {self._failure()}")
        self._errors.seek(0)
        rates = dict(_RATE.findall(self._errors.read().decode("utf-8", errors="replace")))
        if "prompt eval" in rates and "eval" in rates:
            self.speeds = (float(rates["prompt eval"]), float(rates["eval"]))

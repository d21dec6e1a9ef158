"""Talks with a model through llama.cpp's own programs.

    ChatProcess        a llama-cli that stays loaded, for one model and one set of options: a reply starts at once
    CompletionProcess  a llama-completion for one raw text, which it continues
    StateChatProcess   a llama-completion for one reply of a conversation that begins with a tuned state

All give a reply in pieces as it is made (`say`), can be told to stop (`interrupt`) and to go away (`close`), from any
thread. llama-cli ends a reply at SIGINT, but ends itself when it gets one while it waits for a question: so the signal
is sent by the thread that reads the reply, and only after the first token.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from ggufy.core.errors import ToolError
from ggufy.core.messages import Message
from ggufy.llama.chat import messages
from ggufy.llama.chat.backend import GIVE_UP_S, ChatBackend, ProcessExited
from ggufy.llama.chat.messages import Follower
from ggufy.llama.chat.options import ChatOptions, Model, chat_command, completion_command
from ggufy.llama.install import Llama
from ggufy.models.chat_format import OFF
from ggufy.system import child_process

_RATE = re.compile(r"(prompt eval|eval) time = .*?/ +(\d+) (?:tokens|runs) .*?([\d.]+) tokens per second")
_USED = re.compile(rb"stop processing: n_tokens = (\d+)")
_LOG_S = 2.0  # after which the log of a reply is not waited for any more
_ERROR, _MAX_ERROR = "Error: ", 500  # characters
_END_OF_TEXT = " [end of text]\n"
END, STOP, LENGTH = "end of text", "stop", "length"  # why a completion has ended


class LlamaProcess(ChatBackend):
    """A program of llama.cpp."""

    def __init__(self, llama: Llama, model: Model, options: ChatOptions, **more: Any):
        """`more` is as for ChatBackend."""
        super().__init__(model, options, **more)
        self._tool = llama.tool(self.name)


class ChatProcess(LlamaProcess):
    """One llama-cli. It is started by the first message, and keeps no memory of a conversation."""

    name = "llama-cli"

    def say(
        self,
        text: str,
        before: Sequence[str] = (),
        *,
        think: str = OFF,
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[str, None, None]:
        """Asks, and gives the reply in pieces, without blanks around it.

        `before` is what was said until now: the user's and the model's texts in turn. `think` is one of the modes of
        an RWKV's chat format, which tells thought and answer apart (`RwkvFormat.split`). Ends early when interrupted,
        when `stopped` turns true (asked several times a second) or when the generator is closed; the process can then
        be asked again, unless it took too long and was ended. Raises UsageError (empty text), BusyError (a reply is
        being made), ToolError (the model cannot be loaded, or llama-cli ended or reported an error), Gone.
        """
        question = b"/clear\n" + messages.encode_conversation(
            [*before, text], chat=self.model.chat, system=self.options.system, think=think
        )
        with self._replying(stopped):
            self.used = None
            fresh = self._process is None
            if fresh and not self._load():
                return
            logged = self._logged()
            self._ask(question)
            yield from self._reply()
            self.used = self._context_used(logged)

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
                raise ToolError(
                    "llama-cli cannot load {name}: {reason}", name=self.model.path.name, reason=self._failure()
                )
            banner += piece
        return True

    def _logged(self) -> int:
        """Bytes of its log. It is written at the position of the file, which must stay."""
        assert self._errors is not None
        return os.fstat(self._errors.fileno()).st_size

    def _context_used(self, logged: int) -> int | None:
        """What the log says after so many bytes, where it comes a moment later than the reply."""
        assert self._errors is not None
        limit = time.monotonic() + _LOG_S
        while self.alive and not self._stopped():
            found = _USED.findall(os.pread(self._errors.fileno(), self._logged() - logged, logged))
            if found or time.monotonic() > limit:
                return int(found[-1]) if found else None
            time.sleep(0.01)
        return None

    def _ask(self, question: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(question)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise ProcessExited("llama-cli had ended: send the message again.") from None

    def _reply(self) -> Iterator[str]:
        pending, first, ended = "", True, False
        follower = Follower()
        try:
            while not ended:
                if self._stopped():
                    return
                piece = self._read()
                if piece is None:
                    kind = ToolError if follower.began else ProcessExited
                    raise kind(Message("llama-cli ended ({reason}): send the message again.", reason=self._failure()))
                text, ended = follower.feed(piece)
                pending += text
                if first and not ended and len(pending) < _MAX_ERROR and _ERROR.startswith(pending[: len(_ERROR)]):
                    continue  # llama-cli prints an error in the reply's place
                if ended and first and pending.startswith(_ERROR) and follower.speeds == (0.0, 0.0):
                    reason = pending.removeprefix(_ERROR).splitlines()[0]
                    raise ToolError(
                        "the model gave no reply: {reason}; clear the conversation, or write less.", reason=reason
                    )
                if pending:
                    yield pending
                    pending, first = "", False
        finally:  # also when the generator is closed at the yield
            if not ended:
                self._break_off(follower)
            self.speeds = follower.speeds

    def _break_off(self, follower: Follower) -> None:
        """Ends a reply that nobody reads any more, and waits for the prompt; ends llama-cli if that takes long.

        It heeds SIGINT at the next token. While it reads a question there is none, and a signal that comes before it
        begins to would end it: so the signal waits for the first token.
        """
        assert self._process is not None
        limit = time.monotonic() + GIVE_UP_S
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


class CompletionProcess(LlamaProcess):
    """One llama-completion, for one text, from the state of the options if they have one."""

    name = "llama-completion"
    end = ""  # what ended the text: END, STOP or LENGTH; empty if it was interrupted

    def say(
        self,
        text: str,
        before: Sequence[str] = (),
        *,
        think: str = OFF,
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[str, None, None]:
        """Continues `text` and gives what comes after it in pieces; `before` and `think` have no
        meaning here.

        Ends early, and raises, as ChatProcess.say does.
        """
        yield from self._continue(messages.clean(text), self.options.stops, stopped)

    def _continue(
        self, text: str, stops: Sequence[str], stopped: Callable[[], bool] | None
    ) -> Generator[str, None, None]:
        with self._replying(stopped):
            self._launch(text)
            filtered = messages.StopTexts(stops)
            try:
                for piece in self._pieces():
                    ready, found = filtered.feed(piece)
                    if ready:
                        yield ready
                    if found:
                        self.end = STOP
                        return
                if rest := filtered.rest():
                    yield rest
            finally:
                self._closed = True
                assert self._process is not None
                child_process.stop(self._process, grace_s=0.0)

    def _pieces(self) -> Iterator[str]:
        """What the program makes, without what it adds of its own."""
        held, ended = "", False
        while not ended:
            piece = self._read()
            if self._stopped():
                return
            ended = piece is None
            held += piece or ""
            if ended:
                held = held.removesuffix("\n\n")
                self.end = END if held.endswith(_END_OF_TEXT) else LENGTH
                held = held.removesuffix(_END_OF_TEXT)
            cut = len(held) if ended else max(0, len(held) - len(_END_OF_TEXT) - 2)
            ready, held = held[:cut], held[cut:]
            if ready:
                yield ready
        self._finish()

    def _command(self, folder: Path, text: str) -> list[str]:
        return completion_command(
            self._tool, self.model, self.options, threads=self._threads, folder=folder, text=text
        )

    def _finish(self) -> None:
        assert self._process is not None and self._errors is not None
        if self._process.wait() != 0:
            raise ToolError("llama-completion cannot continue the text: {reason}", reason=self._failure())
        self._errors.seek(0)
        told = _RATE.findall(self._errors.read().decode("utf-8", errors="replace"))
        rates = {name: float(rate) for name, _, rate in told}
        if "prompt eval" in rates and "eval" in rates:
            self.speeds = rates["prompt eval"], rates["eval"]
            self.used = sum(int(count) for _, count, _ in told)


class StateChatProcess(CompletionProcess):
    """One reply of a conversation that begins with the state of the options, which llama-cli cannot load: each time
    llama-completion reads all that was said, from that state."""

    def say(
        self,
        text: str,
        before: Sequence[str] = (),
        *,
        think: str = OFF,
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[str, None, None]:
        """As ChatProcess.say; only an RWKV has such a state."""
        chat = self.model.chat
        assert chat is not None
        prompt = messages.conversation_prompt([*before, text], chat=chat, system=self.options.system, think=think)
        yield from messages.stripped(self._continue(prompt, chat.stops, stopped))

"""Talks with a model of one of rwkv.cpp's files: serve.py, which stays loaded, in a process of its own.

    RwkvcppChat        replies in a conversation
    RwkvcppCompletion  continues a text

Each question brings all that was said, and the process reads what it has not read before (see reading.py).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from ggufy.core.errors import SourceError, ToolError
from ggufy.core.messages import Message
from ggufy.formats.rwkvcpp import read_head
from ggufy.llama.chat import messages
from ggufy.llama.chat.backend import GIVE_UP_S, ChatBackend, ProcessExited
from ggufy.llama.chat.options import Model
from ggufy.models.chat_format import FORMATS, OFF, WORLD, RwkvFormat
from ggufy.models.chat_names import format_named
from ggufy.rwkvcpp.tokenizer import AUTO, PILE_ROWS, WORLD_ROWS
from ggufy.system.python_child import finding_ggufy, module_command

_BLANK_LINE = "\n\n"
#: As rwkv.cpp's chat speaks with the models of the Pile, Raven among them: a blank line ends a reply.
RAVEN = dataclasses.replace(WORLD, name="raven", models="RWKV-4 Pile and Raven", stops=(_BLANK_LINE,))


def read_model(path: Path) -> Model:
    """What of a file decides how it is talked to: the size of its vocabulary, and for RWKV-7 World its name. Raises
    SourceError for a file that is none of rwkv.cpp's."""
    head = read_head(path)
    if head.vocab_size == PILE_ROWS:
        return Model(path=path, chat=RAVEN)
    known = head.rwkv == "7" and head.vocab_size == WORLD_ROWS
    return Model(path=path, chat=FORMATS[format_named([path.name])] if known else WORLD)


def serve_words(*, tokenizer: str = AUTO, ggml_folder: Path | None = None, library: Path | None = None) -> list[str]:
    """What a process is told beside its model, for `extra`."""
    words = ["--tokenizer", tokenizer]
    words += ["--ggml", str(ggml_folder.absolute())] if ggml_folder else []
    return words + (["--library", str(library.absolute())] if library else [])


class RwkvcppChat(ChatBackend):
    """One process. It is started by the first message; its options may change from one message to the next."""

    name = "ggufy.rwkvcpp.serve"
    _text = ""  # of its output, that is not read yet
    end = ""  # what ended the last text: END, STOP or LENGTH of process.py; empty if it was interrupted

    def say(
        self,
        text: str,
        before: Sequence[str] = (),
        *,
        think: str = OFF,
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[str, None, None]:
        """Asks, and gives the reply in pieces, without blanks around it, as ChatProcess.say does."""
        chat = self._chat
        prompt = messages.conversation_prompt([*before, text], chat=chat, system=self.options.system, think=think)
        ends = any(stop.isspace() for stop in chat.stops)
        not_first = ("\n", _BLANK_LINE) if ends else ()  # a reply that begins so would be none
        yield from messages.stripped(self.go_on(prompt, stops=chat.stops, not_first=not_first, stopped=stopped))

    def go_on(
        self,
        prompt: str,
        *,
        stops: Sequence[str] = (),
        not_first: Sequence[str] = (),
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[str, None, None]:
        """Gives what comes after a text. Ends early, and raises, as `say` does."""
        options = dataclasses.asdict(self.options) | {"stops": list(stops), "state": None}
        question = {"prompt": prompt, "not_first": list(not_first), "options": options}
        with self._replying(stopped):
            self.end, self.speeds = "", None
            if self._process is None and not self._load():
                return
            self._send({"ask": question})
            yield from self._reply()

    @property
    def _chat(self) -> RwkvFormat:
        assert self.model.chat is not None
        return self.model.chat

    def _command(self, folder: Path, text: str) -> list[str]:
        words = [str(self.model.path.absolute()), "--threads", str(self._threads)]
        return module_command(self.name, *words)

    def _environment(self, folder: Path) -> dict[str, str]:
        return finding_ggufy(super()._environment(folder))

    def _load(self) -> bool:
        """Starts the process and waits until it is ready; False when that was interrupted."""
        self._launch("")
        while (message := self._message()) is None:
            if self._stopped():
                self._end()
                return False
        if "error" in message:
            self._end()
            raise SourceError(Message.from_record(message["error"]))
        return True

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise ProcessExited("the model was put away: send the message again.") from None

    def _message(self) -> dict[str, Any] | None:
        """The next line of the process; None when there was none for a moment. Raises ToolError at the end of the
        output."""
        line, found, rest = self._text.partition("\n")
        if found:
            self._text = rest
            message: dict[str, Any] = json.loads(line)
            return message
        if (piece := self._read()) is None:
            raise ToolError(
                "the process of {name} ended ({reason}): send the message again.",
                name=self.model.path.name,
                reason=self._failure(),
            )
        self._text += piece
        return None

    def _reply(self) -> Iterator[str]:
        ended = False
        try:
            while not ended and not self._stopped():
                if (message := self._message()) is None:
                    continue
                ended = "piece" not in message
                if "error" in message:
                    raise SourceError(Message.from_record(message["error"]))
                if ended:
                    self._note(message)
                else:
                    yield message["piece"]
        finally:  # also when the generator is closed at the yield
            if not ended and self.alive:
                self._break_off()

    def _note(self, message: dict[str, Any]) -> None:
        self.end, speeds = message["end"], message["speeds"]
        self.speeds = (speeds[0], speeds[1]) if speeds else None

    def _break_off(self) -> None:
        """Ends a reply that nobody reads any more; ends the process if that takes long."""
        limit = time.monotonic() + GIVE_UP_S
        self._send({"stop": True})
        while time.monotonic() < limit and not self._closed:
            message = self._message()
            if message and "piece" not in message:
                self._note({"end": "", "speeds": None} | message)
                self.end = ""
                return
        self._end()


class RwkvcppCompletion(RwkvcppChat):
    """The same for texts that are continued."""

    def say(
        self,
        text: str,
        before: Sequence[str] = (),
        *,
        think: str = OFF,
        stopped: Callable[[], bool] | None = None,
    ) -> Generator[str, None, None]:
        """Continues `text` and gives what comes after it in pieces; `before` and `think` have no meaning here."""
        yield from self.go_on(messages.clean(text), stops=self.options.stops, stopped=stopped)

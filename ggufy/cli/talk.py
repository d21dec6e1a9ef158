"""A conversation in the terminal: what was said, and what a message makes of it.

With a file of rwkv.cpp, these are the commands of that project's chat, python/chat_with_bot.py:

    +reset     begin anew                          +          another reply to the last message
    +gen TEXT  go on with a text                   ++         another text after the last +gen, +i or +qq
    +i TEXT    follow an instruction               +++        go on with that text
    +qq TEXT   answer a question, with more fancy  -temp=N    at this temperature, 0.2 to 5
    +qa TEXT   answer apart from what was said     -top_p=N   with this top p
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator
from dataclasses import replace

from ggufy.core.errors import UsageError
from ggufy.llama.chat.backend import ChatBackend
from ggufy.llama.chat.options import ChatOptions
from ggufy.rwkvcpp.backend import RwkvcppChat

#: What models of the Pile and Raven have read before such texts, as that chat writes it.
_FREE = {
    "+gen": "\n{text}",
    "+i": "\nBelow is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n# Instruction:\n{text}\n\n# Response:\n",
    "+qq": "\nQ: {text}\nA:",
}
_SAMPLING = re.compile(r"-(temp|top_p)=(\d+(?:\.\d*)?|\.\d+)(?!\S)")


class Talk:
    """A conversation. What is interrupted stays in it as far as it came, what was thought before does not."""

    def __init__(self, start: Callable[[], ChatBackend], think: str):
        self.said: list[str] = []
        self.think = think
        self._start = start
        self.process = start()

    def answer(self, message: str, stopped: Callable[[], bool]) -> Generator[str, None, None]:
        """What the model says to a message, in pieces."""
        if not self.process.alive:
            self.process = self._start()
        yield from self._reply(message, stopped)

    def _reply(self, message: str, stopped: Callable[[], bool]) -> Generator[str, None, None]:
        reply, chat = "", self.process.model.chat
        try:
            with contextlib.closing(self.process.say(message, self.said, think=self.think, stopped=stopped)) as pieces:
                for piece in pieces:
                    reply += piece
                    yield piece
        finally:
            answer = chat.split(reply, self.think, ended=True)[1] if chat else reply
            if answer.strip():
                self.said += [message, answer]


class CommandTalk(Talk):
    """One that knows the commands."""

    process: RwkvcppChat
    _start: Callable[[], RwkvcppChat]

    def __init__(self, start: Callable[[], RwkvcppChat], think: str):
        super().__init__(start, think)
        self._options = self.process.options
        self._free = ""  # the text that was gone on with
        self._made = ""  # what came after it

    def answer(self, message: str, stopped: Callable[[], bool]) -> Generator[str, None, None]:
        """As Talk.answer. Raises UsageError for a command that has nothing to work on."""
        if not self.process.alive:
            self.process = self._start()
        message, self.process.options = sampled(message.strip(), self._options)
        command, _, text = message.partition(" ")
        command, text = command.lower(), text.strip()
        if command == "+reset" and not text:
            self.said.clear()
        elif command in _FREE and text:
            yield from self._go_on(_FREE[command].format(text=text), stopped)
        elif command in ("++", "+++") and not text:
            if not self._free:
                raise UsageError("there is no text to go on with: begin one with +gen, +i or +qq.")
            yield from self._go_on(self._free + (self._made if command == "+++" else ""), stopped)
        elif command == "+" and not text:
            if not self.said:
                raise UsageError("there is no message to reply to again: write one first.")
            *self.said, message, _ = self.said
            yield from self._reply(message, stopped)
        elif command == "+qa" and text:
            before, self.said = self.said, []
            try:
                yield from self._reply(text, stopped)
            finally:
                self.said = before
        else:
            yield from self._reply(message, stopped)

    def _go_on(self, text: str, stopped: Callable[[], bool]) -> Generator[str, None, None]:
        self._free, self._made = text, ""
        pieces = self.process.go_on(text, stopped=stopped)
        with contextlib.closing(pieces):
            for piece in pieces:
                self._made += piece
                yield piece


def sampled(message: str, options: ChatOptions) -> tuple[str, ChatOptions]:
    """The message without `-temp=N` and `-top_p=N`, and options with these numbers, for this message alone."""
    for name, number in _SAMPLING.findall(message):
        if name == "temp":
            options = replace(options, temperature=min(max(float(number), 0.2), 5.0))
        else:
            options = replace(options, top_p=min(float(number), 1.0))
    return _SAMPLING.sub("", message).strip(), options

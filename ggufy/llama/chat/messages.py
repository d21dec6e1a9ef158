"""What llama-cli is given on its standard input for a stranger's text, and how its answer is read. Pure.

llama-cli reads lines. One that ends in a backslash goes on in the next, one that ends in `/` is sent without it, and a
message that starts with `/read`, `/glob`, `/exit`, … is a command: `/read /etc/passwd` would hand a file to the model.
`encode` writes any text so that it arrives as it is.

llama-cli has no way to be told what was said before, so the whole conversation travels in each message, and the
process itself is made to forget (`/clear`) first. For an RWKV the message is the whole prompt, as its chat format
writes it, and llama-cli's template gives a message as it is. For a model with a template of its own the turns are
joined with a separator that no cleaned text can hold, and `unpacking` puts a few lines before that template which take
them apart again. Little is read twice: llama.cpp compares each prompt with the last one, and goes on from a state kept
shortly before they differ.

The end of a reply is the line of timings and the prompt that llama-cli prints after it. `Follower` holds back text
that may turn out to be the beginning of that line.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Generator, Sequence

from ggufy.core.errors import UsageError
from ggufy.models.chat_format import OFF, RwkvFormat

_SEPARATOR = "\x1e"
_NEWLINES = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_BLANKS = " \t\n"
_CLEARED = "Chat history cleared.\n\n> "
_MARK = re.compile(r"\n\[ Prompt: ([\d.]+) t/s \| Generation: ([\d.]+) t/s \]\n\n> ")
_MARK_LENGTH = 100  # characters; more than the mark ever has

# `messages` is what llama-cli passes to a template: perhaps a system prompt, and the one message that we sent.
_UNPACK = """\
{%- if messages and messages[-1].content is string and 'SEP' in messages[-1].content -%}
{%- set unpacked = namespace(turns=messages[:-1]) -%}
{%- for text in messages[-1].content.split('SEP') -%}
{%- set role = 'user' if loop.index0 % 2 == 0 else 'assistant' -%}
{%- set unpacked.turns = unpacked.turns + [{'role': role, 'content': text}] -%}
{%- endfor -%}
{%- set messages = unpacked.turns -%}
{%- endif -%}
""".replace("SEP", _SEPARATOR)


def clean(text: str) -> str:
    """The text with plain newlines, and without control characters (tabs stay) and halves of surrogate pairs."""
    return "".join(
        letter
        for letter in _NEWLINES.sub("\n", text)
        if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs")
    )


def encode(text: str) -> bytes:
    """`text` as lines for llama-cli --simple-io, which gives exactly it to the model; see the module's docstring.

    Blanks around the text are dropped, as RWKV's template does. One blank is added where the text would be taken for
    a command or lose its last letter: before a `/` that begins it, after a `/` or backslash that ends it. Raises
    UsageError when nothing is left.
    """
    return _lines(clean(text))


def encode_conversation(texts: Sequence[str], *, chat: RwkvFormat | None, system: str = "", think: str = OFF) -> bytes:
    """Like `encode`, for all that was said: the user's and the model's texts in turn, the user's new one last.

    `chat`: written out as an RWKV's prompt, with the system prompt, and begun with thinking or without; None: to be
    taken apart by a template that begins with `unpacking`.
    """
    if chat is None:
        return _lines(_SEPARATOR.join(_cleaned(texts)))
    return _lines(conversation_prompt(texts, chat=chat, system=system, think=think))


def conversation_prompt(texts: Sequence[str], *, chat: RwkvFormat, system: str = "", think: str = OFF) -> str:
    """The same texts as an RWKV's prompt, up to where the reply begins. Raises UsageError when the last is empty."""
    turns = [{"role": "system", "content": clean(system)}] if system.strip() else []
    for number, text in enumerate(_cleaned(texts)):
        turns.append({"role": "assistant" if number % 2 else "user", "content": text})
    return chat.prompt(turns, think)


def _cleaned(texts: Sequence[str]) -> list[str]:
    cleaned = [clean(text).strip(_BLANKS) for text in texts]
    if not cleaned[-1].strip():
        raise UsageError("the message is empty: write something first.")
    return cleaned


def unpacking(template: str) -> str:
    """A model's own chat template, able to read a conversation that came in one message."""
    return _UNPACK + template


def _lines(text: str) -> bytes:
    if not text.strip():
        raise UsageError("the message is empty: write something first.")
    text = text.strip(_BLANKS)
    if text.startswith("/"):
        text = " " + text
    if text.endswith(("/", "\\")):
        text += " "
    return (text.replace("\n", "\\\n") + "\n").encode("utf-8")


class Follower:
    """Finds a reply in what llama-cli prints."""

    def __init__(self) -> None:
        self.began = False  # the first token has come
        self.speeds: tuple[float, float] | None = None
        self._cleared = self._shown = False
        self._text = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Takes a piece of output; gives what of the reply can be shown now, and whether it has ended."""
        self._text += piece
        if not self._cleared:
            _, found, after = self._text.partition(_CLEARED)
            if not found:
                return "", False
            self._cleared, self._text = True, after
        self.began = self.began or bool(self._text)
        start = self._text.rfind("\n[")
        mark = _MARK.fullmatch(self._text, start) if start >= 0 else None
        if mark:
            self.speeds = (float(mark[1]), float(mark[2]))
        end = start if start >= 0 and len(self._text) - start < _MARK_LENGTH else len(self._text)
        ready = self._text[:end].rstrip()
        self._text = self._text[len(ready) :]
        if ready and not self._shown:
            ready = ready.lstrip()
            self._shown = True
        return ready, mark is not None


class StopTexts:
    """Ends a text that comes in pieces before the first of some texts, which is never shown, not even its
    beginning."""

    def __init__(self, stops: Sequence[str]):
        self._stops = [stop for stop in stops if stop]
        self._text = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Takes a piece; gives what can be shown now, and whether the end was found."""
        self._text += piece
        found = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        cut = min(found) if found else len(self._text) - self._begun()
        ready, self._text = self._text[:cut], self._text[cut:]
        return ready, bool(found)

    def rest(self) -> str:
        """What was held back, when nothing comes any more."""
        rest, self._text = self._text, ""
        return rest

    def _begun(self) -> int:
        """Letters at the end of the text that may be the beginning of a stop."""
        text = self._text
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


def stripped(pieces: Generator[str, None, None]) -> Generator[str, None, None]:
    """A text that comes in pieces, without the blanks around it."""
    pending, shown = "", False
    with contextlib.closing(pieces):
        for piece in pieces:
            pending += piece
            ready = pending.rstrip() if shown else pending.strip()
            if ready:
                pending = pending[len(pending.rstrip()) :]
                shown = True
                yield ready

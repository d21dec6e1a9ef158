"""One conversation: its turns, and how questions and replies become them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ggufy.core.errors import UsageError
from ggufy.llama.chat.messages import clean
from ggufy.models.chat_format import RwkvFormat

Turn = dict[str, str]
MAX_CONVERSATION = 128_000  # characters of all turns; the oldest go first
MAX_TURNS = 200
_USER, _MODEL = "user", "assistant"


@dataclass(eq=False)
class Conversation:
    """What one visitor and one model have said in one mode."""

    turns: list[Turn] = field(default_factory=list)
    speeds: tuple[float, float] | None = None
    used: tuple[int, int] | None = None  # tokens of the context, and how many there may be; 0: as many as it likes
    stopped: bool = False  # the reply that is being made is to end
    busy: threading.Lock = field(default_factory=threading.Lock)

    def before(self) -> list[str]:
        """The questions and replies until the last question; a question without a reply is left out."""
        texts = []
        for turn, reply in zip(self.turns, self.turns[1:], strict=False):
            if turn["role"] == _USER and reply["role"] == _MODEL and reply["content"].strip():
                texts += [turn["content"], reply["content"]]
        return texts

    def ask(self, text: str | None, turn: int | None) -> None:
        """Puts a question at the end of the turns; without a text, the last one again. `turn` is as in `Chats.say`."""
        if turn is not None:
            if not 0 <= turn < len(self.turns) or self.turns[turn]["role"] != (_MODEL if text is None else _USER):
                raise UsageError("this message is no longer there: look at the conversation as it is now.")
            del self.turns[turn:]
        if text is not None:
            self.turns.append({"role": _USER, "content": text})
            self.trim()
            return
        while self.turns and self.turns[-1]["role"] == _MODEL:
            del self.turns[-1]
        if not self.turns:
            raise UsageError("there is no message to reply to again: write one first.")

    def replied(self, pieces: Iterable[str], chat: RwkvFormat | None, think: str) -> Iterator[None]:
        """Puts a reply at the end of the turns as it comes, with what an RWKV thinks apart from what it says."""
        reply = ""

        def put(*, ended: bool) -> None:
            self.put(*(chat.split(reply, think, ended=ended) if chat else ("", reply)))

        try:
            for piece in pieces:
                reply += piece
                put(ended=False)
                yield
        finally:  # also of one that was stopped
            if reply:
                put(ended=True)

    def put(self, thought: str, content: str) -> None:
        """The model's turn is this until now."""
        if self.turns[-1]["role"] == _MODEL:
            del self.turns[-1]
        turn = {"role": _MODEL, "content": content}
        self.turns.append(turn | {"thought": thought} if thought else turn)

    def trim(self) -> None:
        """Forgets the oldest turns of a conversation that has become too long."""
        while len(self.turns) > MAX_TURNS or sum(map(_length, self.turns)) > MAX_CONVERSATION:
            del self.turns[0]
            while len(self.turns) > 1 and self.turns[0]["role"] != _USER:
                del self.turns[0]


def same_question(turns: list[Turn], turn: int, others: list[Turn]) -> int | None:
    """Where the question `turn` of one side stands among those of the other, counted from the end, as one side may
    have begun earlier; None if it was not asked there."""
    if not 0 <= turn < len(turns):
        return None
    asked, ours, theirs = turns[turn], _questions(turns), _questions(others)
    if turn not in ours:
        return None
    place = len(theirs) - (len(ours) - ours.index(turn))
    found = theirs[place] if place >= 0 else None
    return found if found is not None and others[found]["content"] == asked["content"] else None


def kept_turns(kept: object) -> list[Turn]:
    """The turns that a visitor's browser has kept, cleaned as messages are; none if they are no conversation."""
    conversation = Conversation()
    for turn in kept[-MAX_TURNS:] if isinstance(kept, list) else ():
        found = [turn.get(key, "") for key in ("role", "content", "thought")] if isinstance(turn, Mapping) else []
        texts = [text for text in found if isinstance(text, str) and len(text) <= MAX_CONVERSATION]
        if len(texts) != 3:
            return []
        role, content, thought = texts
        if role == _USER:
            conversation.turns.append({"role": role, "content": clean(content)})
        elif role == _MODEL and conversation.turns:
            conversation.put(clean(thought), clean(content))
    conversation.trim()
    return conversation.turns


def _questions(turns: list[Turn]) -> list[int]:
    return [number for number, turn in enumerate(turns) if turn["role"] == _USER]


def _length(turn: Mapping[str, str]) -> int:
    return len(turn["content"]) + len(turn.get("thought", ""))

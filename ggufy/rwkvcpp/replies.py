"""A model's text, one token after the other: from a prompt to what ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ggufy.core.errors import SourceError
from ggufy.llama.chat.messages import StopTexts
from ggufy.llama.chat.options import ChatOptions
from ggufy.llama.chat.process import END, LENGTH, STOP
from ggufy.rwkvcpp.reading import Place, Reader
from ggufy.rwkvcpp.sampler import Sampler
from ggufy.rwkvcpp.tokenizer import END_OF_TEXT, Tokenizer
from ggufy.system.clock import never


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be gone on with."""

    prompt: str
    options: ChatOptions  # its stops end the text too
    not_first: Sequence[str] = ()  # texts of one token that the reply never begins with


class Reply:
    """The text that goes on a prompt. `end` says what ended it, once it has, and `speeds` are tokens a second of
    reading and writing."""

    def __init__(self, reader: Reader, tokenizer: Tokenizer, question: Question):
        self.end = ""
        self.speeds: tuple[float, float] | None = None
        self._reader, self._tokenizer, self._question = reader, tokenizer, question
        # Rows of the embedding without a token were never trained.
        count = len(tokenizer.tokens)
        self._unused = [*range(count, reader.engine.n_vocab), *(i for i in range(1, count) if not tokenizer.tokens[i])]

    def pieces(self, stopped: Callable[[], bool] = never) -> Iterator[str]:
        """Gives it as it comes; nothing more once `stopped` says so. Raises Cancelled when that is while the prompt is
        read, and SourceError for a prompt of no tokens."""
        tokens = self._tokenizer.prompt(self._question.prompt)
        if not tokens:
            raise SourceError("there is nothing to go on with: write something first.")
        place = self._reader.reach(tokens, stopped)
        began, written = time.perf_counter(), 0
        stream, stops = self._tokenizer.stream(), StopTexts(self._question.options.stops)
        try:
            for token in self._tokens(place, stopped):
                written += 1
                ready, found = stops.feed(stream.feed(token))
                if ready:
                    yield ready
                if found:
                    self.end = STOP
                    return
            if rest := stops.feed(stream.rest())[0] + stops.rest():
                yield rest
        finally:
            self.speeds = (self._reader.speed, written / (time.perf_counter() - began))

    def _tokens(self, place: Place, stopped: Callable[[], bool]) -> Iterator[int]:
        """The ids of the text. What was read in the end is kept for the next turn."""
        options, reader = self._question.options, self._reader
        sampler = Sampler(options)
        begins = [self._tokenizer.single(text) for text in self._question.not_first]
        forbidden = [*self._unused, *(token for token in begins if token is not None)]
        try:
            for number in range(options.length):
                if stopped():
                    return
                token = sampler.choose(place.logits, place.tokens, forbidden)
                if token == END_OF_TEXT:
                    self.end = END
                    return
                yield token
                if number + 1 < options.length:
                    place = reader.after(place, [token])
                forbidden = self._unused
            self.end = LENGTH
        finally:
            reader.keep(place)

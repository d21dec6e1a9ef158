"""What a model has read: an RWKV's state stands for all tokens until then, so what begins alike is read once.

A few states are kept, with the tokens that they stand for: those at the ends of prompts and of replies. A prompt that
begins with the tokens of one goes on from there, so the next turn of a conversation, another reply to the last
message, and a change of that message all read little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ggufy.core.errors import Cancelled
from ggufy.llama.ggml import F32Array
from ggufy.rwkvcpp.evaluator import Evaluator
from ggufy.system.clock import never

BUDGET = 64_000_000  # bytes of states and logits that are kept, but for the newest two, whatever their size
_LEAST = 2
CHUNK = 64  # tokens that are read at once: between two chunks, reading can be stopped


@dataclass(frozen=True, eq=False)
class Place:
    """Where a model is in a text."""

    tokens: tuple[int, ...]  # all that was read
    logits: F32Array  # [V], of what comes next
    state: F32Array

    @property
    def size(self) -> int:
        return self.logits.nbytes + self.state.nbytes


class Reader:
    """Reads token sequences with a model. `speed` is that of the last time that there was something to read."""

    def __init__(self, engine: Evaluator, budget: int = BUDGET):
        self.engine, self.budget = engine, budget
        self.speed = 0.0  # tokens a second
        self._places: list[Place] = []  # the longest unused first

    def reach(self, tokens: Sequence[int], stopped: Callable[[], bool] = never) -> Place:
        """Reads `tokens` (one at least), as few as the kept states leave to read. Raises Cancelled once `stopped` says
        so; what was read until then is kept."""
        wanted = tuple(tokens)
        place = self._longest(wanted)
        known, start = len(place.tokens) if place else 0, time.perf_counter()
        while place is None or len(place.tokens) < len(wanted):
            if stopped():
                if place is not None:
                    self.keep(place)
                raise Cancelled("stopped while the text was being read.")
            place = self.after(place, wanted[len(place.tokens) if place else 0 :][:CHUNK])
        if read := len(wanted) - known:
            self.speed = read / (time.perf_counter() - start)
        self.keep(place)
        return place

    def after(self, place: Place | None, tokens: Sequence[int]) -> Place:
        """The place so many tokens further."""
        logits, state = self.engine.eval(tokens, place.state if place else None)
        return Place((place.tokens if place else ()) + tuple(tokens), logits, state)

    def keep(self, place: Place) -> None:
        """Remembers a place; those that were not used for the longest time are forgotten for it."""
        self._places = [known for known in self._places if known.tokens != place.tokens]
        self._places.append(place)
        while len(self._places) > _LEAST and sum(known.size for known in self._places) > self.budget:
            del self._places[0]

    def _longest(self, wanted: tuple[int, ...]) -> Place | None:
        """The kept place from which the least is left to read."""
        fitting = [place for place in self._places if wanted[: len(place.tokens)] == place.tokens]
        if not fitting:
            return None
        best = max(fitting, key=lambda place: len(place.tokens))
        self.keep(best)
        return best

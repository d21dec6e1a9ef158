"""Chooses the next token from a model's logits, as llama.cpp does with the same numbers: penalties, top k, top p, and
then the temperature. Pure but for its random numbers, which a seed fixes.

RWKV's own samplers differ in two things: their penalties count the tokens of the reply alone, and top p 0 means 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ggufy.llama.chat.options import ChatOptions
from ggufy.llama.ggml import F32Array

PENALIZED = 64  # last tokens that penalties look at


class Sampler:
    """One choice after the other, with the options of a reply."""

    def __init__(self, options: ChatOptions):
        self.options = options
        self._random = np.random.default_rng(options.seed)

    def choose(self, given: F32Array, before: Sequence[int], forbidden: Sequence[int] = ()) -> int:
        """The next id. `given` are logits [V], `before` the ids until now, and `forbidden` ids never come."""
        logits = self._penalized(given.astype(np.float64), before[-PENALIZED:])
        logits[list(forbidden)] = -np.inf
        if self.options.temperature == 0:
            return int(np.argmax(logits))
        ids, logits = self._likely(logits)
        weights = np.exp((logits - logits[0]) / self.options.temperature)
        place = np.searchsorted(np.cumsum(weights), self._random.random() * weights.sum(), side="right")
        return int(ids[min(int(place), len(ids) - 1)])

    def _penalized(self, logits: NDArray[np.float64], last: Sequence[int]) -> NDArray[np.float64]:
        options = self.options
        counts = Counter(last)
        ids, times = np.array([*counts], dtype=np.int64), np.array([*counts.values()])
        if not len(ids):
            return logits
        found = logits[ids]
        found = np.where(found > 0, found / options.repeat, found * options.repeat)
        logits[ids] = found - times * options.frequency - options.presence
        return logits

    def _likely(self, logits: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The ids to choose from with their logits, the likeliest first: never none."""
        ids = np.argsort(-logits, kind="stable")[: self.options.top_k or None]
        logits = logits[ids]
        if self.options.top_p < 1:
            sums = np.cumsum(np.exp(logits - logits[0]))
            kept = int(np.searchsorted(sums, self.options.top_p * sums[-1])) + 1
            ids, logits = ids[:kept], logits[:kept]
        return ids, logits

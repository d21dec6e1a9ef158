"""What runs a file of rwkv.cpp, whichever engine it is: tokens and a state give logits and the next state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ggufy.core.errors import UsageError
from ggufy.formats.rwkvcpp import RwkvcppHead
from ggufy.llama.ggml import F32Array

_NEVER = -1e30  # version 4's largest exponent before the first token


class Evaluator(ABC):
    """A loaded model. It belongs to one thread at a time; `close` gives its memory and threads back.

    A state is one F32 vector in rwkv.cpp's layout (rwkv.h), so that engines can exchange it. For each block: the last
    input of the channel mix [C], of the time mix [C], then version 4's numerator, denominator and exponent [3, C], or
    the matrices of the heads: [H, keys, values] of version 5 and 6, [H, values, keys] of 7.
    """

    state_len: int  # values of a state

    def __init__(self, path: Path, head: RwkvcppHead):
        self.path, self.version, self.type = path, head.rwkv, head.type
        self.n_vocab, self.n_embed, self.n_layer = head.vocab_size, head.width, head.layers

    @property
    def logits_len(self) -> int:
        return self.n_vocab

    def initial_state(self) -> F32Array:
        """The state before the first token."""
        state = np.zeros((self.n_layer, self.state_len // self.n_layer), dtype=np.float32)
        if self.version == "4":
            state[:, -self.n_embed :] = _NEVER
        return state.reshape(-1)

    def eval(self, tokens: Sequence[int], state: F32Array | None, *, every: bool = False) -> tuple[F32Array, F32Array]:
        """Goes on from `state` (F32 [state_len]; None: the initial one) by these tokens, at least one.

        Gives the logits after the last token, F32 [V], or with `every` after each, F32 [T, V], and the new state;
        `state` stays as it is. Raises UsageError for a token that the model does not have, ValueError for a state of
        another shape, ToolError when a kernel or a library fails.
        """
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                raise UsageError(
                    "token {token} is none of the model's {count}: choose the tokenizer that belongs to it.",
                    token=token,
                    count=self.n_vocab,
                )
        if not len(tokens):
            raise ValueError("there has to be a token")
        if state is not None and state.shape != (self.state_len,):
            raise ValueError(f"a state of {state.shape} values, expected ({self.state_len},)")
        return self._eval(tokens, state, every=every)

    @abstractmethod
    def _eval(self, tokens: Sequence[int], state: F32Array | None, *, every: bool) -> tuple[F32Array, F32Array]: ...

    @abstractmethod
    def close(self) -> None:
        """Gives memory and threads back; `eval` may not be called any more."""

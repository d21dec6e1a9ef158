"""An engine for files of rwkv.cpp: RWKV-4 to 7, on the CPU, in NumPy with ggml's matrix products.

engine = Engine(Path("RWKV-4-169M-Q5_1.bin"), threads=2, ggml_folder=llama.bin)
logits, state = engine.eval([1, 2, 3], None)
logits, state = engine.eval([4], state)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggufy.core.errors import SourceError
from ggufy.formats.rwkvcpp import read_head
from ggufy.llama.ggml import F32Array
from ggufy.rwkvcpp.blocks import GROUP_EPS_5, ChannelMix, TimeMix, TimeMix4, TimeMix5, TimeMix6, TimeMix7, normed
from ggufy.rwkvcpp.evaluator import Evaluator
from ggufy.rwkvcpp.weights import Weights, rows_of
from ggufy.system.resources import tool_threads

_TOKENS_AT_ONCE = 64  # through a block: their inner values take memory, more of them gain no speed


@dataclass(frozen=True)
class _Block:
    ln1: tuple[F32Array, F32Array]
    time_mix: TimeMix
    ln2: tuple[F32Array, F32Array]
    channel_mix: ChannelMix


class Engine(Evaluator):
    """Our own. It takes as much memory as the file has bytes."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        ggml_folder: Path | None = None,
        eps: float = GROUP_EPS_5,
    ):
        """Reads the whole file.

        `ggml_folder` is a llama.cpp's folder of programs; without it, NumPy multiplies, which is slow unless the file
        is FP32. `eps` is that of RWKV-5's group norm: rwkv.cpp has 1e-5, RWKV-LM and its models 64e-5. Raises
        SourceError for a file that is no sound model.
        """
        head = read_head(path)
        if head.outdated:
            raise SourceError(
                "{path} has blocks that rwkv.cpp gave up in May 2023: convert it to version 101 first.", path=path
            )
        super().__init__(path, head)
        self._weights = Weights(path, head, threads=tool_threads(threads), ggml_folder=ggml_folder)
        try:
            self._load(eps)
        except BaseException:
            self._weights.close()
            raise

    def _load(self, eps: float) -> None:
        weights, width = self._weights, self.n_embed
        self._embedding = weights.matrix("emb.weight", self.n_vocab, width)
        self._ln0 = _norm(weights, "blocks.0.ln0", width)
        self._blocks = [self._block(i, eps) for i in range(self.n_layer)]
        self._ln_out = _norm(weights, "ln_out", width)
        self._head = weights.products(weights.matrix("head.weight", self.n_vocab, width))
        heads = {getattr(block.time_mix, "heads", 0) for block in self._blocks}
        if len(heads) > 1:
            raise SourceError(
                "{path}: its blocks have different numbers of heads: convert the model again.", path=self.path
            )
        count = heads.pop()
        size = width // count if count else 0
        self._state_shape = (count, size, size) if count else (3, width)
        self.state_len = self.n_layer * (2 * width + math.prod(self._state_shape))

    def _block(self, i: int, eps: float) -> _Block:
        weights, width, att = self._weights, self.n_embed, f"blocks.{i}.att."
        time_mix: TimeMix
        if self.version == "4":
            time_mix = TimeMix4(weights, att, width)
        elif self.version == "6":
            time_mix = TimeMix6(weights, att, width)
        elif self.version == "7":
            time_mix = TimeMix7(weights, att, width, first=i == 0)
        else:
            time_mix = TimeMix5(weights, att, width, eps=eps)
        return _Block(
            _norm(weights, f"blocks.{i}.ln1", width),
            time_mix,
            _norm(weights, f"blocks.{i}.ln2", width),
            ChannelMix(weights, f"blocks.{i}.ffn.", width, self.version),
        )

    def _eval(self, tokens: Sequence[int], state: F32Array | None, *, every: bool) -> tuple[F32Array, F32Array]:
        new = self.initial_state() if state is None else np.array(state, dtype=np.float32)
        logits = []
        with np.errstate(all="ignore"):  # infinities come and go in sigmoid, as in C
            for first in range(0, len(tokens), _TOKENS_AT_ONCE):
                x = self._advance(tokens[first : first + _TOKENS_AT_ONCE], new)
                if every or first + _TOKENS_AT_ONCE >= len(tokens):
                    logits += self._head([normed(x if every else x[-1:], *self._ln_out)])
        return (np.concatenate(logits) if every else logits[0][0]), new

    def _advance(self, tokens: Sequence[int], state: F32Array) -> F32Array:
        """Brings the state behind these tokens; what the last block gives, F32 [T, C]."""
        width = self.n_embed
        x = normed(np.concatenate([rows_of(self._embedding, t, t + 1) for t in tokens]), *self._ln0)
        carried: dict[str, F32Array] = {}
        for block, own in zip(self._blocks, state.reshape(self.n_layer, -1), strict=True):
            last_channel, last_time = own[:width], own[width : 2 * width]
            matrices = own[2 * width :].reshape(self._state_shape)
            inner = normed(x, *block.ln1)
            x = x + block.time_mix(inner, _shifted(inner, last_time), matrices, carried)
            last_time[:] = inner[-1]
            inner = normed(x, *block.ln2)
            x = x + block.channel_mix(inner, _shifted(inner, last_channel))
            last_channel[:] = inner[-1]
        return x

    def close(self) -> None:
        self._weights.close()


def _norm(weights: Weights, name: str, width: int) -> tuple[F32Array, F32Array]:
    return weights.vector(f"{name}.weight", width), weights.vector(f"{name}.bias", width)


def _shifted(x: F32Array, last: F32Array) -> F32Array:
    """The input of the token before each: F32 [T, C]."""
    return np.concatenate([last[None], x[:-1]])

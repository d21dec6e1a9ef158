"""The two halves of an RWKV's block, versions 4 to 7, as rwkv.cpp computes them (rwkv_graph.inc and operators wkv_* of
RWKV/rwkv.cpp at 4358e70), over T tokens at once but for the recurrence, which goes token by token.

T tokens, C width, H heads of N values each. Inputs are layer-normalized, F32 [T, C]; `before` has the input of the
token before each. States are views of the state vector, and change in place.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ggufy.core.errors import SourceError
from ggufy.llama.ggml import F32Array
from ggufy.llama.matmul import Matrix
from ggufy.rwkvcpp.weights import Weights

LN_EPS = 1e-5
GROUP_EPS = 64e-5  # of RWKV-6 and 7, and of RWKV-5 in RWKV-LM
GROUP_EPS_5 = 1e-5  # of RWKV-5 in rwkv.cpp


class TimeMix(Protocol):
    """The half with a state."""

    def __call__(self, x: F32Array, before: F32Array, state: F32Array, carried: dict[str, F32Array]) -> F32Array:
        """`state`: [H, N, N], or [3, C] of version 4; `carried`: what the first block leaves for the others."""
        ...


def normed(x: F32Array, weight: F32Array, bias: F32Array, eps: float = LN_EPS) -> F32Array:
    """Layer norm over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    out: F32Array = centred / np.sqrt(variance + np.float32(eps)) * weight + bias
    return out


def sigmoid(x: F32Array) -> F32Array:
    """1 / (1 + e^-x); e^-x may be infinite."""
    return (1 / (1 + np.exp(-x))).astype(np.float32, copy=False)


class TimeMix4:
    """RWKV-4: for each channel a sum over the past, weighted by e^k; its largest exponent keeps it from overflow."""

    def __init__(self, weights: Weights, prefix: str, width: int):
        self._mix = [weights.vector(f"{prefix}time_mix_{name}", width) for name in "rkv"]
        self._decay = weights.vector(f"{prefix}time_decay", width)  # -e^x of the checkpoint's
        self._first = weights.vector(f"{prefix}time_first", width)
        self._in = weights.products(*_square(weights, prefix, width, "receptance", "key", "value"))
        self._out = weights.products(*_square(weights, prefix, width, "output"))

    def __call__(self, x: F32Array, before: F32Array, state: F32Array, carried: dict[str, F32Array]) -> F32Array:
        r, k, v = self._in([x * mix + before * (1 - mix) for mix in self._mix])
        over, under, most = state  # numerator and denominator, both divided by e^most
        bonus, out = k + self._first, np.empty_like(x)
        for t in range(len(x)):
            top = np.maximum(most, bonus[t])
            past, now = np.exp(most - top), np.exp(bonus[t] - top)
            out[t] = (past * over + now * v[t]) / (past * under + now)
            faded = most + self._decay
            top = np.maximum(faded, k[t])
            past, now = np.exp(faded - top), np.exp(k[t] - top)
            over[:] = past * over + now * v[t]
            under[:] = past * under + now
            most[:] = top
        return self._out([sigmoid(r) * out])[0]


class TimeMix5:
    """RWKV-5.1 and 5.2: for each head a matrix [keys, values], which fades by `time_decay`. 5.2 has a gate."""

    def __init__(self, weights: Weights, prefix: str, width: int, *, eps: float):
        gated = weights.has(f"{prefix}gate.weight")
        self._mix = [weights.vector(f"{prefix}time_mix_{name}", width) for name in ("rkvg" if gated else "rkv")]
        self._eps, self.heads = eps, weights.shape(f"{prefix}time_decay")[0]
        rates = _head_size(weights, prefix, width, self.heads) if gated else 1
        bonus = "time_faaaa" if gated else "time_first"
        self._decay = weights.vector(f"{prefix}time_decay", self.heads, rates, 1)
        self._bonus = weights.vector(f"{prefix}{bonus}", self.heads, rates, 1)
        self._norm = [weights.vector(f"{prefix}ln_x.{name}", width) for name in ("weight", "bias")]
        names = ("receptance", "key", "value", "gate")[: len(self._mix)]
        self._in = weights.products(*_square(weights, prefix, width, *names))
        self._out = weights.products(*_square(weights, prefix, width, "output"))

    def __call__(self, x: F32Array, before: F32Array, state: F32Array, carried: dict[str, F32Array]) -> F32Array:
        r, k, v, *gate = self._in([x * mix + before * (1 - mix) for mix in self._mix])
        decay = np.broadcast_to(self._decay, (len(x), *self._decay.shape))
        y = _attend(r, k, v, decay, self._bonus, state)
        y = _group_normed(y, self._norm, self._eps)
        if gate:
            y *= gate[0] * sigmoid(gate[0])
        return self._out([y])[0]


class TimeMix6:
    """RWKV-6: as 5.2, but what is mixed with the token before, and how fast the state fades, follow from the input."""

    def __init__(self, weights: Weights, prefix: str, width: int):
        self._mix_all = weights.vector(f"{prefix}time_maa_x", width)
        self._mix = [weights.vector(f"{prefix}time_maa_{name}", width) for name in "wkvrg"]
        self.heads = weights.shape(f"{prefix}time_decay")[0]
        size = _head_size(weights, prefix, width, self.heads)
        rank = weights.shape(f"{prefix}time_maa_w2")[-1]
        inner = weights.shape(f"{prefix}time_decay_w1")[0]
        self._shift_in = weights.products(weights.matrix(f"{prefix}time_maa_w1", 5 * rank, width))
        self._shift_out = weights.products(*weights.matrices(f"{prefix}time_maa_w2", 5, width, rank))
        self._decay = weights.vector(f"{prefix}time_decay", width)
        self._decay_out = weights.products(weights.matrix(f"{prefix}time_decay_w2", width, inner))
        self._bonus = weights.vector(f"{prefix}time_faaaa", self.heads, size, 1)
        self._norm = [weights.vector(f"{prefix}ln_x.{name}", width) for name in ("weight", "bias")]
        self._in = weights.products(
            weights.matrix(f"{prefix}time_decay_w1", inner, width),
            *_square(weights, prefix, width, "key", "value", "receptance", "gate"),
        )
        self._out = weights.products(*_square(weights, prefix, width, "output"))

    def __call__(self, x: F32Array, before: F32Array, state: F32Array, carried: dict[str, F32Array]) -> F32Array:
        delta = before - x
        (inner,) = self._shift_in([x + delta * self._mix_all])
        shifts = self._shift_out(np.split(np.tanh(inner), 5, axis=1))
        mixed = [x + delta * (mix + shift) for mix, shift in zip(self._mix, shifts, strict=True)]
        w, k, v, r, gate = self._in(mixed)
        (w,) = self._decay_out([np.tanh(w)])
        decay = np.exp(-np.exp(self._decay + w)).reshape(len(x), *self._bonus.shape)
        y = _group_normed(_attend(r, k, v, decay, self._bonus, state), self._norm, GROUP_EPS)
        return self._out([y * gate * sigmoid(gate)])[0]


class TimeMix7:
    """RWKV-7: for each head a matrix [values, keys] that takes back what it holds at a key before it writes there.

    Only the first block has no v0, v1, v2: it leaves its value for the others to mix in.
    """

    def __init__(self, weights: Weights, prefix: str, width: int, *, first: bool):
        self._mix = weights.vector(f"{prefix}x_rwkvag", 6, width)
        self.heads = weights.shape(f"{prefix}r_k")[0]
        self._receptance_key = weights.vector(
            f"{prefix}r_k", self.heads, _head_size(weights, prefix, width, self.heads)
        )
        self._key_removed, self._key_rate = (weights.vector(f"{prefix}{name}", width) for name in ("k_k", "k_a"))
        self._norm = [weights.vector(f"{prefix}ln_x.{name}", width) for name in ("weight", "bias")]
        low = "wag" if first else "wagv"
        self._base = {name: weights.vector(f"{prefix}{name}0", width) for name in low if name != "g"}
        ranks = {name: weights.shape(f"{prefix}{name}1")[0] for name in low}
        self._in = weights.products(
            *_square(weights, prefix, width, "receptance", "key", "value"),
            *(weights.matrix(f"{prefix}{name}1", rank, width) for name, rank in ranks.items()),
        )
        self._low = weights.products(
            *(weights.matrix(f"{prefix}{name}2", width, rank) for name, rank in ranks.items())
        )
        self._out = weights.products(*_square(weights, prefix, width, "output"))

    def __call__(self, x: F32Array, before: F32Array, state: F32Array, carried: dict[str, F32Array]) -> F32Array:
        xr, xw, xk, xv, xa, xg = x + (before - x) * self._mix[:, None]
        inputs = [xr, xk, xv, xw, xa, xg] + [xv] * ("v" in self._base)
        r, k, v, w, a, g, *mixed = self._in(inputs)
        w, a, g, *mixed = self._low([np.tanh(w), a, sigmoid(g), *mixed])
        if mixed:
            v = v + (carried["v"] - v) * sigmoid(self._base["v"] + mixed[0])
        else:
            carried["v"] = v
        decay = np.exp(np.float32(-0.606531) * sigmoid(self._base["w"] + w))
        rate = sigmoid(self._base["a"] + a)
        shape = (len(x), *self._receptance_key.shape)
        removed = (k * self._key_removed).reshape(shape)
        removed /= np.maximum(np.sqrt(np.square(removed).sum(axis=-1, keepdims=True)), np.float32(1e-12))
        k = k * (1 + (rate - 1) * self._key_rate)
        r, k, v, decay, rate = (part.reshape(shape) for part in (r, k, v, decay, rate))
        y = _rewrite(r, k, v, decay, removed, removed * rate, state)
        y = _group_normed(y, self._norm, GROUP_EPS).reshape(shape)
        y += (r * k * self._receptance_key).sum(axis=-1, keepdims=True) * v
        return self._out([y.reshape(x.shape) * g])[0]


class ChannelMix:
    """The half without a state. Version 7 has no receptance. Mixes of 4 and 5 are the part of this token, those of 6
    and 7 the part of the one before."""

    def __init__(self, weights: Weights, prefix: str, width: int, version: str):
        mixes = {"7": ("x_k",), "6": ("time_maa_k", "time_maa_r")}.get(version, ("time_mix_k", "time_mix_r"))
        self._mix = [weights.vector(f"{prefix}{name}", width) for name in mixes]
        if version not in ("6", "7"):
            self._mix = [1 - mix for mix in self._mix]
        inner = weights.shape(f"{prefix}key.weight")[0]
        names = ("key", "receptance")[: len(self._mix)]
        rows = (inner, width)
        self._in = weights.products(
            *(weights.matrix(f"{prefix}{n}.weight", count, width) for n, count in zip(names, rows, strict=False))
        )
        self._out = weights.products(weights.matrix(f"{prefix}value.weight", width, inner))

    def __call__(self, x: F32Array, before: F32Array) -> F32Array:
        delta = before - x
        k, *receptance = self._in([x + delta * mix for mix in self._mix])
        (out,) = self._out([np.square(np.maximum(k, 0))])
        return sigmoid(receptance[0]) * out if receptance else out


def _square(weights: Weights, prefix: str, width: int, *names: str) -> list[Matrix]:
    return [weights.matrix(f"{prefix}{name}.weight", width, width) for name in names]


def _head_size(weights: Weights, prefix: str, width: int, heads: int) -> int:
    """N; SourceError if the heads do not share the width."""
    if width % heads:
        raise SourceError(
            "{prefix}: {heads} heads do not share a width of {width}: convert the model again.",
            prefix=prefix,
            heads=heads,
            width=width,
        )
    return width // heads


def _attend(r: F32Array, k: F32Array, v: F32Array, decay: F32Array, bonus: F32Array, state: F32Array) -> F32Array:
    """The recurrence of RWKV-5 and 6: r, k, v [T, C], decay [T, H, N or 1, 1], bonus [H, N or 1, 1], state [H, N keys,
    N values] -> [T, H, N]."""
    shape = (len(r), len(state), -1)
    r, k, v = r.reshape(shape), k.reshape(shape), v.reshape(shape)
    out = np.empty_like(v)
    for t in range(len(r)):
        new = k[t, :, :, None] * v[t, :, None, :]
        out[t] = (r[t, :, None, :] @ (state + bonus * new))[:, 0]
        state *= decay[t]
        state += new
    return out


def _rewrite(
    r: F32Array, k: F32Array, v: F32Array, decay: F32Array, removed: F32Array, rate: F32Array, state: F32Array
) -> F32Array:
    """The recurrence of RWKV-7: all [T, H, N], state [H, N values, N keys] -> [T, H, N]."""
    out = np.empty_like(v)
    for t in range(len(r)):
        gone = state @ removed[t, :, :, None]
        state *= decay[t, :, None, :]
        state -= gone * rate[t, :, None, :]
        state += v[t, :, :, None] * k[t, :, None, :]
        out[t] = (state @ r[t, :, :, None])[:, :, 0]
    return out


def _group_normed(y: F32Array, norm: list[F32Array], eps: float) -> F32Array:
    """[T, H, N], normalized over each head -> [T, C]."""
    weight, bias = (part.reshape(y.shape[1:]) for part in norm)
    return normed(y, weight, bias, eps).reshape(len(y), -1)

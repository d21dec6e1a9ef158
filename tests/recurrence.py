"""RWKV-6 and RWKV-7 in NumPy, token by token, from the formulas of their papers: an oracle that shares no code with
llama.cpp. Weights have BlinkDL's names; states are those of tuned-state files, [heads, values, keys]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = dict[str, Array]


def logits(weights: Weights, version: str, tokens: Sequence[int], states: Sequence[Array] = ()) -> Array:
    """The logits after each token [tokens, V], begun from the states of the blocks, or from zeros."""
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    mix, channel = (_mix_6, _channel_6) if version == "6" else (_mix_7, _channel_7)
    width = weights["emb.weight"].shape[1]
    heads = weights[f"blocks.0.att.{'time_faaaa' if version == '6' else 'r_k'}"].shape[0]
    size = width // heads
    blocks = [
        _Block(
            {
                name.removeprefix(f"blocks.{i}."): value.reshape(-1) if value.shape[:2] == (1, 1) else value
                for name, value in weights.items()
                if name.startswith(f"blocks.{i}.")
            },
            states[i].astype(np.float64) if len(states) else np.zeros((heads, size, size)),
            np.zeros(width),
            np.zeros(width),
        )
        for i in range(layers)
    ]
    return np.array([_step(weights, blocks, mix, channel, token) for token in tokens])


@dataclass
class _Block:
    weights: Weights
    state: Array  # [heads, values, keys]
    last: Array  # input of the time mix of the token before
    last_channel: Array


def _step(weights: Weights, blocks: list[_Block], mix: Any, channel: Any, token: int) -> Array:
    x = _norm(weights["emb.weight"][token], blocks[0].weights, "ln0")
    first: dict[str, Array] = {}  # of this token, from the first block
    for block in blocks:
        inner = _norm(x, block.weights, "ln1")
        x = x + mix(block, inner, first)
        block.last = inner
        inner = _norm(x, block.weights, "ln2")
        x = x + channel(block, inner)
        block.last_channel = inner
    head: Array = weights["head.weight"] @ _norm(x, weights, "ln_out")
    return head


def _norm(x: Array, weights: Weights, name: str) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _group_norm(y: Array, weights: Weights) -> Array:
    """Over each head [heads, values], with the epsilon of RWKV-LM."""
    normed = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 64e-5)
    return normed.reshape(-1) * weights["att.ln_x.weight"] + weights["att.ln_x.bias"]


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _mix_6(block: _Block, x: Array, _first: dict[str, Array]) -> Array:
    w, delta = block.weights, block.last - x
    heads, size, _ = block.state.shape
    inner = np.tanh((x + delta * w["att.time_maa_x"]) @ w["att.time_maa_w1"]).reshape(5, -1)
    shifts = np.einsum("nr,nrc->nc", inner, w["att.time_maa_w2"])
    xw, xk, xv, xr, xg = (
        x + delta * (w[f"att.time_maa_{n}"] + shift) for n, shift in zip("wkvrg", shifts, strict=True)
    )
    r, k, v = (
        (w[f"att.{name}.weight"] @ part).reshape(heads, size)
        for name, part in (("receptance", xr), ("key", xk), ("value", xv))
    )
    gate = w["att.gate.weight"] @ xg
    decay = np.exp(-np.exp(w["att.time_decay"] + np.tanh(xw @ w["att.time_decay_w1"]) @ w["att.time_decay_w2"]))
    new = np.einsum("hv,hk->hvk", v, k)
    y = np.einsum("hvk,hk->hv", block.state, r) + np.einsum("hvk,hk->hv", new, r * w["att.time_faaaa"])
    block.state = block.state * decay.reshape(heads, 1, size) + new
    out: Array = w["att.output.weight"] @ (_group_norm(y, w) * gate * _sigmoid(gate))
    return out


def _channel_6(block: _Block, x: Array) -> Array:
    w, delta = block.weights, block.last_channel - x
    k = np.maximum(w["ffn.key.weight"] @ (x + delta * w["ffn.time_maa_k"]), 0) ** 2
    out: Array = _sigmoid(w["ffn.receptance.weight"] @ (x + delta * w["ffn.time_maa_r"]))
    return out * (w["ffn.value.weight"] @ k)


def _mix_7(block: _Block, x: Array, first: dict[str, Array]) -> Array:
    w, delta = block.weights, block.last - x
    heads, size, _ = block.state.shape
    xr, xw, xk, xv, xa, xg = (x + delta * w[f"att.x_{name}"] for name in "rwkvag")
    r, k, v = (w[f"att.{name}.weight"] @ part for name, part in (("receptance", xr), ("key", xk), ("value", xv)))
    decay = np.exp(-0.606531 * _sigmoid(w["att.w0"] + np.tanh(xw @ w["att.w1"]) @ w["att.w2"]))
    if "v" in first:
        v = v + (first["v"] - v) * _sigmoid(w["att.v0"] + xv @ w["att.v1"] @ w["att.v2"])
    first.setdefault("v", v)
    rate = _sigmoid(w["att.a0"] + xa @ w["att.a1"] @ w["att.a2"])
    gate = _sigmoid(xg @ w["att.g1"]) @ w["att.g2"]
    removed = (k * w["att.k_k"]).reshape(heads, size)
    removed = removed / np.maximum(np.linalg.norm(removed, axis=1, keepdims=True), 1e-12)
    k = k * (1 + (rate - 1) * w["att.k_a"])
    r, k, v, rate, decay = (one.reshape(heads, size) for one in (r, k, v, rate, decay))
    gone = np.einsum("hvk,hk->hv", block.state, removed)
    block.state = (
        block.state * decay[:, None, :] - np.einsum("hv,hk->hvk", gone, removed * rate) + np.einsum("hv,hk->hvk", v, k)
    )
    y = _group_norm(np.einsum("hvk,hk->hv", block.state, r), w)
    y = y + ((r * k * w["att.r_k"]).sum(1, keepdims=True) * v).reshape(-1)
    out: Array = w["att.output.weight"] @ (y * gate)
    return out


def _channel_7(block: _Block, x: Array) -> Array:
    w = block.weights
    k = np.maximum(w["ffn.key.weight"] @ (x + (block.last_channel - x) * w["ffn.x_k"]), 0) ** 2
    out: Array = w["ffn.value.weight"] @ k
    return out

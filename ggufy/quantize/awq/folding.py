"""Where scales of channels can be folded into a model so that it computes the same.

A matrix that reads x gives the same if its columns are multiplied by s and x is divided by s. x can be divided without
any work while the model runs where it leaves a norm's weight and bias, or the rows of a matrix through nothing but
products and sums. `RULES` says where that is so, from llama.cpp's graphs (src/models/*.cpp):

- a norm: its weight and bias, and every matrix that reads it, a router of experts too. Norms behind a matrix, and
  those of queries and keys, are in nobody's way. Gemma's weights have their 1 in the GGUF already;
- the values of attention: the rows of `attn_v`, and the columns of `attn_output`. Heads of queries that share a head
  of values share its scales;
- the inner channels of a gated network, act(gate) * up: the rows of `ffn_up`, each expert's its own;
- RWKV's two norms: the token shift mixes x with the x before it channel by channel, so all that reads the mixture
  reads x / s, the low-rank matrices inside tanh and sigmoid too, whose columns undo it;
- RWKV-6's gate multiplies what leaves the norm of heads, so that norm can be divided; RWKV-7 adds the bonus behind
  that norm, so it is the gate itself that is divided: the rows of `time_mix_g2`, behind its sigmoid;
- RWKV's channel mix is relu(k)², so the rows of its key are divided by the root of s.

Not possible: receptance, key and value of RWKV's time mix as writers (state, decay and the norm of heads stand
behind them), the gate of RWKV-6 (inside silu), the gate of a gated network (inside its activation), and the head where
it is the embedding as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufy.core.errors import UsageError
from ggufy.formats.gguf import GgufHead, TensorInfo, check_unquantized
from ggufy.quantize.factors import F32Array, Factors

F64Array = np.ndarray[Any, np.dtype[np.float64]]
ALL, LAST_HALF, VALUES = "all", "last half", "values"  # the rows of what is divided


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Tensors of one block, divided by blanks; those that a model has not are none."""

    divided: str
    readers: str
    rows: str = ALL
    root: int = 1  # divided by the so-manieth root of s
    by_head: bool = False  # the channels are those of heads of values


_NORMS = (
    Rule(divided="attn_norm.weight", readers="attn_q.weight attn_k.weight attn_v.weight attn_qkv.weight"),
    Rule(
        divided="ffn_norm.weight",
        readers="ffn_gate.weight ffn_up.weight ffn_gate_inp.weight ffn_gate_exps.weight ffn_up_exps.weight",
    ),
)
_SPLIT_VALUES = Rule(divided="attn_v.weight attn_v.bias", readers="attn_output.weight", by_head=True)
_FUSED_VALUES = Rule(divided="attn_qkv.weight attn_qkv.bias", readers="attn_output.weight", rows=VALUES, by_head=True)
_ATTENTION = (*_NORMS, _SPLIT_VALUES, _FUSED_VALUES)
_GATED = (
    Rule(divided="ffn_up.weight ffn_up.bias", readers="ffn_down.weight"),
    Rule(divided="ffn_up_exps.weight", readers="ffn_down_exps.weight"),
)
_RWKV = (
    Rule(
        divided="attn_norm_2.weight attn_norm_2.bias", readers="channel_mix_key.weight channel_mix_receptance.weight"
    ),
    Rule(divided="channel_mix_key.weight", readers="channel_mix_value.weight", root=2),
)
_MIXED = "time_mix_receptance.weight time_mix_key.weight time_mix_value.weight time_mix_w1.weight"
_LLAMA = (*_ATTENTION, *_GATED)
RULES: Mapping[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3"), _LLAMA),
    "phi3": (*_ATTENTION, Rule(divided="ffn_up.weight", readers="ffn_down.weight", rows=LAST_HALF)),
    "rwkv6": (
        Rule(
            divided="attn_norm.weight attn_norm.bias",
            readers=f"{_MIXED} time_mix_gate.weight time_mix_decay_w1.weight",
        ),
        Rule(divided="time_mix_ln.weight time_mix_ln.bias", readers="time_mix_output.weight"),
        *_RWKV,
    ),
    "rwkv7": (
        Rule(
            divided="attn_norm.weight attn_norm.bias",
            readers=f"{_MIXED} time_mix_a1.weight time_mix_v1.weight time_mix_g1.weight",
        ),
        Rule(divided="time_mix_g2.weight", readers="time_mix_output.weight"),
        *_RWKV,
    ),
}
# What may be in a block besides, and stays as it is.
_OTHERS = frozenset(
    "attn_q.bias attn_k.bias attn_output.bias ffn_gate.bias ffn_down.bias attn_q_norm.weight attn_k_norm.weight "
    "post_attention_norm.weight post_ffw_norm.weight time_mix_lerp_x.weight time_mix_lerp_fused.weight "
    "time_mix_w0.weight time_mix_w2.weight time_mix_decay.weight time_mix_decay_w2.weight time_mix_first.weight "
    "time_mix_a0.weight time_mix_a2.weight time_mix_v0.weight time_mix_v2.weight time_mix_k_k.weight "
    "time_mix_k_a.weight time_mix_r_k.weight time_mix_ln.weight time_mix_ln.bias channel_mix_lerp_k.weight "
    "channel_mix_lerp_r.weight rope_factors_long.weight rope_factors_short.weight".split()
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Matrices that read the same channels, and what these can be divided in."""

    name: str  # of what is divided first
    readers: tuple[TensorInfo, ...]
    divided: tuple[TensorInfo, ...]
    channels: int  # that have a scale each: those of all experts, or of heads of values
    rows: str
    root: int
    heads: tuple[int, int] | None = None  # (heads of values, heads of queries that read each of them)

    def spread(self, scales: F64Array) -> F64Array:
        """[channels] -> as the readers' columns have them, flat, matrix after matrix."""
        if self.heads is None:
            return scales
        count, readers = self.heads
        return np.repeat(scales.reshape(count, -1), readers, axis=0).reshape(-1)

    def gathered(self, values: F64Array) -> F64Array:
        """Values of the readers' columns -> the mean for each channel."""
        if self.heads is None:
            return values
        count, readers = self.heads
        mean: F64Array = values.reshape(count, readers, -1).mean(axis=1).reshape(-1)
        return mean


def groups(head: GgufHead, name: str) -> list[Group]:
    """All groups of a base GGUF with this head, called `name` in errors.

    Raises UsageError for an architecture without rules or with tensors that these do not know, SourceError for a model
    that is quantized already.
    """
    architecture = str(head.metadata.get("general.architecture", ""))
    rules = RULES.get(architecture)
    if rules is None:
        raise UsageError(
            "AWQ does not know where the scales of the architecture {name} could go: leave {AWQ} out, or choose a "
            "model of one of {known}.",
            name=architecture[:80],
            known=", ".join(RULES),
        )
    _check(head, rules, name)
    blocks = sorted({int(match[1]) for tensor in head.tensors if (match := re.match(r"blk\.(\d+)\.", tensor))})
    found = (_group(head, architecture, block, rule) for block in blocks for rule in rules)
    return [group for group in found if group is not None]


def _check(head: GgufHead, rules: Iterable[Rule], name: str) -> None:
    known = _OTHERS.union(*(f"{rule.divided} {rule.readers}".split() for rule in rules))
    for tensor in head.tensors.values():
        match = re.match(r"blk\.\d+\.(.+)", tensor.name)
        if match and match[1] not in known:
            raise UsageError(
                "{name} has the tensor {tensor}, and AWQ does not know what reads it: leave {AWQ} out.",
                name=name,
                tensor=tensor.name[:80],
            )
        check_unquantized(tensor, name)


def _group(head: GgufHead, architecture: str, block: int, rule: Rule) -> Group | None:
    """One rule in one block; None where its tensors are not there, or do not fit each other."""

    def present(names: str) -> tuple[TensorInfo, ...]:
        found = (head.tensors.get(f"blk.{block}.{name}") for name in names.split())
        return tuple(one for one in found if one is not None)

    divided, readers = present(rule.divided), present(rule.readers)
    if not divided or not readers:
        return None
    width = readers[0].shape[0]
    heads = _heads(head, architecture, block, width) if rule.by_head else None
    if rule.by_head and heads is None:
        return None
    matrices = readers[0].elements // (width * readers[0].shape[1]) if rule.readers.endswith("down_exps.weight") else 1
    channels = width * matrices // (heads[1] if heads else 1)
    group = Group(
        name=divided[0].name,
        readers=readers,
        divided=divided,
        channels=channels,
        rows=rule.rows,
        root=rule.root,
        heads=heads,
    )
    fits = all(reader.shape[0] == width for reader in readers)
    return group if fits and all(_first(group, one) is not None for one in divided) else None


def _heads(head: GgufHead, architecture: str, block: int, width: int) -> tuple[int, int] | None:
    """(heads of values, heads of queries for each) of a block; None if the metadata do not say it."""
    counts = []
    for key in ("head_count", "head_count_kv"):
        value = head.metadata.get(f"{architecture}.attention.{key}")
        value = value[block] if isinstance(value, list) and block < len(value) else value
        counts.append(value if isinstance(value, int) else 0)
    queries, values = counts[0], counts[1] or counts[0]
    if queries < 1 or values < 1 or queries % values or width % queries:
        return None
    return values, queries // values


def _first(group: Group, tensor: TensorInfo) -> int | None:
    """The first row (of a vector: value) that is divided; None if the tensor has not as many as there are scales."""
    count = tensor.elements if len(tensor.shape) == 1 else tensor.elements // tensor.shape[0]
    first = 0 if group.rows == ALL else count - group.channels
    fits = count == group.channels or (first > 0 and (group.rows == VALUES or first == group.channels))
    return first if fits else None


def fold(chosen: Iterable[tuple[Group, F64Array]]) -> dict[str, Factors]:
    """Groups and their scales, F64 [channels] -> what each tensor is multiplied by."""
    columns: dict[str, F32Array] = {}
    rows: dict[str, F32Array] = {}
    for group, scales in chosen:
        spread = group.spread(scales)
        for reader in group.readers:
            columns[reader.name] = np.float32(spread).reshape(-1, reader.shape[0])
            if len(reader.shape) > 2 and len(columns[reader.name]) == 1:  # all experts read the same
                columns[reader.name] = np.repeat(columns[reader.name], reader.shape[2], axis=0)
        for tensor in group.divided:
            first = _first(group, tensor)
            assert first is not None
            factors = np.ones(first + group.channels, dtype=np.float32)
            factors[first:] = 1 / scales ** (1 / group.root)
            if len(tensor.shape) == 1:
                columns[tensor.name] = factors[None]
            else:
                rows[tensor.name] = factors
    names = columns.keys() | rows.keys()
    return {name: Factors(columns=columns.get(name), rows=rows.get(name)) for name in sorted(names)}

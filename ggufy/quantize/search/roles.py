"""What a tensor does in its model, and how deep it lies: the groups whose sensitivity is known or can be measured.

A role is the name of a GGUF tensor without its block, so it needs no table: `time_mix_value`, `channel_mix_key`,
`attn_q`, `ffn_down`. Only some get another name: `embedding`, `head`, and those that an architecture's own table says,
the small low-rank matrices, which RWKV-6 and RWKV-7 call by the same letters though they do not do the same
(`time_mix_w1` mixes tokens in RWKV-6 and decays in RWKV-7). Depth is `first` or `last` for the outermost blocks,
`middle` for all between them.

A sensitivity c weighs a tensor's relative quantization error: the KL divergence that quantizing adds is taken to be
the sum over all tensors of c × number of weights × relative error (see `loss.py`). Only ratios matter to the solver.
An architecture's file has those of its roles, by role or `role@depth`; those of transformers (`_TRANSFORMER`) are of
all tensors of a role together, c × weights in nats.

A group is a set of tensors that share one sensitivity. There are as many groups as probes can be afforded: depths of
the least important roles are joined first, then their first blocks, then whole roles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ggufy.models import registry

MOST_GROUPS = 26  # eight matrices of RWKV-6 at three depths, embedding and head
OTHER = "other"  # the group of roles that share a probe

_EXACT = {"token_embd": "embedding", "output": "head"}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# Geometric means of probes of SmolLM2-135M (3 chunks each) and Gemma 3 270M (2 chunks): tied embedding 5.4 and 10.5,
# attn_v 4.9 and 6.4, attn_output 1.6 and 2.9, ffn_down 6.4 and 5.9, ffn_up 3.7 and 4.9, ffn_gate 2.3 and 1.6. attn_k
# and attn_q are of SmolLM2 alone, attn_qkv is q, k and v together, and what an untied embedding and its head share was
# not measured: halves.
_TRANSFORMER = {
    "embedding": 3.7, "tied_embedding": 7.5, "head": 3.7, "attn_v": 5.6, "attn_qkv": 7.1, "attn_output": 2.2,
    "attn_k": 0.96, "attn_q": 0.51, "ffn_down": 6.1, "ffn_up": 4.3, "ffn_gate": 1.9,
}  # fmt: skip
_EXPERTS = re.compile(r"(_(exps|shexp|chexps)|\.\d+)$")
# What a role does that has no row of its own, by llama.cpp's names: latent and gated attention, state spaces, fused
# experts; and then what it stands for in a hybrid that has RWKV's table (ARWKV and RWKV6Qwen2 have a Qwen's ffn).
_LIKE = {
    "attn_gate": "attn_q", "attn_q_a": "attn_q", "attn_q_b": "attn_q", "attn_kv_a_mqa": "attn_k", "attn_k_b": "attn_k",
    "attn_kv_b": "attn_v", "attn_v_b": "attn_v", "ssm_in": "attn_qkv", "ssm_out": "attn_output",
    "shortconv.in_proj": "attn_qkv", "shortconv.out_proj": "attn_output", "ffn_gate_up": "ffn_up",
    "per_layer_token_embd": "embedding",
}  # fmt: skip
_IN_RWKV = {
    "attn_q": "time_mix_receptance", "attn_k": "time_mix_key", "attn_v": "time_mix_value",
    "attn_qkv": "time_mix_value", "attn_output": "time_mix_output", "ffn_gate": "channel_mix_key",
    "ffn_up": "channel_mix_key", "ffn_down": "channel_mix_value",
}  # fmt: skip


class Depth(StrEnum):
    """Where a tensor lies."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"
    NONE = ""  # in no block


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a tensor does, and where."""

    name: str
    depth: Depth

    @property
    def key(self) -> str:
        """`role@depth`, as in the table of sensitivities."""
        return f"{self.name}@{self.depth}" if self.depth else self.name

    @property
    def low_rank(self) -> bool:
        """One of RWKV's small matrices, which llama-quantize leaves as they are."""
        return self.name.startswith("low_rank_")


def roles(names: Iterable[str]) -> dict[str, Role]:
    """The role of every tensor of one model, by GGUF name. All names are needed: they tell how many blocks there are,
    which version of RWKV it is, and whether the embedding is the head as well."""
    names = list(names)
    architecture = registry.of_tensors(names)
    named = architecture.roles if architecture else {}
    tied = "token_embd.weight" in names and "output.weight" not in names
    last = max((int(match[1]) for name in names if (match := _BLOCK.fullmatch(name))), default=0)
    found = {}
    for name in names:
        match = _BLOCK.fullmatch(name)
        stem = (match[2] if match else name).removesuffix(".weight")
        if match:
            role = named.get(match[2], stem)
        else:
            role = "tied_embedding" if tied and stem == "token_embd" else _EXACT.get(stem, stem)
        found[name] = Role(name=role, depth=_depth(int(match[1]), last) if match else Depth.NONE)
    return found


def _depth(block: int, last: int) -> Depth:
    if block == 0:
        return Depth.FIRST
    return Depth.LAST if block == last else Depth.MIDDLE


def _table(names: Iterable[str]) -> Mapping[str, float]:
    architecture = registry.of_tensors(names)
    return architecture.sensitivities if architecture else _TRANSFORMER


def sensitivity(role: Role, table: Mapping[str, float]) -> float:
    """c of a role, by the nearest key: role and depth, the role alone, and without one the table's geometric mean.

    The experts of a mixture count as the matrix that they stand for. A tied embedding counts as a head.
    """
    for name in _names(role):
        for key in (f"{name}@{role.depth}", name):
            if key in table:
                return table[key]
    return math.exp(math.fsum(map(math.log, table.values())) / len(table)) if table else 1.0


def _names(role: Role) -> list[str]:
    """What a role can be called in a table, the nearest first."""
    if role.name == "tied_embedding":
        return [role.name, "head"]
    plain = _EXPERTS.sub("", role.name)
    like = _LIKE.get(plain, plain)
    return [role.name, plain, like, _IN_RWKV.get(like, like)]


def prior(names: Iterable[str]) -> dict[str, float]:
    """The shipped figure of every tensor's role (see models/rwkv6.py and rwkv7.py for where they come from)."""
    found = roles(names)
    table = _table(found)
    return {name: sensitivity(role, table) for name, role in found.items()}


def transferred(weights: Mapping[str, int]) -> dict[str, float]:
    """As `prior`, for a model of another size than the one that was measured; `weights` is the number of weights of
    every tensor.

    c × weights of a role stays as it was measured: an embedding with more rows, or a matrix of a wider model, adds no
    more noise to a token than a small one does. In transformers that is so for all tensors of a role together: each of
    more blocks, or of more experts, writes a smaller part of what they write. A role without a key gets the geometric
    mean of this model's own c, so it follows the others to any size: probes of the demo found for a weight of a
    low-rank matrix what they found for one of the large matrices.
    """
    found = roles(weights)
    table = _scaled(found, weights)
    return {name: sensitivity(role, table) for name, role in found.items()}


def _scaled(found: Mapping[str, Role], weights: Mapping[str, int]) -> dict[str, float]:
    """The table of a model, per weight of this very model; of `weights` only the tensors in it count."""
    table, architecture = _table(found), registry.of_tensors(found)
    reference = architecture.reference if architecture else {}
    if architecture and not reference:
        return dict(table)
    measured = {key.split("@")[0] for key in table}
    sizes: dict[str, int] = {}
    for name, count in weights.items():
        role = next((known for known in _names(found[name]) if known in measured), "")
        sizes[role] = count + (0 if architecture else sizes.get(role, 0))
    plain = ((key, key.split("@")[0]) for key in table)
    return {key: table[key] * reference.get(role, 1) / sizes[role] for key, role in plain if role in sizes}


def groups(
    weights: Mapping[str, int], *, all_names: Iterable[str] = (), most: int = MOST_GROUPS
) -> dict[str, list[str]]:
    """At most `most` groups of the tensors that can be quantized: group -> tensor names.

    `weights` is the number of weights of each of these tensors, `all_names` the names of all tensors of the model if
    there are more. A group is called `role@depth`, `role@rest` (all but the first block), `role`, or `other`.
    """
    if most < 1:
        raise ValueError("there must be at least one group")
    found = roles({*weights, *all_names})
    table = _table(found) if registry.of_tensors(found) else _scaled(found, weights)
    importance: dict[str, float] = {}
    made: dict[str, list[str]] = {}
    for name in sorted(weights, key=lambda n: (_block(n), n)):
        role = found[name]
        made.setdefault(role.key, []).append(name)
        importance[role.name] = importance.get(role.name, 0.0) + sensitivity(role, table) * weights[name]
    ascending = sorted(importance, key=lambda role: (importance[role], role))
    joins = [(f"{role}@rest", (f"{role}@middle", f"{role}@last")) for role in ascending]
    joins += [(role, (f"{role}@first", f"{role}@rest")) for role in ascending]
    joins += [(OTHER, (OTHER, role)) for role in ascending]
    for joined, parts in joins:
        present = [part for part in parts if part in made]
        if len(made) > most and present:
            made[joined] = [name for part in present for name in made.pop(part)]
    return made


def _block(name: str) -> int:
    match = _BLOCK.fullmatch(name)
    return int(match[1]) if match else -1

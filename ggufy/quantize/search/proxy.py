"""Cheap figures of a weight matrix that hint which kind of type suits it, from the weights alone: two rules.

`PAPER`, the coarse-to-fine proxy of RWKVQuant (ICML 2025). With the weights sorted, let G be the gaps between
neighbours that are not 0, scaled to sum to 1, and n their number:

    coarse  P_c = ln n + sum G ln G                        how far the gaps are from all being equal; 0 if they are
    fine    P_f = sum over k = 2, 3, 4 of |mean (nG - 1)^k| / (k (k - 1))     the first terms of its Taylor series

Both below their thresholds: evenly spread weights, which suit scalar types (K). Otherwise codebooks (IQ) are said to
suit better. Both figures depend on how many weights there are and on their format (in F16 the tails have wide gaps and
the middle has many equal weights), so they are taken from samples of one size, and thresholds must not be carried
over: the paper's own are for its models, chosen so that 9 of 10 matrices are scalar. `scalar_by_paper` chooses them
likewise, both at the same percentile of the model at hand. P_f is mostly the largest gap, and of weights with long
tails it differs tenfold from one draw to the next.

`KURTOSIS`, of blocks: mean over 256 neighbours of E[w^4] / E[w^2]^2; 1.8 for evenly spread weights, 3 for normal ones.
Measured errors at equal bits cross at 2.2: above, IQ3_S beats Q3_K (at 3 by 10 %), below it loses (at 1.8 by 13 %); an
imatrix that is not flat moves the crossing to 1.8. So this is the rule that prunes unless the other one is asked for:
it follows from which type loses less, which a fixed share of 9 in 10 does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

PAPER, KURTOSIS = "paper", "kurtosis"
RULES = (KURTOSIS, PAPER)
SCALAR_SHARE = 0.9  # of the matrices, by the paper's rule
BLOCK = 256  # weights of a super-block of the K and IQ types
SAMPLE = 1 << 20  # weights; 20 to 100 ms a tensor
FINE_TERMS = 4  # K of the paper
HEAVY, LIGHT = 2.4, 1.9  # kurtosis above which K, below which IQ types are not worth trying
FLAT = 0.5  # standard deviation of ln(imatrix) below which it counts as flat

# Scalar and codebook types of about the same size, of which one may be spared. IQ4_XS has no such twin.
_TWINS = (("Q3_K", "IQ3_S"), ("Q2_K", "IQ2_S"))

Array = np.ndarray[Any, np.dtype[Any]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """The figures of one tensor."""

    coarse: float  # P_c, nats
    fine: float  # P_f
    kurtosis: float  # mean over blocks of 256


def measure(weights: Array, *, sample: int = SAMPLE) -> Proxy:
    """The figures of a tensor of any shape and float type, on evenly spread blocks of about `sample` weights."""
    values = sampled(weights, sample)
    gaps = _gaps(values)
    return Proxy(coarse=coarse(gaps), fine=fine(gaps), kurtosis=block_kurtosis(values))


def sampled(weights: Array, count: int = SAMPLE) -> Floats:
    """About `count` weights as F64: whole blocks of 256 neighbours, evenly spread; all if there are no more."""
    flat = weights.reshape(-1)
    blocks = flat.size // BLOCK
    if flat.size <= max(count, BLOCK):
        return flat.astype(np.float64)
    chosen = np.arange(max(1, count // BLOCK)) * blocks // max(1, count // BLOCK)
    return flat[: blocks * BLOCK].reshape(blocks, BLOCK)[chosen].reshape(-1).astype(np.float64)


def _gaps(values: Floats) -> Floats:
    """Gaps between sorted weights, without those of 0, scaled to sum to 1. Empty if all weights are the same."""
    gaps = np.diff(np.sort(values, axis=None))
    gaps = gaps[gaps > 0]
    return gaps / gaps.sum() if gaps.size else gaps


def coarse(gaps: Floats) -> float:
    """P_c of gaps that sum to 1; 0 for none."""
    return max(0.0, float(np.log(gaps.size) + np.sum(gaps * np.log(gaps)))) if gaps.size else 0.0


def fine(gaps: Floats, *, terms: int = FINE_TERMS) -> float:
    """P_f of gaps that sum to 1; 0 for none."""
    if not gaps.size:
        return 0.0
    excess = gaps * gaps.size - 1
    power, total = excess, 0.0
    for k in range(2, terms + 1):
        power = power * excess
        total += abs(float(power.mean())) / (k * (k - 1))
    return total


def block_kurtosis(values: Floats) -> float:
    """Mean of E[w^4] / E[w^2]^2 over blocks of 256; blocks of zeros and an unfinished last one do not count.

    A tensor of fewer weights is one block. 0 if there is nothing to count.
    """
    size = min(BLOCK, values.size)
    if not size:
        return 0.0
    blocks = values[: values.size // size * size].reshape(-1, size)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    blocks = blocks[largest[:, 0] > 0] / largest[largest[:, 0] > 0]  # so that powers neither vanish nor overflow
    if not blocks.size:
        return 0.0
    squares = blocks * blocks
    return float(np.mean(np.mean(squares * squares, axis=1) / np.mean(squares, axis=1) ** 2))


def is_flat(importance: Array | None) -> bool:
    """Whether an imatrix weighs a tensor's columns about equally; None is no imatrix, and flat."""
    if importance is None:
        return True
    positive = importance[importance > 0]
    return bool(positive.size < 2 or np.log(positive.astype(np.float64)).std() < FLAT)


def candidates(types: Iterable[str], proxy: Proxy, *, flat: bool) -> list[str]:
    """The types worth trying by block kurtosis: without Q3_K and Q2_K where their codebook twins must win, without
    IQ3_S and IQ2_S where they must lose (`flat`: so does the imatrix not speak for them). All types where it is not
    that clear."""
    types = list(types)
    for scalar, codebook in _TWINS:
        if scalar in types and codebook in types:
            if proxy.kurtosis > HEAVY:
                types.remove(scalar)
            elif proxy.kurtosis < LIGHT and flat:
                types.remove(codebook)
    return types


def scalar_by_paper(proxies: Mapping[str, Proxy], *, share: float = SCALAR_SHARE) -> set[str]:
    """The tensors that the paper's rule gives scalar types: P_c and P_f are both below thresholds, which are the same
    percentile of the model's own figures, the one at which about `share` of the tensors pass."""
    ranks = dict.fromkeys(proxies, 0)
    for figure in ("coarse", "fine"):
        for rank, name in enumerate(sorted(proxies, key=lambda name: (getattr(proxies[name], figure), name))):
            ranks[name] = max(ranks[name], rank)
    return set(sorted(proxies, key=lambda name: (ranks[name], name))[: math.ceil(share * len(proxies))])


def candidates_by_paper(types: Iterable[str], *, scalar: bool) -> list[str]:
    """The types that the paper's rule leaves of each pair of twins: the scalar one or the codebook."""
    types = list(types)
    ruled_out = {pair[scalar] for pair in _TWINS if set(pair) <= set(types)}
    return [kind for kind in types if kind not in ruled_out]


def is_codebook(kind: str) -> bool:
    """Whether a type looks its weights up in a table (IQ), instead of spacing them evenly (K and the older ones)."""
    return kind.upper().startswith("IQ")

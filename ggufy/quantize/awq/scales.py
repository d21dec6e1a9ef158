"""Finds activation-aware scales (AWQ, arXiv 2306.00978) for the very types and kernels that quantize.

For a group of matrices that read the same channels (folding.py), channel j is scaled by s_j = a_j^α / w_j^β: a_j is
the root of its mean squared input as the imatrix has it, w_j that of its mean squared weight. (β evens out what stands
in one block, and gains more than α where kernels follow an imatrix already.) What counts is, as in search/loss.py,

    sum over the group's matrices of  weights of W · Σ v_j (W - Q(W s) / s)²_rj / Σ v_j W²_rj

with v the imatrix and Q the type that the recipe gives the matrix, made with the importances v / s² that belong to the
scaled weights. The `POWERS` with the least error are kept, and none unless it is less than that without scales. Rows
are sampled evenly. (Dividing a whole row changes nothing of its error, as types quantize row by row.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufy.core.errors import Cancelled
from ggufy.formats.gguf import UNQUANTIZED, TensorInfo, read_head
from ggufy.llama.ggml import Ggml
from ggufy.quantize.awq.folding import Group, fold, groups
from ggufy.quantize.factors import Factors
from ggufy.quantize.imatrix import Imatrix
from ggufy.quantize.recipe import Recipe
from ggufy.quantize.search.analysis import kernels_of, rows_of
from ggufy.quantize.search.loss import Kernels, relative_error
from ggufy.quantize.task import QuantizeTask
from ggufy.system.control import Control

POWERS = tuple((alpha, beta) for beta in (0.0, 0.75) for alpha in (0.0, 0.1, 0.2, 0.3, 0.5) if alpha or beta)
SAMPLE = 1 << 16  # weights of a matrix that are tried
_LEAST = 1e-8  # of the mean: channels that are never used, or have no weights
_MOST = 2.0**8  # scales are from 1 / _MOST to _MOST: no F16 scale of a block leaves its range

F64Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class FoundScales:
    """What was tried on one group."""

    group: Group
    powers: tuple[float, float]  # α and β
    scales: F64Array  # [channels]
    error: float  # weighted, of all its matrices
    plain_error: float  # the same without scales

    @property
    def kept(self) -> bool:
        return self.error < self.plain_error


def find_scales(order: QuantizeTask, *, ggml: Ggml, control: Control) -> list[FoundScales]:
    """The best scales for a quant, which has an imatrix, of every group that its recipe quantizes something of.

    Raises UsageError and SourceError as `groups` does, SourceError for weights that are not finite, Cancelled.
    """
    head, recipe = read_head(order.base), order.recipe
    assert order.imatrix is not None
    kernels = kernels_of(ggml)
    tables = ggml.prepare({kind for kind in recipe.values() if kind in ggml.types})
    tables.join()
    tried = [(group, _readers(group, recipe, order.imatrix)) for group in groups(head, order.base.name)]
    tried = [(group, readers) for group, readers in tried if readers]

    def one(pair: tuple[Group, Mapping[str, F64Array]]) -> FoundScales:
        group, readers = pair
        matrices = []
        for name, v in readers.items():
            rows = rows_of(order.base, head.tensors[name], head, ggml, count=SAMPLE)
            rows = rows * np.float32(order.scales.get(name, 1.0))
            matrices.append((rows, recipe[name], v, head.tensors[name]))
        return _best(group, matrices, kernels, control)

    found = []
    with ThreadPoolExecutor(max(1, control.limit()), thread_name_prefix="scales") as pool:
        for number, result in enumerate(pool.map(one, tried), start=1):
            found.append(result)
            control.report(number / len(tried))
    return found


def scaling_of(found: list[FoundScales]) -> dict[str, Factors]:
    """What every tensor is multiplied by; empty if no group gains."""
    return fold((one.group, one.scales) for one in found if one.kept)


_Matrix = tuple[np.ndarray[Any, np.dtype[np.float32]], str, F64Array, TensorInfo]


def _readers(group: Group, recipe: Recipe, imatrix: Imatrix) -> dict[str, F64Array]:
    """The importances, [matrices, columns], of those matrices of a group that are quantized and of which the imatrix
    has data."""
    found = {}
    for reader in group.readers:
        weights = imatrix.weights.get(reader.name)
        matrices = math.prod(reader.shape[2:])
        fits = weights is not None and weights.size == matrices * reader.shape[0] and bool(weights.any())
        if recipe.get(reader.name, reader.type) not in UNQUANTIZED and weights is not None and fits:
            found[reader.name] = weights.reshape(matrices, reader.shape[0]).astype(np.float64)
    return found


def _level(group: Group, squares: list[F64Array]) -> F64Array:
    """[channels]: the root of the means over a group's matrices, in parts of the geometric mean. Each of `squares` is
    [matrices, columns], and counts in parts of its own mean."""
    own = group.channels > group.readers[0].shape[0]  # each expert's
    parts = [(one.reshape(-1) if own else one.mean(axis=0)) / one.mean() for one in squares]
    means = group.gathered(np.mean(parts, axis=0))
    logarithms = np.log(np.maximum(means, means.mean() * _LEAST)) / 2
    level: F64Array = np.exp(logarithms - logarithms.mean())
    return level


def _best(group: Group, matrices: list[_Matrix], kernels: Kernels, control: Control) -> FoundScales:
    inputs = _level(group, [v for _, _, v, _ in matrices])
    weights = _level(group, [np.square(rows.astype(np.float64)).mean(axis=1) for rows, _, _, _ in matrices])
    plain = least = _error(group, np.ones(group.channels), matrices, kernels)
    powers, scales = (0.0, 0.0), np.ones(group.channels)
    for alpha, beta in POWERS:
        if control.stopped():
            raise Cancelled("the job was stopped.")
        tried = np.clip(inputs**alpha / weights**beta, 1 / _MOST, _MOST)
        if (error := _error(group, tried, matrices, kernels)) < least:
            powers, scales, least = (alpha, beta), tried, error
    return FoundScales(group=group, powers=powers, scales=scales, error=least, plain_error=plain)


def _error(group: Group, scales: F64Array, matrices: list[_Matrix], kernels: Kernels) -> float:
    spread = group.spread(scales)
    total: float = 0.0
    for rows, kind, v, tensor in matrices:
        columns = np.broadcast_to(spread.reshape(-1, tensor.shape[0]), v.shape)
        scaled = rows * columns.astype(np.float32)[:, None]
        importance = (v / columns**2).astype(np.float32)
        # Not capped: scales change the median, and so would change what is compared.
        total += tensor.elements * relative_error(scaled, kind, importance, kernels=kernels, most=math.inf)
    return total

"""Sums over what matrices read: squares for an imatrix, products for covariances.

Both give the same bits for any number of threads: additions have an order of their own, and each tile of a covariance
is one product of NumPy's, which computes with one thread (OPENBLAS_NUM_THREADS=1, as `covariances.py` starts it).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ggufy.formats.covariance import block_name
from ggufy.llama.ggml import F32Array
from ggufy.llama.inference import I32Array, MatrixInput

_TILE = 512  # columns: a tile of the sums stays in a core's cache
SUMS, COUNTS = ".in_sum2", ".counts"


class SquareSums:
    """What llama-imatrix collects with --process-output, added up in its order: the same to the last bit.

    `tensors` are those of its file: of a weight W, W.in_sum2 F32 [matrices, columns] and W.counts F32 [matrices, 1];
    there is one count for all matrices but experts.
    """

    def __init__(self, tensors: Mapping[str, F32Array] | None = None):
        self._sums: dict[str, F32Array] = dict(tensors or {})

    @property
    def tensors(self) -> dict[str, F32Array]:
        return {name: self._sums[name] for name in sorted(self._sums, key=_place)}

    def add(self, found: MatrixInput) -> None:
        """Adds what one matrix reads, if llama-imatrix looks at it."""
        if found.experts is None and not (found.name.startswith("blk.") or found.name == "output.weight"):
            return
        count = found.matrices[0] * found.matrices[1]
        counts = 1 if found.experts is None else count
        columns = found.values.shape[-1]
        shape = (counts, count * columns // counts)
        sums = self._sums.setdefault(found.name + SUMS, np.zeros(shape, dtype=np.float32)).reshape(count, columns)
        seen = self._sums.setdefault(found.name + COUNTS, np.zeros((counts, 1), dtype=np.float32))
        if found.experts is None:
            _add_all(sums, found)
            seen += np.float32(found.values[..., 0].size // count)
        else:
            _add_routed(sums, seen, found.values[0], found.experts)


def _place(name: str) -> tuple[str, bool]:
    """In llama-imatrix's file: by the weights' names, sums before counts."""
    weights, _, kind = name.rpartition(".")
    return weights, f".{kind}" == COUNTS


def _add_squares(sums: F32Array, rows: F32Array) -> None:
    """Adds squares of the rows one after the other, as NumPy does over the slower dimension."""
    if len(rows):
        squares = rows * rows
        squares[0] += sums
        np.add.reduce(squares, axis=0, out=sums)


def _add_all(sums: F32Array, found: MatrixInput) -> None:
    """Inputs of more dimensions than the weights have are taken as more rows."""
    outer, inner = found.matrices
    for i, j in itertools.product(*map(range, found.values.shape[:2])):
        _add_squares(sums[(i % outer) * inner + j % inner], found.values[i, j])


def _add_routed(sums: F32Array, seen: F32Array, values: F32Array, experts: I32Array) -> None:
    """Values [tokens, 1 or used, columns], experts [tokens, used]: first choices first, in the order of tokens."""
    each = values.shape[1]
    for expert in np.unique(experts):
        choices, tokens = np.nonzero(expert == experts.T)
        _add_squares(sums[expert], values[tokens, choices % each])
        seen[expert] += np.float32(len(tokens))


class ProductSums:
    """Covariances of some inputs, in memory as a covariance file has them (see ggufy.formats.covariance).

    What a chunk weighs is known when all of it is read: its own products are kept until then.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], pool: ThreadPoolExecutor):
        """`shapes` as of `covariance_shapes`; tiles are computed by the threads of `pool`."""
        self._pool = pool
        self.tensors = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        self._chunk = {name: np.zeros((width, width), dtype=np.float32) for name, (_, width) in shapes.items()}

    def load(self, tensors: Mapping[str, F32Array]) -> None:
        """Goes on with sums of before."""
        for name, array in self.tensors.items():
            array[...] = tensors[name].reshape(array.shape)

    def multiply(self, name: str, rows: F32Array) -> None:
        """Takes the products of a chunk's rows [tokens, columns]."""
        tasks, start, block = [], 0, 0
        while (products := self._chunk.get(block_name(name, block))) is not None:
            width = len(products)
            part = rows[:, start : start + width]
            tasks += [(products, part, i, j) for i, j in _tiles(width)]
            start, block = start + width, block + 1
        list(self._pool.map(_multiply_tile, tasks))

    def add(self, weight: float, *, held_out: bool) -> None:
        """Adds the chunk's products, times its weight, to one of both parts."""
        tasks = [
            (both, self._chunk[name], np.float32(weight), held_out, i, j)
            for name, both in self.tensors.items()
            for i, j in _tiles(both.shape[1])
        ]
        list(self._pool.map(_add_tile, tasks))


def _tiles(width: int) -> list[tuple[int, int]]:
    """Where those on and above the diagonal begin."""
    edges = range(0, width, _TILE)
    return [(i, j) for i in edges for j in edges if i <= j]


def _multiply_tile(task: tuple[F32Array, F32Array, int, int]) -> None:
    products, rows, i, j = task
    np.matmul(rows[:, i : i + _TILE].T, rows[:, j : j + _TILE], out=products[i : i + _TILE, j : j + _TILE])


def _add_tile(task: tuple[F32Array, F32Array, np.float32, bool, int, int]) -> None:
    """Adds a tile of xᵀx above the diagonal, or its mirror image below it, one row further down."""
    both, products, weight, held_out, i, j = task
    product = products[i : i + _TILE, j : j + _TILE] * weight
    if i == j:
        product = np.triu(product)
    if held_out:
        i, j, both, product = j, i, both[1:], product.T
    both[i : i + len(product), j : j + product.shape[1]] += product

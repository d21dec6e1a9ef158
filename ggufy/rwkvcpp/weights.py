"""The tensors of a file of rwkv.cpp in memory, and products with its matrices.

All values are read into one piece of aligned memory, as they are in the file: it takes as much memory as the file has
bytes, and the file is not needed any more. (Mapped, its records would begin at odd addresses, which compilers of
kernels may take for impossible.) Matrices are multiplied by ggml's kernels where a llama.cpp is given; else in NumPy,
some rows at a time, so that no whole matrix is ever there a second time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from ggufy.core.errors import SourceError, ToolError
from ggufy.formats.rwkvcpp import TYPES, RwkvcppHead
from ggufy.llama import matmul
from ggufy.llama.ggml import ByteArray, F32Array
from ggufy.llama.matmul import Matrix

logger = logging.getLogger(__name__)
Products = Callable[[Sequence[F32Array]], list[F32Array]]  # F32 [T, columns] for each matrix -> F32 [T, rows] for each
_VALUES_AT_ONCE = 1 << 22  # weights that NumPy has as F32 at a time


class Weights:
    """The tensors of one file, by name. One thread may multiply at a time; `close` gives the threads back."""

    def __init__(self, path: Path, head: RwkvcppHead, *, threads: int, ggml_folder: Path | None):
        """Reads everything. Raises SourceError if the file is shorter than its head said."""
        self._path, self._head = path, head
        starts, size = {}, 0
        for record in head.records.values():
            starts[record.name] = size
            size = matmul.aligned(size + record.size)
        self._memory = matmul.empty_bytes(size)
        self._bytes: dict[str, ByteArray] = {}
        with path.open("rb") as file:
            for record in head.records.values():
                raw = self._memory[starts[record.name] : starts[record.name] + record.size]
                file.seek(record.offset)
                if file.readinto(raw.data) != record.size:
                    raise SourceError("{path} has changed while it was read: try again.", path=path)
                self._bytes[record.name] = raw
        self._workers = _workers(self._memory, threads, ggml_folder)

    def vector(self, name: str, *shape: int) -> F32Array:
        """A tensor of FP32 or FP16 values in this shape, whatever dimensions of 1 it has; a copy."""
        record = self._head.records.get(name)
        if record is None or record.elements != math.prod(shape) or record.type not in ("FP32", "FP16"):
            raise self._unfit(name, shape)
        values = self._bytes[name].view("<f4" if record.type == "FP32" else "<f2")
        return values.astype(np.float32).reshape(shape)

    def has(self, name: str) -> bool:
        return name in self._head.records

    def shape(self, name: str) -> tuple[int, ...]:
        """Outermost size first; SourceError if there is no such tensor."""
        if name not in self._head.records:
            raise self._unfit(name, ())
        return self._head.records[name].shape

    def matrix(self, name: str, rows: int, columns: int) -> Matrix:
        """A matrix of any type."""
        (only,) = self.matrices(name, 1, rows, columns)
        return only

    def matrices(self, name: str, count: int, rows: int, columns: int) -> list[Matrix]:
        """The matrices of a tensor [count, rows, columns]."""
        record = self._head.records.get(name)
        wanted = (rows, columns) if count == 1 else (count, rows, columns)
        if record is None or record.shape != wanted:
            raise self._unfit(name, wanted)
        parts = self._bytes[name].reshape(count, -1)
        return [Matrix(part, rows, columns, TYPES[record.type].ggml) for part in parts]

    def products(self, *matrices: Matrix) -> Products:
        """What multiplies these matrices, each with an input of its own."""
        if self._workers is None:
            return partial(_multiply, matrices)
        return matmul.Products(self._workers, matrices)

    def close(self) -> None:
        """No product may be called afterwards."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _unfit(self, name: str, shape: tuple[int, ...]) -> SourceError:
        record = self._head.records.get(name)
        if record is None:
            return SourceError("{path} has no tensor {name}: convert the model again.", path=self._path, name=name)
        return SourceError(
            "{path}: tensor {name} is {type} {shape}, expected {wanted}: convert the model again.",
            path=self._path,
            name=name,
            type=record.type,
            shape=list(record.shape),
            wanted=list(shape),
        )


def rows_of(matrix: Matrix, first: int, last: int) -> F32Array:
    """Rows of a matrix as F32 [last - first, columns]; quantized ones by gguf-py."""
    raw = matrix.raw.reshape(matrix.rows, -1)[first:last]
    if matrix.type in ("F32", "F16"):
        values: F32Array = raw.view("<f4" if matrix.type == "F32" else "<f2").astype(np.float32, copy=False)
        return values
    made: F32Array = dequantize(raw, GGMLQuantizationType[matrix.type])
    return made


def _workers(memory: ByteArray, threads: int, ggml_folder: Path | None) -> matmul.Workers | None:
    if ggml_folder is None:
        return None
    try:
        return matmul.Workers(matmul.load(ggml_folder), memory, threads)
    except ToolError as error:
        logger.warning("products are made in NumPy, which is slow: %s", error)
        return None


def _multiply(matrices: Sequence[Matrix], inputs: Sequence[F32Array]) -> list[F32Array]:
    """The products in NumPy; beside FP16 weights inputs are rounded to FP16, as ggml does."""
    outputs = []
    for matrix, given in zip(matrices, inputs, strict=True):
        x = given.astype(np.float16).astype(np.float32) if matrix.type == "F16" else given
        step = max(1, _VALUES_AT_ONCE // matrix.columns)
        parts = [x @ rows_of(matrix, first, first + step).T for first in range(0, matrix.rows, step)]
        outputs.append(np.concatenate(parts, axis=1))
    return outputs

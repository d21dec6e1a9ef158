"""Products by ggml's kernels in this process: right, by any number of threads, and refused where ggml would abort."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize, quantize

from ggufy.core.errors import ToolError
from ggufy.llama import matmul
from ggufy.llama.ggml import F32Array
from ggufy.llama.matmul import Matrix, Products, Workers

pytestmark = pytest.mark.tools
ROWS, COLUMNS = 37, 96
TYPES = ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def values(*shape: int, seed: int = 0) -> F32Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(params=[1, 3, 50])
def workers(request: pytest.FixtureRequest, llama_bin: Path) -> Iterator[Workers]:
    """Threads, fewer and more than there are rows, over memory for two matrices."""
    made = Workers(matmul.load(llama_bin), matmul.empty_bytes(1 << 16), request.param)
    yield made
    made.close()


def put(workers: Workers, offset: int, weights: F32Array, kind: str) -> tuple[Matrix, F32Array]:
    """The matrix in the threads' memory, and the values that it stands for."""
    number = GGMLQuantizationType[kind]
    raw = quantize(weights, number).view(np.uint8)
    place = workers.memory[offset : offset + raw.size]
    place[:] = raw.reshape(-1)
    return Matrix(place, *weights.shape, kind), dequantize(raw, number).reshape(weights.shape)


@pytest.mark.parametrize("kind", TYPES)
def test_products_of_two_matrices(workers: Workers, kind: str) -> None:
    one, first = put(workers, 0, values(ROWS, COLUMNS), kind)
    other, second = put(workers, 1 << 14, values(8, 64, seed=1), "F32")
    products = Products(workers, [one, other])
    for count in (1, 5, 1, 64, 5):  # numbers of inputs come and go
        x, y = values(count, COLUMNS, seed=count), values(count, 64, seed=2)
        left, right = products([x, y])
        assert left.shape == (count, ROWS) and right.shape == (count, 8)
        scale = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(first, axis=1)
        assert (np.abs(left - x @ first.T) / scale).max() < (1e-6 if kind == "F32" else 1e-2)
        assert np.abs(right - y @ second.T).max() < 1e-5


def test_what_ggml_would_not_take(workers: Workers) -> None:
    def refused(matrix: Matrix, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Products(workers, [matrix])

    memory = workers.memory
    refused(Matrix(memory[:100], 5, 5, "Q9_9"), "no 5 rows of 5 Q9_9")
    refused(Matrix(memory[:90], 5, 31, "Q4_0"), "no 5 rows of 31 Q4_0")
    refused(Matrix(memory[:0], 0, 32, "F32"), "no 0 rows")
    refused(Matrix(memory[:99], 5, 5, "F32"), "needs 100 bytes at a multiple of 4")
    refused(Matrix(memory[2:102], 5, 5, "F32"), "needs 100 bytes at a multiple of 4")
    refused(Matrix(memory[:200:2], 5, 5, "F32"), "needs 100 bytes at a multiple of 4")
    refused(Matrix(matmul.empty_bytes(100), 5, 5, "F32"), "not in the memory|at a multiple")
    matrix, _ = put(workers, 0, values(4, 32), "F32")
    with pytest.raises(ValueError, match="do not fit a matrix of 32 columns"):
        Products(workers, [matrix])([values(1, 31)])


def test_a_folder_without_libraries(tmp_path: Path, llama_bin: Path) -> None:
    with pytest.raises(ToolError, match="has no libggml-base.so"):
        matmul.load(tmp_path)
    base = next(llama_bin.glob("libggml-base.so.*.*"))
    (tmp_path / "libggml-base.so").symlink_to(base)
    with pytest.raises(ToolError, match="cannot be used"):
        matmul.load(tmp_path)

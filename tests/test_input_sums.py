"""Sums over inputs: tiles of products, squares of experts, which inputs are shared, how many passes it takes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ggufy.formats.covariance import _unpacked, covariance_shapes
from ggufy.llama import input_sums
from ggufy.llama.covariance_child import grouped, shared_inputs
from ggufy.llama.ggml import F32Array
from ggufy.llama.inference import I32Array, MatrixInput, cross_entropy
from ggufy.llama.input_sums import ProductSums, SquareSums

pytestmark = pytest.mark.fast


def rows(count: int, columns: int, seed: int = 0) -> F32Array:
    return np.random.default_rng(seed).standard_normal((count, columns), dtype=np.float32)


def found(
    name: str, values: F32Array, *, reads: int = 1, matrices: tuple[int, int] = (1, 1), experts: I32Array | None = None
) -> MatrixInput:
    shape = (1,) * (4 - values.ndim) + values.shape
    return MatrixInput(name, matrices, reads, values.reshape(shape), experts)


@pytest.mark.parametrize("threads", [1, 3])
def test_products_in_tiles(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts of a wide input, in two blocks whose last tiles are narrow."""
    monkeypatch.setattr(input_sums, "_TILE", 128)
    chunks = [rows(40, 700, seed) for seed in range(4)]
    with ThreadPoolExecutor(threads) as pool:
        sums = ProductSums(covariance_shapes({"w": 700}, 512), pool)
        for number, chunk in enumerate(chunks):
            sums.multiply("w", chunk)
            sums.add(0.5**number, held_out=number == 2)
    for block, columns in enumerate((slice(0, 512), slice(512, 700))):
        calibration, held_out = _unpacked(sums.tensors[f"w.covariance.{block}"])
        for ours, parts in ((calibration, (0, 1, 3)), (held_out, (2,))):
            exact = sum(0.5**i * chunks[i][:, columns].T.astype(np.float64) @ chunks[i][:, columns] for i in parts)
            assert np.abs(ours - exact).max() < 1e-4


def test_sums_go_on_from_those_of_before() -> None:
    with ThreadPoolExecutor(1) as pool:
        whole, first, second = (ProductSums({"w.covariance.0": (65, 64)}, pool) for _ in range(3))
        for part in (whole, first):
            part.multiply("w", rows(30, 64))
            part.add(1.0, held_out=False)
        second.load({name: array.reshape(-1) for name, array in first.tensors.items()})
        for part in (whole, second):
            part.multiply("w", rows(30, 64, 1))
            part.add(0.7, held_out=True)
    assert np.array_equal(whole.tensors["w.covariance.0"], second.tensors["w.covariance.0"])


def test_the_cross_entropy_of_a_chunk() -> None:
    logits, tokens = 30 * rows(50, 700), np.arange(50, dtype=np.int32) * 13
    exact = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(tokens).long())
    assert cross_entropy(logits, tokens) == pytest.approx(float(exact), rel=1e-6)


def test_squares_of_experts_that_were_chosen() -> None:
    values, chosen = rows(6, 8).reshape(6, 1, 8), np.array([[0, 2], [0, 1], [2, 0], [2, 1], [0, 2], [1, 0]], np.int32)
    sums = SquareSums()
    sums.add(found("blk.0.ffn_up_exps.weight", values, matrices=(1, 4), experts=chosen))
    squares, counts = (sums.tensors[f"blk.0.ffn_up_exps.weight{end}"] for end in (".in_sum2", ".counts"))
    assert counts.tolist() == [[5], [3], [4], [0]]
    for expert in range(4):
        exact = (values[(chosen == expert).any(1), 0].astype(np.float64) ** 2).sum(0)
        assert np.allclose(squares[expert], exact, rtol=1e-5)


def test_squares_of_matrices_in_one_tensor() -> None:
    """Of five matrices, each has inputs of its own, and one count stands for all."""
    values = rows(5 * 7, 8).reshape(5, 7, 8)
    sums = SquareSums()
    sums.add(found("blk.0.time_mix_w2.weight", values, matrices=(1, 5)))
    sums.add(found("rope.weight", values))
    assert list(sums.tensors) == ["blk.0.time_mix_w2.weight.in_sum2", "blk.0.time_mix_w2.weight.counts"]
    assert sums.tensors["blk.0.time_mix_w2.weight.counts"].tolist() == [[7]]
    exact = (values.astype(np.float64) ** 2).sum(1).reshape(1, -1)
    assert np.allclose(sums.tensors["blk.0.time_mix_w2.weight.in_sum2"], exact, rtol=1e-5)


def test_which_inputs_are_shared() -> None:
    chunk, few = np.zeros((512, 32), np.float32), np.zeros((20, 32), np.float32)
    seen = [
        found("q", chunk),
        found("k", chunk),
        found("o", chunk, reads=2),
        found("small", chunk, reads=2),
        found("twice", chunk, reads=3),
        found("twice", chunk, reads=4),
        found("three", chunk, reads=5, matrices=(1, 3)),
        found("part", few, reads=6),
        found("experts", chunk, reads=7, experts=np.zeros((512, 2), np.int32)),
    ]
    wanted = ("o", "k", "q", "twice", "three", "part", "experts", "elsewhere")
    assert shared_inputs(seen, wanted) == {"q": "q", "k": "q", "o": "o"}


def test_passes_keep_to_the_memory() -> None:
    def passes(memory: int, widest: int = 4096) -> list[str]:
        groups = grouped({name: 512 for name in "abcde"}, widest, memory)
        return ["".join(name[0] for name in group) for group in groups]

    size = 4 * 512 * 513
    assert passes(2 * size) == ["ab", "cd", "e"]
    assert passes(5 * size) == ["abcde"]
    assert passes(1) == ["a", "b", "c", "d", "e"]  # one at least
    assert passes(size, widest=256) == ["aa", "bb", "cc", "dd", "ee"]  # blocks of one input stay together
    assert grouped({}, 4096, 1) == []

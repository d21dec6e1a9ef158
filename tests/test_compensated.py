"""Compensated codes against a plain GPTQ in F64: one column after the other, with the inverse, without batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufy.llama.ggml import ByteArray, F32Array, Ggml
from ggufy.quantize.codes import FORMATS, LATTICES
from ggufy.quantize.compensated import SWEEPS, Factor, compensate, decoded, factors, feedback, output_error
from tests import covariances

F64Array = np.ndarray[Any, np.dtype[np.float64]]
ROWS, COLUMNS, DAMPING = 48, 512, 0.02


@pytest.fixture(scope="module")
def ggml(llama_bin: Path) -> Ggml:
    return Ggml(llama_bin)


class Case:
    """A matrix, its covariance, and ggml's kernel with the importance of the columns."""

    def __init__(
        self, ggml: Ggml, kind: str, *, rows: int = ROWS, columns: int = COLUMNS, widths: tuple[int, ...] = ()
    ):
        random = np.random.default_rng(1)
        self.ggml, self.kind = ggml, kind
        self.values = (random.standard_normal((rows, columns)) * 0.05).astype(np.float32)
        sums = covariances.sums(columns, widths=widths)
        self.sums, self.held_out = sums.calibration, sums.held_out
        self.calls: list[tuple[F32Array, ByteArray]] = []
        self.importance = np.concatenate([np.diag(block) / 2400 for block in self.sums]).astype(np.float32)

    def kernel(self, values: F32Array, columns: slice) -> ByteArray | None:
        made = self.ggml.quantize(values, self.kind, np.ascontiguousarray(self.importance[columns]))
        if made is not None:
            self.calls.append((values, made))
        return made

    def compensated(
        self, factor: list[Factor] | None = None, values: F32Array | None = None, *, sweeps: int = SWEEPS
    ) -> ByteArray:
        factor = factor or factors(self.sums, DAMPING, lambda: None)
        values = self.values if values is None else values
        made = compensate(values, self.kind, self.kernel, factor, lambda: None, sweeps=sweeps)
        assert made is not None
        return made

    def error(self, raw: ByteArray) -> float:
        return output_error(self.values - self.weights(raw), self.held_out)

    def weights(self, raw: ByteArray) -> F32Array:
        return decoded(raw, self.kind).reshape(-1, self.values.shape[1])

    def plain(self) -> ByteArray:
        made = self.kernel(self.values, slice(None))
        assert made is not None
        return made


def textbook(case: Case) -> tuple[F32Array, float]:
    """What GPTQ makes of the matrix with the scales that ggml's kernel gave each block of `case` when its turn came,
    and the share of the weights that the kernel was then given as they ought to be.

    (The kernels search for their scales: they find others when the last bit of a weight is another one.)
    """
    form = FORMATS[case.kind]
    hessian = case.sums[0].astype(np.float64)
    hessian += DAMPING * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left = case.values.astype(np.float64)
    made, alike = np.empty_like(left), []
    for column in range(COLUMNS):
        if column % form.block == 0:
            given, raw = case.calls[column // form.block]
            alike.append(np.isclose(given, left[:, column : column + form.block], rtol=1e-4, atol=1e-5).mean())
            choices = every_choice(case.kind, raw)
        offered = choices[:, column % form.block]
        nearest = np.abs(offered - left[:, column]).argmin(axis=0)
        made[:, column] = offered[nearest, np.arange(ROWS)]
        error = (left[:, column] - made[:, column]) / upper[column, column]
        left[:, column:] -= np.outer(error, upper[column, column:])
    return made.astype(np.float32), float(np.mean(alike))


def every_choice(kind: str, raw: ByteArray) -> F32Array:
    """What each code would stand for at each place of these blocks, [codes, block, rows]."""
    form = FORMATS[kind]
    planes = np.ascontiguousarray(raw.reshape(-1, form.size).T)
    choices = []
    for code in range(form.lowest, len(form.levels)):
        form.pack(np.full((form.block, planes.shape[1]), code, dtype=np.uint8), planes)
        choices.append(decoded(np.ascontiguousarray(planes.T).reshape(-1), kind).reshape(-1, form.block).T)
    return np.stack(choices)


@pytest.mark.parametrize("kind", FORMATS)
def test_codes_are_those_of_a_plain_gptq(kind: str, ggml: Ggml) -> None:
    case = Case(ggml, kind)
    found = case.weights(case.compensated(sweeps=0))
    expected, alike = textbook(case)
    assert alike >= 0.999
    assert np.mean(found != expected) <= 0.001  # where two codes were as near, and what follows from it in that row
    error = output_error(case.values - found, case.held_out)
    assert error == pytest.approx(output_error(case.values - expected, case.held_out), rel=1e-4)


def damped(case: Case) -> F64Array:
    hessian = case.sums[0].astype(np.float64)
    return hessian + DAMPING * np.mean(np.diag(hessian)) * np.eye(len(hessian))


def swept(case: Case, raw: ByteArray) -> F32Array:
    """A plain sweep in F64: in each block first the scale, or scale and offset, then one code after the other, each by
    the error of the whole row."""
    form, hessian = FORMATS[case.kind], damped(case)
    left = case.values.astype(np.float64) - case.weights(raw)
    for start in range(0, COLUMNS, form.block):
        block, at = slice(start, start + form.block), start // form.block * form.size
        planes = np.ascontiguousarray(raw.reshape(ROWS, -1)[:, at : at + form.size].T)
        for half in form.halves:
            steps = planes[half : half + 2].T.copy().view("<f2")[:, 0]
            planes[half : half + 2] = np.float16(0).tobytes()[0]
            without = form.decode(planes).T.astype(np.float64)
            planes[half : half + 2] = np.array([1], "<f2").view(np.uint8)[:, None]
            unit = form.decode(planes).T.astype(np.float64) - without
            bend = np.einsum("ri,ij,rj->r", unit, hessian[block, block], unit)
            slope = ((left @ hessian)[:, block] * unit).sum(axis=1)
            new = (steps + np.divide(slope, bend, out=np.zeros_like(slope), where=bend > 0)).astype("<f2")
            change = new.astype(np.float64) - steps
            new = np.where(change * (2 * slope - change * bend) > 0, new, steps)
            planes[half : half + 2] = new.view(np.uint8).reshape(-1, 2).T
            left[:, block] = case.values[:, block] - form.decode(planes).T
        choices = every_choice(case.kind, planes.T.copy())
        for column in range(start, start + form.block):
            gradient = left @ hessian[:, column] - left[:, column] * hessian[column, column]
            offered = case.values[:, column] - choices[:, column - start]
            costs = offered**2 * hessian[column, column] + 2 * offered * gradient
            left[:, column] = offered[costs.argmin(axis=0), np.arange(ROWS)]
    return (case.values - left).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sweep_is_coordinate_descent(kind: str, ggml: Ggml) -> None:
    case = Case(ggml, kind)
    before, found = (case.compensated(sweeps=count) for count in (0, 1))
    expected = swept(case, before)
    assert np.mean(np.abs(case.weights(found) - expected) > 1e-6) <= 0.002
    assert np.any(case.weights(before) != case.weights(found))


@pytest.mark.parametrize("kind", FORMATS)
def test_sweeps_never_make_the_error_larger(kind: str, ggml: Ggml) -> None:
    """Of each row, on the inputs that the codes were chosen with; also of rows of zeros, and of one that is large."""
    case, hessian = Case(ggml, kind), damped(Case(ggml, kind))
    case.values[3], case.values[4, :300] = 0, 0
    case.values[5] *= 1000
    left = [case.values.astype(np.float64) - case.weights(case.compensated(sweeps=count)) for count in range(4)]
    errors = [np.einsum("ri,ij,rj->r", one, hessian, one) for one in left]
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-5)).all()
    assert errors[-1].sum() < errors[0].sum()


def nearest_points(case: Case) -> F32Array:
    """What a GPTQ of points makes of a matrix of one block: each time the inverse covariance of what is left says what
    the point's weights ought to be and what their errors cost, and all points of the grid are tried."""
    form, (_, raw) = LATTICES[case.kind], case.calls[0]
    scales = np.repeat(form.scales(np.ascontiguousarray(raw.reshape(-1, form.size).T)), form.span, axis=0).T
    hessian = case.sums[0].astype(np.float64)
    hessian += DAMPING * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    left, made, minus = case.values.astype(np.float64), np.empty_like(case.values), np.empty(case.values.shape, bool)
    for first in range(0, 256, form.width):
        inverse = np.linalg.inv(hessian[first:, first:])
        eight, part, rest = slice(first, first + 8), slice(first, first + form.width), slice(first + form.width, None)
        if form.even_signs and first % 8 == 0:
            minus[:, eight] = left[:, eight] < 0
            least = (left[:, eight] ** 2 * np.diag(np.linalg.inv(inverse[:8, :8]))).argmin(axis=1)
            odd = minus[:, eight].sum(axis=1) % 2 == 1
            minus[odd, first + least[odd]] ^= True
        elif not form.even_signs:
            minus[:, part] = left[:, part] < 0
        within = np.linalg.inv(inverse[: form.width, : form.width])
        offered = form.grid[None] * scales[:, None, part] * np.where(minus[:, None, part], -1, 1)
        costs = ((left[:, None, part] - offered) ** 2 * np.diag(within)).sum(axis=2)
        made[:, part] = offered[np.arange(len(made)), costs.argmin(axis=1)]
        error = left[:, part] - made[:, part]
        left[:, rest] -= error @ within @ inverse[: form.width, form.width :]
    return made


@pytest.mark.parametrize("kind", LATTICES)
def test_points_are_the_nearest_under_the_covariance(kind: str, ggml: Ggml) -> None:
    case = Case(ggml, kind, columns=256)
    found = case.weights(case.compensated())
    expected = nearest_points(case)
    assert np.mean(found != expected) <= 0.005  # where two points cost the same, and what follows from it in that row
    error = output_error(case.values - found, case.held_out)
    assert error == pytest.approx(output_error(case.values - expected, case.held_out), rel=1e-3)


@pytest.mark.parametrize("kind", [*FORMATS, *LATTICES, "IQ1_S", "IQ1_M"])
def test_the_outputs_err_less(kind: str, ggml: Ggml) -> None:
    case = Case(ggml, kind)
    assert case.error(case.compensated()) <= 0.7 * case.error(case.plain())


def test_the_output_error_is_that_of_the_outputs() -> None:
    x, error = covariances.inputs(96), np.random.default_rng(2).standard_normal((5, 96)).astype(np.float32)
    whole = np.square(error.astype(np.float64) @ x.T).sum()
    assert output_error(error, [x.T @ x]) == pytest.approx(whole, rel=1e-5)
    parts = [x[:, :64].T @ x[:, :64], x[:, 64:].T @ x[:, 64:]]
    apart = np.square(error[:, :64] @ x[:, :64].T).sum() + np.square(error[:, 64:] @ x[:, 64:].T).sum()
    assert output_error(error, parts) == pytest.approx(float(apart), rel=1e-5)


@pytest.mark.fast
def test_a_factor_is_that_of_the_damped_covariance() -> None:
    sums = covariances.sums(1300).calibration[0]
    sums[7] = sums[:, 7] = 0  # an input that never came
    found, variances = (part.astype(np.float64) for part in feedback(sums, 0.01, lambda: None))
    assert np.array_equal(np.diag(found), np.ones(1300)) and not np.triu(found, 1).any()
    damped = sums + 0.01 * np.trace(sums) / 1300 * np.eye(1300)
    upper = found.T
    made = upper * variances @ upper.T * (np.trace(sums) / 1300)
    np.testing.assert_allclose(made, damped, atol=1e-5 * np.abs(damped).max())
    found, variances = feedback(np.zeros((64, 64), dtype=np.float32), 0.01, lambda: None)
    assert np.array_equal(found, np.eye(64)) and np.allclose(variances, 1.01)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_0", "IQ4_XS", "IQ2_S"])
def test_blocks_of_a_covariance_are_matrices_of_their_own(kind: str, ggml: Ggml) -> None:
    case = Case(ggml, kind, columns=768, widths=(512, 256))
    whole = case.compensated().reshape(ROWS, -1)
    size = whole.shape[1] // 3
    for first, last, block in ((0, 512, 0), (512, 768, 1)):
        part = Case(ggml, kind, columns=last - first)
        part.sums, part.importance = (case.sums[block],), case.importance[first:last]
        alone = part.compensated(values=np.ascontiguousarray(case.values[:, first:last])).reshape(ROWS, -1)
        np.testing.assert_array_equal(whole[:, first // 256 * size : last // 256 * size], alone)


def test_widths_that_are_no_multiple_of_256(ggml: Ggml) -> None:
    case = Case(ggml, "Q4_0", columns=352)
    assert case.error(case.compensated()) <= 0.5 * case.error(case.plain())


def test_what_a_type_cannot_hold_is_told(ggml: Ggml) -> None:
    case = Case(ggml, "IQ3_S")
    case.values *= np.float32(1e9)
    assert (
        compensate(case.values, "IQ3_S", case.kernel, factors(case.sums, DAMPING, lambda: None), lambda: None) is None
    )

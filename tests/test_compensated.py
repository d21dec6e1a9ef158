"""Compensated codes against a plain GPTQ in F64: one column after the other, with the inverse, without batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufy.llama.ggml import ByteArray, F32Array, Ggml
from ggufy.quantize.codes import FORMATS, LATTICES
from ggufy.quantize.codes.code_format import CodeFormat
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


def textbook(case: Case, sweeps: int = 0) -> tuple[F32Array, float]:
    """What GPTQ makes of the matrix with the scales that ggml's kernel gave each block of `case` when its turn came,
    with sweeps over each block before its errors are carried on, and the share of the weights that the kernel was then
    given as they ought to be.

    (The kernels search for their scales: they find others when the last bit of a weight is another one.)
    """
    form, hessian = FORMATS[case.kind], damped(case)
    left, made, alike = case.values.astype(np.float64), np.empty_like(case.values), []
    for start in range(0, COLUMNS, form.block):
        block, rest = slice(start, start + form.block), slice(start + form.block, None)
        given, raw = case.calls[start // form.block]
        alike.append(np.isclose(given, left[:, block], rtol=1e-4, atol=1e-5).mean())
        inverse = np.linalg.inv(hessian[start:, start:])
        within = np.linalg.inv(inverse[: form.block, : form.block])
        planes = np.ascontiguousarray(raw.reshape(-1, form.size).T)
        codes = chosen_in_turn(every_choice(case.kind, raw), left[:, block], inverse)
        form.pack((codes + form.lowest).astype(np.uint8), planes)
        for _ in range(sweeps):
            sweep(form, planes, left[:, block], within)
        made[:, block] = form.decode(planes).T
        left[:, rest] -= (left[:, block] - made[:, block]) @ within @ inverse[: form.block, form.block :]
    return made, float(np.mean(alike))


def damped(case: Case) -> F64Array:
    hessian = case.sums[0].astype(np.float64)
    return hessian + DAMPING * np.mean(np.diag(hessian)) * np.eye(len(hessian))


def chosen_in_turn(choices: F32Array, weights: F64Array, inverse: F64Array) -> F64Array:
    """Numbers of choices [codes, columns, rows] for weights [rows, columns], one column after the other."""
    upper, left, codes = np.linalg.cholesky(inverse).T, weights.copy(), np.empty(weights.T.shape)
    for column in range(weights.shape[1]):
        codes[column] = np.abs(choices[:, column] - left[:, column]).argmin(axis=0)
        made = choices[codes[column].astype(int), column, np.arange(len(weights))]
        error = (left[:, column] - made) / upper[column, column]
        left[:, column:] -= np.outer(error, upper[column, column : weights.shape[1]])
    return codes


def sweep(form: CodeFormat, planes: ByteArray, weights: F64Array, hessian: F64Array) -> None:
    """First the scale of each row's block, or scale and offset, then one code after the other, each by the error of
    the whole block."""
    for half in form.halves:
        old = planes[half : half + 2].T.copy().view("<f2")[:, 0].astype(np.float64)
        values = []
        for factor in (0, 1):
            planes[half : half + 2] = np.array([factor], "<f2").view(np.uint8)[:, None]
            values.append(form.decode(planes).T.astype(np.float64))
        unit, error = values[1] - values[0], weights - values[0]
        bend = ((unit @ hessian) * unit).sum(axis=1)
        slope = ((error @ hessian) * unit).sum(axis=1)
        best = np.divide(slope, bend, out=old.copy(), where=bend > 0)
        new = best.astype("<f2").astype(np.float64)
        new = np.where(np.abs(new - best) < np.abs(old - best), new, old).astype("<f2")
        planes[half : half + 2] = new.view(np.uint8).reshape(-1, 2).T
    choices = every_choice(form.name, planes.T.copy())
    left, codes = weights - form.decode(planes).T, np.empty(weights.T.shape)
    for column in range(form.block):
        others = left @ hessian[:, column] - left[:, column] * hessian[column, column]
        offered = weights[:, column] - choices[:, column]
        codes[column] = (offered**2 * hessian[column, column] + 2 * offered * others).argmin(axis=0)
        left[:, column] = offered[codes[column].astype(int), np.arange(len(weights))]
    form.pack((codes + form.lowest).astype(np.uint8), planes)


def every_choice(kind: str, raw: ByteArray) -> F32Array:
    """What each code would stand for at each place of these blocks, [codes, block, rows]."""
    form = FORMATS[kind]
    planes = np.ascontiguousarray(raw.reshape(-1, form.size).T)
    choices = []
    for code in range(form.lowest, len(form.levels)):
        form.pack(np.full((form.block, planes.shape[1]), code, dtype=np.uint8), planes)
        choices.append(decoded(np.ascontiguousarray(planes.T).reshape(-1), kind).reshape(-1, form.block).T)
    return np.stack(choices)


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("kind", FORMATS)
def test_codes_are_those_of_a_plain_gptq(kind: str, sweeps: int, ggml: Ggml) -> None:
    case = Case(ggml, kind)
    found = case.weights(case.compensated(sweeps=sweeps))
    expected, alike = textbook(case, sweeps)
    assert alike >= 0.999 - 0.006 * sweeps  # each sweep starts from where the last one came out, rounding differs
    assert np.mean(found != expected) <= 0.001 + 0.004 * sweeps  # two codes were as near, and what follows from it
    error = output_error(case.values - found, case.held_out)
    assert error == pytest.approx(output_error(case.values - expected, case.held_out), rel=1e-4 * 10**sweeps)


@pytest.mark.parametrize("kind", FORMATS)
def test_sweeps_never_make_the_error_larger(kind: str, ggml: Ggml) -> None:
    """Of any row of one block, on the inputs that the codes were chosen with; also of zeros, and of large numbers."""
    case = Case(ggml, kind, columns=FORMATS[kind].block)
    hessian = damped(case)
    case.values[3], case.values[4, :20] = 0, 0
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

"""What types lose with compensated codes: against sums in double precision, kept apart from what plain codes lose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggufy.formats.gguf import read_head
from ggufy.llama.ggml import F32Array, Ggml
from ggufy.quantize.compensated import compensate, decoded, factors
from ggufy.quantize.search.analysis import analyse, kernels_of, rows_of
from ggufy.quantize.search.compensated_loss import CompensatedLoss
from ggufy.quantize.search.loss import MOST_IMPORTANCE, LossTable
from tests import covariances, small

COLUMNS, KINDS = 512, ("Q4_K", "Q3_K", "IQ3_S", "Q8_0")
SHAPES = {"blk.0.ffn_up.weight": (32, COLUMNS), "blk.0.ffn_down.weight": (64, 768)}


@pytest.fixture(scope="module")
def ggml(llama_bin: Path) -> Ggml:
    found = Ggml(llama_bin)
    found.prepare(set(KINDS)).join()
    return found


@pytest.fixture(scope="module")
def rows() -> F32Array:
    return (np.random.default_rng(1).standard_normal((40, COLUMNS)) * 0.05).astype(np.float32)


def loss_of(rows: F32Array, known: covariances.Sums, ggml: Ggml) -> CompensatedLoss:
    sums = covariances.InMemory({"w": known})
    return CompensatedLoss("w", rows, None, sums, ggml=ggml, digest="d", check=lambda: None)


def relative(rows: F32Array, made: F32Array, h: F32Array) -> float:
    error, weights, h = (one.astype(np.float64) for one in (rows - made, rows, h))
    return float(np.trace(error @ h @ error.T) / np.trace(weights @ h @ weights.T))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_lesser_of_two_output_errors(kind: str, rows: F32Array, ggml: Ggml) -> None:
    known = covariances.sums(COLUMNS)
    quantize = lambda values, columns: ggml.quantize(values, kind, None)  # noqa: E731
    plain = ggml.quantize(rows, kind, None)
    better = compensate(rows, kind, quantize, factors(known.calibration, 0.05, lambda: None), lambda: None)
    assert plain is not None and better is not None
    errors = [relative(rows, decoded(made, kind).reshape(rows.shape), known.held_out[0]) for made in (plain, better)]
    assert errors[1] < 0.8 * errors[0]
    assert loss_of(rows, known, ggml).error(kind) == pytest.approx(errors[1], rel=1e-2)
    misled = replace(known, held_out=(np.diag(np.diag(covariances.sums(COLUMNS, seed=3).held_out[0])),))
    assert loss_of(rows, misled, ggml).error(kind) == pytest.approx(
        relative(rows, decoded(plain, kind).reshape(rows.shape), misled.held_out[0]), rel=1e-2
    )


def test_no_column_counts_for_more_than_others_by_far(rows: F32Array, ggml: Ggml) -> None:
    """As with an imatrix: a column of massive inputs counts as MOST_IMPORTANCE medians do."""
    h = covariances.sums(COLUMNS).held_out[0].copy()
    massive = np.ones(COLUMNS, dtype=np.float32)
    massive[7] = 1e3
    most = MOST_IMPORTANCE * np.median(np.diag(h))
    known = covariances.Sums((massive[:, None] * h * massive,), (massive[:, None] * h * massive,), 600)
    capped = massive.copy()
    capped[7] = np.sqrt(most / h[7, 7])
    expected = covariances.Sums(known.calibration, (capped[:, None] * h * capped,), 600)
    found, by_hand = (loss_of(rows, one, ggml).error("Q4_K") for one in (known, expected))
    assert found == pytest.approx(by_hand, rel=2e-2)


def test_what_was_measured_is_kept_apart_from_plain_codes(rows: F32Array, ggml: Ggml, tmp_path: Path) -> None:
    known, table = covariances.sums(COLUMNS), LossTable(tmp_path / "losses.jsonl", kernels_of(ggml))
    plain = table.measure(rows, ["Q4_K"])
    by = loss_of(rows, known, ggml)
    assert table.measure(rows, ["Q4_K"], by=by) == {"Q4_K": by.error("Q4_K")} != plain
    again = LossTable(table.path, kernels_of(ggml))
    by.error = None  # type: ignore[assignment,method-assign] - nobody asks
    assert again.measure(rows, ["Q4_K"], by=by)["Q4_K"] != again.measure(rows, ["Q4_K"])["Q4_K"] == plain["Q4_K"]
    assert again.measured == 0


def test_an_analysis_goes_by_compensated_codes_where_there_is_a_covariance(ggml: Ggml, tmp_path: Path) -> None:
    base = small.matrices(tmp_path / "base.gguf", SHAPES, scale=0.1)
    name, other = "blk.0.ffn_down.weight", "blk.0.ffn_up.weight"
    head, sums = read_head(base), covariances.InMemory({name: covariances.sums(768)})

    def losses(known: covariances.InMemory | None) -> dict[str, dict[str, float]]:
        table = tmp_path / "losses.jsonl"
        return analyse(
            base, head, SHAPES, imatrix=None, scales={}, ggml=ggml, table=table, covariances=known, threads=2
        ).losses

    plain, compensated = losses(None), losses(sums)
    assert plain[other] == compensated[other] and plain[name].keys() == compensated[name].keys()
    assert all(compensated[name][kind] < 0.9 * plain[name][kind] for kind in ("Q3_K", "Q4_K", "Q6_K", "Q8_0"))
    assert losses(sums) == compensated
    [matrix] = rows_of(base, head.tensors[name], head, ggml)
    assert matrix.shape[1] == 768

"""The proxies against their formulas written out, the figures of known distributions, and matrices without spread."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ggufy.quantize.search.proxy import (
    Proxy,
    candidates,
    candidates_by_paper,
    is_codebook,
    is_flat,
    measure,
    sampled,
    scalar_by_paper,
)

RANDOM = np.random.default_rng(0)


def written_out(weights: list[float]) -> tuple[float, float]:
    """P_c and P_f as in the paper, one gap after the other."""
    ordered = sorted(weights)
    gaps = [b - a for a, b in zip(ordered, ordered[1:], strict=False) if b != a]
    n, total = len(gaps), sum(gaps)
    shares = [gap / total for gap in gaps]
    coarse = sum(-1 / n * math.log(1 / n) for _ in shares) - sum(-share * math.log(share) for share in shares)
    fine = 0.0
    for k in (2, 3, 4):
        moment = sum((share - 1 / n) ** k for share in shares) / n
        fine += n**k / (k * (k - 1)) * abs(moment)
    return coarse, fine


def bf16(weights: np.ndarray) -> np.ndarray:
    """Rounded to BF16, to nearest even."""
    bits = weights.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(
    "weights",
    [
        RANDOM.normal(0, 0.02, 3000),
        RANDOM.uniform(-1, 1, 3000),
        RANDOM.laplace(0, 1, 500).astype(np.float16),
        RANDOM.integers(-8, 8, 1000).astype(np.float32),
        np.array([1.0, 2.0, 4.0]),
    ],
)
def test_the_figures_are_those_of_the_formula(weights: np.ndarray) -> None:
    made = measure(weights)
    coarse, fine = written_out(weights.astype(np.float64).tolist())
    assert made.coarse == pytest.approx(coarse, rel=1e-9, abs=1e-12)
    assert made.fine == pytest.approx(fine, rel=1e-9, abs=1e-12)


def test_known_distributions() -> None:
    """Figures of normal and uniform weights with a standard deviation of 0.02, zero gaps left out."""
    count = 1 << 16
    uniform = measure(RANDOM.uniform(-1, 1, count) * 0.02 * 3**0.5)
    assert uniform.coarse == pytest.approx(0.42, abs=0.02)
    assert uniform.fine == pytest.approx(1.6, rel=0.2)
    assert uniform.kurtosis == pytest.approx(1.8, abs=0.02)
    normal = RANDOM.normal(0, 0.02, count)
    assert measure(normal).coarse == pytest.approx(2.2, abs=0.5)
    assert 1e6 < measure(normal).fine < 1e10
    assert measure(normal).kurtosis == pytest.approx(3.0, abs=0.1)
    laplace = measure(RANDOM.laplace(0, 0.02, count))
    assert laplace.coarse > measure(normal).coarse and laplace.kurtosis == pytest.approx(6, abs=0.4)


def test_the_format_of_the_weights_changes_the_figures() -> None:
    count = 1 << 22
    weights = RANDOM.uniform(-1, 1, count) * 0.02 * 3**0.5
    halves, brains = (measure(made, sample=count) for made in (weights.astype(np.float16), bf16(weights)))
    assert halves.coarse == pytest.approx(0.90, abs=0.1)
    assert halves.fine == pytest.approx(7, rel=0.25)
    assert brains.coarse == pytest.approx(1.32, abs=0.05)
    assert brains.fine == pytest.approx(26, rel=0.15)
    normal = RANDOM.normal(0, 0.02, count)
    assert measure(normal.astype(np.float16), sample=count).coarse == pytest.approx(1.62, abs=0.25)
    assert measure(bf16(normal), sample=count).coarse == pytest.approx(1.62, abs=0.25)


@pytest.mark.parametrize("weights", [np.zeros((4, 256)), np.full(7, 0.3), np.array([5.0]), np.zeros(0)])
def test_weights_that_are_all_the_same_have_no_gaps(weights: np.ndarray) -> None:
    made = measure(weights)
    assert made.coarse == made.fine == 0
    assert made.kurtosis == (1 if weights.size and weights.flat[0] else 0)


def test_even_gaps_give_nothing() -> None:
    made = measure(np.array([1.0, 2.0, 2.0, 3.0, 4.0]))
    assert made.coarse == pytest.approx(0, abs=1e-12) and made.fine == pytest.approx(0, abs=1e-12)
    assert measure(np.array([-1.0, 1.0])) == Proxy(coarse=0.0, fine=0.0, kurtosis=1.0)


def test_neither_scale_nor_place_matters() -> None:
    weights = RANDOM.normal(0, 1, 4096)
    one, scaled = measure(weights), measure(weights * 2.0**-90)
    assert scaled.coarse == pytest.approx(one.coarse) and scaled.kurtosis == pytest.approx(one.kurtosis)
    assert measure(weights + 8).coarse == pytest.approx(one.coarse, rel=1e-6)


def test_kurtosis_goes_block_by_block() -> None:
    blocks = RANDOM.normal(0, 1, (10, 256)) * 10.0 ** np.arange(10)[:, None]
    expected = np.mean([(row**4).mean() / (row**2).mean() ** 2 for row in blocks])
    assert measure(blocks).kurtosis == pytest.approx(expected)
    with_zeros = np.concatenate([blocks, np.zeros((3, 256))])
    assert measure(with_zeros).kurtosis == pytest.approx(expected)


def test_large_tensors_are_sampled_evenly() -> None:
    weights = np.repeat(np.arange(1000, dtype=np.float32), 256).reshape(500, 512)
    taken = sampled(weights, 256 * 100)
    assert taken.size == 256 * 100 and taken.dtype == np.float64
    assert np.array_equal(taken[::256], np.arange(0, 1000, 10))
    assert np.array_equal(sampled(weights, 1 << 30), weights.reshape(-1))
    normal = RANDOM.normal(0, 1, (2048, 1024)).astype(np.float16)
    assert measure(normal).kurtosis == pytest.approx(measure(normal, sample=1 << 30).kurtosis, rel=0.01)


def test_types_that_cannot_win_are_spared() -> None:
    def of(kurtosis: float) -> Proxy:
        return Proxy(coarse=1, fine=1, kurtosis=kurtosis)

    types = ["IQ2_S", "Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K"]
    assert candidates(types, of(3.0), flat=False) == ["IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "Q4_K"]
    assert candidates(types, of(1.8), flat=True) == ["Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K"]
    assert candidates(types, of(1.8), flat=False) == types
    assert candidates(types, of(2.2), flat=True) == types
    assert candidates(["Q3_K", "Q4_K"], of(9), flat=True) == ["Q3_K", "Q4_K"]


def test_the_paper_gives_codebooks_to_where_either_figure_is_among_the_highest() -> None:
    spread = {
        f"{number}": Proxy(coarse=1 + number / 100, fine=10.0 - number / 100, kurtosis=3) for number in range(18)
    }
    uneven = {"coarse": Proxy(coarse=5, fine=1, kurtosis=1), "fine": Proxy(coarse=0, fine=99, kurtosis=1)}
    assert scalar_by_paper(spread | uneven) == set(spread)
    thresholds = [max(getattr(one, figure) for one in spread.values()) for figure in ("coarse", "fine")]
    for one in uneven.values():  # as the paper says it: scalar if both are below
        assert one.coarse > thresholds[0] or one.fine > thresholds[1]
    assert len(scalar_by_paper(spread | uneven, share=0.5)) == 10
    assert scalar_by_paper({}) == set()


def test_the_paper_leaves_one_of_two_twins() -> None:
    types = ["IQ2_S", "Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K"]
    assert candidates_by_paper(types, scalar=True) == ["Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K"]
    assert candidates_by_paper(types, scalar=False) == ["IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "Q4_K"]
    assert candidates_by_paper(["Q3_K", "Q4_K"], scalar=False) == ["Q3_K", "Q4_K"]


def test_flat_imatrices() -> None:
    assert is_flat(None) and is_flat(np.ones(64, dtype=np.float32)) and is_flat(np.zeros(64))
    assert not is_flat(RANDOM.lognormal(0, 1, 2048))


def test_codebooks() -> None:
    assert [kind for kind in ("Q4_0", "IQ3_S", "q6_K", "iq4_xs", "F16") if is_codebook(kind)] == ["IQ3_S", "iq4_xs"]

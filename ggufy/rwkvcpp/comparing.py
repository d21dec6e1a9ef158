"""Two models' predictions over the same text, compared as llama-perplexity --kl-divergence does, but from the logits
as they are: llama-perplexity keeps the base's with 16 bits.

With p the base's and q the quant's probabilities of the next token, and t the token that came: loss -ln q_t, KLD
Σ p (ln p - ln q), Δp = q_t - p_t. Errors are standard errors of the mean (tools/perplexity/perplexity.cpp).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ggufy.core.metrics import Quality
from ggufy.llama.ggml import F32Array

F64Array = NDArray[np.float64]


def log_probabilities(logits: F32Array) -> F64Array:
    """ln of the softmax of each row, [T, V]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


class Comparison:
    """One quant against its base, a few tokens after the other."""

    def __init__(self) -> None:
        self._base_loss: list[F64Array] = []
        self._loss: list[F64Array] = []
        self._kld: list[F64Array] = []
        self._same: list[NDArray[np.bool_]] = []

    def add(self, base: F64Array, quant: F64Array, following: NDArray[np.int64]) -> None:
        """`base` and `quant` are log probabilities [T, V]; `following` [T] the tokens that came."""
        rows = np.arange(len(following))
        self._base_loss.append(-base[rows, following])
        self._loss.append(-quant[rows, following])
        self._kld.append(np.einsum("tv,tv->t", np.exp(base), base - quant))
        self._same.append(base.argmax(axis=1) == quant.argmax(axis=1))

    @property
    def tokens(self) -> int:
        return sum(map(len, self._loss))

    def quality(self) -> Quality:
        """The figures over all that was added: one token at least."""
        base, loss, kld = map(np.concatenate, (self._base_loss, self._loss, self._kld))
        mean_base, base_error = _mean(base)
        mean, error = _mean(loss)
        ratio, ratio_error = _mean(loss - base)
        change = np.exp(-loss) - np.exp(-base)
        square, square_error = _mean(change**2)
        rms, same = math.sqrt(square), float(np.mean(np.concatenate(self._same)))
        delta, delta_error = _mean(change)
        divergence, divergence_error = _mean(kld)
        return Quality(
            ppl=math.exp(mean),
            ppl_error=math.exp(mean) * error,
            base_ppl=math.exp(mean_base),
            base_ppl_error=math.exp(mean_base) * base_error,
            ppl_ratio=math.exp(ratio),
            ppl_ratio_error=math.exp(ratio) * ratio_error,
            kld=divergence,
            kld_error=divergence_error,
            kld_median=float(np.median(kld)),
            kld_999=float(np.percentile(kld, 99.9)),
            kld_max=float(kld.max()),
            delta_p=100 * delta,
            delta_p_error=100 * delta_error,
            delta_p_rms=100 * rms,
            delta_p_rms_error=100 * 0.5 / rms * square_error if rms else 0.0,
            same_top=100 * same,
            same_top_error=100 * math.sqrt(same * (1 - same) / max(1, len(loss) - 1)),
        )


def _mean(values: F64Array) -> tuple[float, float]:
    """The mean and its standard error, which is 0 for a single value."""
    return float(values.mean()), float(values.std() / math.sqrt(max(1, len(values) - 1)))

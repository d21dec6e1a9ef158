"""How much of a tensor each type loses when its codes are compensated: see `loss.py`, and compensated.py for how.

    error(type) = tr(D H Dᵀ) / tr(W H Wᵀ),   D = W - Q

with H the covariance of the inputs that were held out when it was collected, W sampled rows, and Q what compensated
codes make of them, or the kernel's own where those are no worse. As in `loss.py`, no column counts for more than
MOST_IMPORTANCE medians: H is scaled from both sides where its diagonal is above.

Rows are independent of each other given the covariance, so some tell of all; the damping is the same for all types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from ggufy.formats.torch_threads import one_thread
from ggufy.llama.ggml import ByteArray, F32Array, Ggml
from ggufy.quantize.compensated import TYPES, Factor, compensate, factors, kernel_of, output_error
from ggufy.quantize.rounding import Covariances
from ggufy.quantize.search.loss import MOST_IMPORTANCE, dequantize

_ROWS = 128
_DAMPING = 0.05


class CompensatedLoss:
    """Of one matrix; what is expensive is computed when the first error is asked for."""

    def __init__(
        self,
        name: str,
        rows: F32Array,
        importance: F32Array | None,
        covariances: Covariances,
        *,
        ggml: Ggml,
        digest: str,
        check: Callable[[], None],
    ):
        """`rows` F32 [rows, columns], of which some are taken; `importance` is [columns]; `check` may raise."""
        taken = min(len(rows), _ROWS)
        self._rows = np.ascontiguousarray(rows[np.arange(taken) * len(rows) // taken])
        self._importance, self._ggml, self._check = importance, ggml, check
        self._name, self._covariances = name, covariances
        self.digest = f"{digest} {name}"

    @cached_property
    def _known(self) -> tuple[list[Factor], list[F32Array], float]:
        """(the factor, H, the squared output)."""
        covariance = self._covariances.get(self._name)
        assert covariance is not None
        judge = covariance.held_out if covariance.held_out_tokens else covariance.calibration
        capped = _capped(judge)
        return factors(covariance.calibration, _DAMPING, self._check), capped, output_error(self._rows, capped)

    @one_thread()
    def error(self, kind: str) -> float:
        """Infinite where the type makes something that is not finite."""
        factor, judge, signal = self._known

        def lost(made: ByteArray | None) -> float:
            if made is None:
                return math.inf
            noise = output_error(self._rows - dequantize(made, kind).reshape(self._rows.shape), judge)
            return noise if math.isfinite(noise) else math.inf

        kernel = kernel_of(self._ggml, kind, self._importance)
        noise = lost(kernel(self._rows, slice(None)))
        if kind in TYPES:
            noise = min(noise, lost(compensate(self._rows, kind, kernel, factor, self._check)))
        if signal == 0:
            return 0.0 if noise == 0 else math.inf
        return noise / signal


def _capped(blocks: Sequence[F32Array]) -> list[F32Array]:
    """The blocks of H with no column above so many medians."""
    squares = [np.diag(block).copy() for block in blocks]
    every = np.concatenate(squares)
    if not (every > 0).any():
        return list(blocks)
    most = np.float32(MOST_IMPORTANCE) * np.median(every[every > 0])
    factor = [np.sqrt(most / np.maximum(one, most)) for one in squares]
    return [np.ascontiguousarray(scale[:, None] * block * scale) for scale, block in zip(factor, blocks, strict=True)]

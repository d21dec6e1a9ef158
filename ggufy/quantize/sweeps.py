"""Codes and scales improved in turn, when all of a row has some: coordinate descent on tr((W - Q) H (W - Q)ᵀ).

With H = Fᵀ D F (see compensated.py) and E = W - Q, columns first, the gradient is G = H E = Fᵀ D (F E). Alone, column
c had best be w_c + (G_c - H_cc E_c) / H_cc, and of its codes the nearest to that is the best one, since the error is a
parabola. Likewise a block's F16 scale, of which its values are linear functions u: it had best be larger by
uᵀ G_block / uᵀ H_block u. So no step makes the error larger, but for what F32 rounds.
"""

from __future__ import annotations

import numpy as np
import torch

from ggufy.llama.ggml import ByteArray, F32Array
from ggufy.quantize.codes.code_format import CodeFormat, half
from ggufy.quantize.column_codes import ColumnCodes

_RUN = 32  # columns whose codes are chosen at once
_ONE = np.array([1], dtype="<f2").view(np.uint8)[:, None]


class Sweeps:
    """Over the blocks of some rows."""

    def __init__(
        self,
        form: CodeFormat,
        values: F32Array,
        errors: F32Array,
        sums: torch.Tensor,
        feedback: torch.Tensor,
        variances: torch.Tensor,
    ):
        """`values`, `errors` (E, which is kept up to date) and `sums` (F E) are [columns, rows]; `feedback` is F
        [columns, columns], `variances` D [columns]."""
        self._form, self._values, self._errors = form, values, errors
        self._feedback, self._variances = feedback, variances[:, None]
        self._pushed = self._variances * sums  # D F E

    def improve(self, start: int, planes: ByteArray) -> None:
        """Changes one block of each row, whose first column is `start`."""
        stop = start + self._form.block
        known = self._feedback[start:, start:stop]  # F is lower triangular: above, there is nothing
        square = (known.T @ (self._variances[start:] * known)).numpy()
        gradient = (known.T @ self._pushed[start:]).numpy()
        errors = self._errors[start:stop]
        before = errors.copy()
        self._refit(planes, square, gradient, errors)
        self._choose(planes, square, gradient, self._values[start:stop], errors)
        self._pushed[start:] += self._variances[start:] * (known @ torch.from_numpy(errors - before))

    def _refit(self, planes: ByteArray, square: F32Array, gradient: F32Array, errors: F32Array) -> None:
        """Changes each of the block's F16s as far as the error gets smaller; gradient and errors follow."""
        for at in self._form.halves:
            unit = self._unit(planes, at)
            pushed = _product(square, unit)
            slope, bend = (unit * gradient).sum(axis=0), (unit * pushed).sum(axis=0)
            old = half(planes, at)[0]
            best = np.divide(slope, bend, out=np.zeros_like(slope), where=bend > 0)
            with np.errstate(over="ignore"):
                new = (old + best).astype("<f2")
            step = np.where(np.isfinite(new), new.astype(np.float32) - old, np.float32(0))
            step = np.where(step * (2 * slope - step * bend) > 0, step, np.float32(0))
            planes[at : at + 2, step != 0] = new[step != 0].view(np.uint8).reshape(-1, 2).T
            errors -= unit * step
            gradient -= pushed * step

    def _unit(self, planes: ByteArray, at: int) -> F32Array:
        """What the codes stand for if this F16 is 1 and there is no other."""
        planes = planes.copy()
        for other in self._form.halves:
            planes[other : other + 2] = 0
        planes[at : at + 2] = _ONE
        return self._form.decode(planes)

    def _choose(
        self, planes: ByteArray, square: F32Array, gradient: F32Array, values: F32Array, errors: F32Array
    ) -> None:
        """Puts the codes that are best now into the block, from left to right."""
        costs = np.diag(square)[:, None]
        shares = square / costs
        wanted = values + gradient / costs
        codes = ColumnCodes(self._form, self._form.scales(planes))
        before = errors.copy()
        for first in range(0, self._form.block, _RUN):
            run = slice(first, first + _RUN)
            within = np.ascontiguousarray(shares[run, run])
            goal = wanted[run] - _product(np.tril(within), before[run])  # those left of a column have new errors
            if first:
                goal += _product(shares[run, :first], errors[:first] - before[:first])
            codes.choose(first, goal, within, values[run], errors[run])
        self._form.pack(codes.chosen(), planes)


def _product(left: F32Array, right: F32Array) -> F32Array:
    return (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()

"""Codes and scales of one block, improved in turn: coordinate descent.

With E = W - Q, columns first, S what the errors left of the block add to its columns (the shares of compensated.py), F
and D those of H = Fᵀ D F within the block, the error that columns right of the block cannot make up for is
|D^½ (S + F E)|². Its gradient is G = Fᵀ D (S + F E), its curvature C = Fᵀ D F. Alone, column k had best be
w_k + (G_k - C_kk E_k) / C_kk, and of its codes the nearest to that is the best one, since the error is a parabola.
Likewise an F16 of the block, of which its values are linear functions u: it had best be larger by uᵀ G / uᵀ C u. So no
step makes the error larger, but for what F32 rounds.
"""

from __future__ import annotations

import numpy as np
import torch

from ggufy.llama.ggml import ByteArray, F32Array
from ggufy.quantize.codes.code_format import CodeFormat, half
from ggufy.quantize.column_codes import ColumnCodes

_RUN = 32  # columns whose codes are chosen at once
_ONE = np.array([1], dtype="<f2").view(np.uint8)[:, None]


def improve(
    form: CodeFormat,
    planes: ByteArray,
    *,
    values: F32Array,
    errors: F32Array,
    shares: torch.Tensor,
    feedback: torch.Tensor,
    variances: torch.Tensor,
    sweeps: int,
) -> None:
    """Changes the planes of one block of each row, and its errors with them.

    `values` W, `errors` E and `shares` S are [columns, rows], `feedback` F [columns, columns], `variances` D
    [columns].
    """
    if not sweeps:
        return
    pushes = feedback.T * variances  # Fᵀ D
    curvature = (pushes @ feedback).numpy()
    gradient = (pushes @ (shares + feedback @ torch.from_numpy(errors))).numpy()
    for _ in range(sweeps):
        _refit(form, planes, curvature, gradient, errors)
        before = errors.copy()
        _choose(form, planes, curvature, gradient, values, errors)
        gradient += _product(curvature, errors - before)


def _refit(form: CodeFormat, planes: ByteArray, curvature: F32Array, gradient: F32Array, errors: F32Array) -> None:
    """Changes each of the block's F16s as far as the error gets smaller; gradient and errors follow."""
    for at in form.halves:
        unit = _unit(form, planes, at)
        pushed = _product(curvature, unit)
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


def _unit(form: CodeFormat, planes: ByteArray, at: int) -> F32Array:
    """What the codes stand for if this F16 is 1 and there is no other."""
    planes = planes.copy()
    for other in form.halves:
        planes[other : other + 2] = 0
    planes[at : at + 2] = _ONE
    return form.decode(planes)


def _choose(
    form: CodeFormat, planes: ByteArray, curvature: F32Array, gradient: F32Array, values: F32Array, errors: F32Array
) -> None:
    """Puts the codes that are best now into the block, from left to right."""
    costs = np.diag(curvature)[:, None]
    parts = curvature / costs
    wanted = values + gradient / costs
    codes = ColumnCodes(form, form.scales(planes))
    before = errors.copy()
    for first in range(0, form.block, _RUN):
        run = slice(first, first + _RUN)
        within = np.ascontiguousarray(parts[run, run])
        goal = wanted[run] - _product(np.tril(within), before[run])  # those left of a column have new errors
        if first:
            goal += _product(parts[run, :first], errors[:first] - before[:first])
        codes.choose(first, goal, within, values[run], errors[run])
    form.pack(codes.chosen(), planes)


def _product(left: F32Array, right: F32Array) -> F32Array:
    return (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()

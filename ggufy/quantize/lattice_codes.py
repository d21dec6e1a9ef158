"""The points of a lattice for a few columns after the other, for many rows at once, under a covariance.

What the weights of a point ought to be depends on the errors left of them, as in compensated.py; how much an error in
each of them costs, when the columns right of them make up for it as well as they can, is the diagonal of M D Mᵀ with
H = M D Mᵀ, M unit upper triangular. The point that costs least by that diagonal is taken.
"""

from __future__ import annotations

import numpy as np
import torch

from ggufy.llama.ggml import ByteArray, F32Array
from ggufy.quantize.codes.lattices import BLOCK, SIGNS, LatticeFormat


class LatticeCodes:
    """Chooses the points of one block of each row, whose scales are given."""

    def __init__(self, form: LatticeFormat, planes: ByteArray):
        self._form, self._planes = form, planes
        self._grid = torch.from_numpy(form.grid)
        self._scales = torch.from_numpy(np.ascontiguousarray(form.scales(planes)))
        rows = planes.shape[1]
        self._points = np.empty((BLOCK // form.width, rows), dtype=np.uint16)
        self._minus = np.empty((BLOCK, rows), dtype=np.bool_)

    def pack(self) -> None:
        """Writes what was chosen into the blocks."""
        signs = np.packbits(self._minus.reshape(BLOCK // SIGNS, SIGNS, -1), axis=1, bitorder="little")[:, 0]
        self._form.pack(self._points, signs, self._planes)

    def choose(
        self,
        start: int,
        shares: torch.Tensor,
        feedback: torch.Tensor,
        variances: torch.Tensor,
        values: torch.Tensor,
        errors: torch.Tensor,
    ) -> None:
        """Chooses the points of some columns of the block from its column `start` on.

        `shares` [columns, rows] is what errors further left add; `feedback` [columns, columns] is Mᵀ, `variances`
        [columns] D; `values` [columns, rows] are the weights; `errors` [columns, rows] is filled with what is missing.
        """
        width = self._form.width
        for first in range(0, len(values), width):
            last = first + width
            if first:
                shares[first:] += feedback[first:, first - width : first] @ errors[first - width : first]
            if first % SIGNS == 0 and self._form.even_signs:
                eight = slice(first, first + SIGNS)
                wanted = values[eight] + _solved(feedback[eight, eight], shares[eight])
                self._minus[start + first : start + first + SIGNS] = _even_minus(
                    wanted, _costs(feedback[eight, eight], variances[eight])
                )
            part = slice(first, last)
            wanted = values[part] + _solved(feedback[part, part], shares[part])
            errors[part] = values[part] - self._nearest(
                start + first, wanted, _costs(feedback[part, part], variances[part])
            )

    def _nearest(self, column: int, wanted: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
        """Chooses one point, and gives its value.

        cost (|w| - s g)² is s (s cost g² - 2 cost |w| g), but for what is the same for all vectors g.
        """
        scale = self._scales[column // self._form.span]
        if not self._form.even_signs:
            self._minus[column : column + self._form.width] = (wanted < 0).numpy()
        minus = torch.from_numpy(self._minus[column : column + self._form.width])
        upright = torch.where(minus, -wanted, wanted)
        grid = torch.cat([(self._grid * costs * self._grid).sum(dim=1, keepdim=True), -2 * self._grid * costs], dim=1)
        offered = torch.cat([scale[None], upright])
        point = (offered.T @ grid.T).argmin(dim=1)
        self._points[column // self._form.width] = point.numpy()
        value = self._grid[point].T * scale
        return torch.where(minus, -value, value)


def _solved(feedback: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    solved: torch.Tensor = torch.linalg.solve_triangular(feedback, shares, upper=False, unitriangular=True)
    return solved


def _costs(feedback: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    return (feedback.square() * variances[:, None]).sum(dim=0)


def _even_minus(wanted: torch.Tensor, costs: torch.Tensor) -> F32Array:
    """Which of eight numbers are negative; where these are odd, the sign that costs least is another one."""
    minus = wanted < 0
    odd = minus.sum(dim=0) % 2 == 1
    least = (wanted.square() * costs[:, None]).argmin(dim=0)
    rows = torch.arange(wanted.shape[1])
    minus[least, rows] ^= odd
    return np.asarray(minus.numpy())

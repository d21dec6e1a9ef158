"""Factors that the engine multiplies a tensor's weights by before it quantizes them, in F32."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ggufy.quantize.imatrix import Imatrix

F32Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Of one tensor. A vector is one row."""

    columns: F32Array | None = None  # [matrices, columns]
    rows: F32Array | None = None  # [rows of all matrices]

    def times(self, values: F32Array, *, matrix: int, first: int) -> F32Array:
        """Some rows of one matrix, F32 [rows, columns], the first of them being row `first` of the tensor -> the same
        multiplied, in C order."""
        if self.columns is not None:
            values = values * self.columns[matrix]
        if self.rows is not None:
            values = values * self.rows[first : first + len(values), None]
        return values


Scaling = Mapping[str, Factors]  # by tensor


def scaled_imatrix(imatrix: Imatrix, scaling: Scaling) -> Imatrix:
    """The imatrix of the scaled model: where columns are multiplied by s, what comes in is divided by s, and so its
    mean square by s²."""
    weights = dict(imatrix.weights)
    for name, factors in scaling.items():
        if factors.columns is not None and name in weights:
            scales = factors.columns.reshape(-1).astype(np.float64)
            weights[name] = (weights[name] / scales**2).astype(np.float32)
    return replace(imatrix, weights=weights)


def digest_of(scaling: Scaling) -> str:
    """Tells scalings apart; empty for none."""
    digest = hashlib.sha256()
    for name, factors in sorted(scaling.items()):
        for array in (factors.columns, factors.rows):
            digest.update(f"{name} {None if array is None else array.shape}".encode())
            digest.update(b"" if array is None else array.tobytes())
    return digest.hexdigest() if scaling else ""

"""Codes that make up for each other's errors: GPTQ (arXiv 2210.17323) inside ggml's own blocks.

The output error of a quantized matrix Q of W is tr((W - Q) H (W - Q)ᵀ), with H = Σ x xᵀ over the inputs x. With
H = R Rᵀ, R upper triangular, it is |(W - Q) R|², and column k of that is R_kk (w_k - q_k + Σ_{j<k} (w_j - q_j) F_kj)
with F_kj = R_jk / R_kk. So columns are rounded from left to right, each to the code nearest to
w_k + Σ_{j<k} (w_j - q_j) F_kj. That is GPTQ (arXiv 2307.13304, theorem 6, shows the two to be the same), but needs one
Cholesky factor and no inverse.

A block's scales are ggml's: its kernel quantizes what the block's weights ought to be now, W + Y F⁻ᵀ, where Y is what
the errors left of the block add up to in its columns and F the part of the factor within the block. With those scales
fixed the codes are chosen column by column, and written into the kernel's blocks. Where a type's codes are points of a
lattice (IQ2, IQ3) that goes point by point (lattice_codes.py); of IQ1 the kernel's codes stay, and their errors are
carried on from block to block.

Then codes and scales of the block are improved in turn (sweeps.py), but for points of a lattice, before its errors are
carried on.

A small multiple of the mean diagonal is added to H first (damping).

The same rows give the same bytes if they come together and PyTorch is told to take one thread: the last bits of a
product may depend on its shape and on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ggufy.llama.ggml import ByteArray, F32Array, Ggml
from ggufy.quantize.codes import FORMATS, LATTICES
from ggufy.quantize.codes.code_format import CodeFormat
from ggufy.quantize.codes.lattices import BLOCK, LatticeFormat
from ggufy.quantize.column_codes import ColumnCodes
from ggufy.quantize.lattice_codes import LatticeCodes
from ggufy.quantize.sweeps import improve

TYPES = frozenset(FORMATS) | frozenset(LATTICES) | {"IQ1_S", "IQ1_M"}
SWEEPS = 2  # over each block
_GROUP = 256  # columns whose share of the errors left of them is computed at once
_RUN = 32  # the same within a block
_PANEL = 512  # columns of a factor computed at once

Kernel = Callable[[F32Array, slice], ByteArray | None]  # rows of these columns -> bytes of whole blocks; see Ggml
Pace = Callable[[], None]  # called every now and then: it may wait, or raise


def kernel_of(ggml: Ggml, kind: str, importance: F32Array | None) -> Kernel:
    """ggml's kernel for a type, with these weights of all columns."""

    def kernel(values: F32Array, columns: slice) -> ByteArray | None:
        weights = None if importance is None else np.ascontiguousarray(importance[columns])
        return ggml.quantize(values, kind, weights)

    return kernel


@dataclass(frozen=True)
class Factor:
    """One diagonal block of H, damped, as F: unit lower triangular, F32 [width, width]."""

    start: int  # its first column in the matrix
    feedback: F32Array
    variances: F32Array  # [width]: what is left of each column's when those right of it are known

    @property
    def stop(self) -> int:
        return self.start + len(self.feedback)


def factors(covariance: Sequence[F32Array], damping: float, pace: Pace) -> list[Factor]:
    """The factor of each diagonal block of a covariance, F32 [width, width]."""
    made, start = [], 0
    for block in covariance:
        made.append(Factor(start, *feedback(block, damping, pace)))
        start += len(block)
    return made


def feedback(covariance: F32Array, damping: float, pace: Pace) -> tuple[F32Array, F32Array]:
    """F of one covariance, whose columns may be all 0, and R_kk² in units of the mean variance.

    R is the flipped Cholesky factor of the flipped H. F32 is enough: what it rounds is far below the damping.
    """
    width = len(covariance)
    flipped = torch.from_numpy(np.ascontiguousarray(covariance[::-1, ::-1]))
    mean = float(np.trace(covariance, dtype=np.float64)) / width
    flipped = flipped / mean if mean > 0 else torch.eye(width)
    flipped.diagonal().add_(damping)
    for first in range(0, width, _PANEL):
        last = min(first + _PANEL, width)
        panel = flipped[first:, first:last]
        panel -= flipped[first:, :first] @ flipped[first:last, :first].T
        square = torch.linalg.cholesky(panel[: last - first])
        panel[last - first :] = torch.linalg.solve_triangular(
            square, panel[last - first :].T.contiguous(), upper=False
        ).T
        panel[: last - first] = square
        pace()
    lower = flipped.tril().T.flip(0, 1)  # Rᵀ, but for the order of its rows and columns
    scale = lower.diagonal().clone()
    return lower.div_(scale[:, None]).contiguous().numpy(), scale.square().numpy()


def compensate(
    values: F32Array, kind: str, kernel: Kernel, factor: Sequence[Factor], pace: Pace, *, sweeps: int = SWEEPS
) -> ByteArray | None:
    """F32 [rows, columns] -> bytes of the rows, or None if the type cannot hold what comes up on the way."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    made = np.empty((len(values), values.shape[1] // block * size), dtype=np.uint8)
    for part in factor:
        blocks = range(part.start // block, part.stop // block)
        work = _Tile(values[:, part.start : part.stop], kind, part, kernel, sweeps)
        if not work.fill(made[:, blocks.start * size : blocks.stop * size], pace):
            return None
    return made.reshape(-1)


def output_error(error: F32Array, covariance: Sequence[F32Array]) -> float:
    """tr(D H Dᵀ) of D = W - Q, F32 [rows, columns]."""
    total, start = 0.0, 0
    for block in covariance:
        part = torch.from_numpy(np.ascontiguousarray(error[:, start : start + len(block)]))
        total += float((part @ torch.from_numpy(block)).mul_(part).sum(dtype=torch.float64))
        start += len(block)
    return total


class _Tile:
    """Some rows of the columns that one factor is about. Columns are the first dimension of everything here."""

    def __init__(self, values: F32Array, kind: str, factor: Factor, kernel: Kernel, sweeps: int):
        self._values = np.ascontiguousarray(values.T)
        self._kind, self._kernel, self._start = kind, kernel, factor.start
        self._feedback, self._variances = torch.from_numpy(factor.feedback), torch.from_numpy(factor.variances)
        self._errors = torch.zeros(self._values.shape, dtype=torch.float32)
        self._sweeps = sweeps
        self._block, self._size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]

    def fill(self, made: ByteArray, pace: Pace) -> bool:
        columns = len(self._values)
        form, lattice = FORMATS.get(self._kind), LATTICES.get(self._kind)
        for first in range(0, columns, _GROUP):
            last = min(first + _GROUP, columns)
            carried = self._carried(first, last, 0, first)
            for start in range(first, last, self._block):
                stop, at = start + self._block, start // self._block * self._size
                shares = carried[start - first : stop - first]
                if start > first:
                    shares += self._carried(start, stop, first, start)
                raw = self._quantized(start, stop, shares)
                if raw is None:
                    return False
                planes = np.ascontiguousarray(raw.T)
                if form:
                    self._choose(form, planes, start, shares)
                    raw = planes.T
                elif lattice:
                    self._choose_points(lattice, planes, start, shares)
                    raw = planes.T
                else:
                    self._errors[start:stop] = torch.from_numpy(self._values[start:stop] - decoded(raw, self._kind).T)
                made[:, at : at + self._size] = raw
            pace()
        return True

    def _carried(self, start: int, stop: int, left: int, right: int) -> torch.Tensor:
        """What the errors in some columns add to others right of them."""
        return self._feedback[start:stop, left:right] @ self._errors[left:right]

    def _quantized(self, start: int, stop: int, shares: torch.Tensor) -> ByteArray | None:
        """The kernel's blocks for what the weights ought to be now, given the errors left of them."""
        within = self._feedback[start:stop, start:stop]
        wanted = torch.linalg.solve_triangular(within, shares, upper=False, unitriangular=True)
        wanted += torch.from_numpy(self._values[start:stop])
        columns = slice(self._start + start, self._start + stop)
        raw = self._kernel(np.ascontiguousarray(wanted.numpy().T), columns)
        return None if raw is None else raw.reshape(-1, self._size)

    def _choose(self, form: CodeFormat, planes: ByteArray, start: int, shares: torch.Tensor) -> None:
        """Puts the codes of a block into it, chosen from left to right."""
        codes = ColumnCodes(form, form.scales(planes))
        errors, before = self._errors.numpy(), shares.clone()
        for first in range(start, start + form.block, _RUN):
            last = first + _RUN
            wanted = shares[first - start : last - start]
            if first > start:
                wanted += self._carried(first, last, start, first)
            wanted += torch.from_numpy(self._values[first:last])
            codes.choose(
                first - start,
                wanted.numpy(),
                self._feedback[first:last, first:last].numpy(),
                self._values[first:last],
                errors[first:last],
            )
        form.pack(codes.chosen(), planes)
        block = slice(start, start + form.block)
        improve(
            form,
            planes,
            values=self._values[block],
            errors=errors[block],
            shares=before,
            feedback=self._feedback[block, block],
            variances=self._variances[block],
            sweeps=self._sweeps,
        )

    def _choose_points(self, form: LatticeFormat, planes: ByteArray, start: int, shares: torch.Tensor) -> None:
        codes = LatticeCodes(form, planes)
        values = torch.from_numpy(self._values)
        for first in range(start, start + BLOCK, _RUN):
            last = first + _RUN
            carried = shares[first - start : last - start]
            if first > start:
                carried += self._carried(first, last, start, first)
            codes.choose(
                first - start,
                carried,
                self._feedback[first:last, first:last],
                self._variances[first:last],
                values[first:last],
                self._errors[first:last],
            )
        codes.pack()


def decoded(raw: ByteArray, kind: str) -> F32Array:
    """Bytes of whole rows or blocks -> what they stand for."""
    return np.asarray(quants.dequantize(raw, GGMLQuantizationType[kind]), dtype=np.float32)

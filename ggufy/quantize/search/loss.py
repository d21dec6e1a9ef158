"""How much of a tensor each type loses: its relative quantization error, weighted by the imatrix and measured.

    error(type) = sum over rows r and columns j of v_j (q_rj - w_rj)^2  /  sum of v_j w_rj^2

with v the imatrix (mean squared input of each column; 1 without one), w the weights, and q what the type makes of
them. No v counts for more than MOST_IMPORTANCE medians of its matrix: a few channels of a transformer carry massive
activations (of 1,536 inputs of one `ffn_down` of SmolLM2, 4 hold 99.8 % of the sum of squares), so an error that
follows them looks at these columns alone, while all others, which tell one token from another, go for nothing. The
quantizer itself gets the imatrix as it is.

The error is the share of the squared output that turns into noise if the inputs are independent. To sum errors over
tensors, each is multiplied by its sensitivity (`roles.py`) and its number of weights (`analysis.py`).

Rows are sampled evenly: types quantize row by row, so the sampled error estimates the whole one. A `LossTable` keeps
every error in a file, a line of JSON each, under a digest of all that it follows from: the sampled rows, the imatrix
and the kernels. So another target size, or a run after a kill, measures only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ggufy.system.files import disk_errors, sync

SAMPLE = 3 << 18  # weights a tensor: 384 rows of 2048
MOST_IMPORTANCE = 100.0  # medians of the columns that have any
_LEAST_ROWS = 16  # of each matrix
_VERSION = b"ggufy loss 1"

Array = np.ndarray[Any, np.dtype[Any]]
F32Array = np.ndarray[Any, np.dtype[np.float32]]
ByteArray = np.ndarray[Any, np.dtype[np.uint8]]


def dequantize(data: ByteArray, kind: str) -> F32Array:
    """Bytes of whole rows -> their weights, by gguf-py: F32 of what the bytes stand for, with no loss. Some 30 million
    weights a second."""
    number = GGMLQuantizationType[kind]
    typed = {"F32": np.float32, "F16": np.float16}.get(kind, np.uint8)
    return np.asarray(quants.dequantize(data.view(typed), number), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The functions that turn weights into a type and back. They may be called from several threads."""

    quantize: Callable[[F32Array, str, F32Array | None], ByteArray]  # [rows, columns], type, [columns] or None
    build: str  # tells kernels from others that may give other bytes: a digest of the library
    dequantize: Callable[[ByteArray, str], F32Array] = dequantize  # bytes of whole rows, type -> their weights


def sampled(tensor: Array, count: int = SAMPLE) -> F32Array:
    """Evenly spread rows of a tensor [rows, columns] or [matrices, rows, columns], about `count` weights in all, but
    at least 16 rows of each matrix -> F32 [matrices, rows, columns]. Reads only these rows."""
    matrices = tensor[None] if tensor.ndim == 2 else tensor
    number, rows, columns = matrices.shape
    taken = min(rows, max(_LEAST_ROWS, count // (number * columns)))
    chosen = np.arange(taken) * rows // taken
    return np.ascontiguousarray(matrices[:, chosen], dtype=np.float32)


def relative_error(
    sample: F32Array, kind: str, importance: F32Array | None, *, kernels: Kernels, most: float | None = None
) -> float:
    """The error of one type on [matrices, rows, columns]; `importance` is [matrices, columns], of which none
    counts for more than `most` medians (MOST_IMPORTANCE).

    0 for weights that are all 0 and stay so; infinite where the type makes something that is not finite.
    """
    noise = signal = 0.0
    for number, rows in enumerate(sample):
        weights = None if importance is None else importance[number]
        made = kernels.dequantize(kernels.quantize(rows, kind, weights), kind).reshape(rows.shape)
        v = (
            np.ones(rows.shape[1])
            if weights is None or not weights.any()
            else _capped(weights, most).astype(np.float64)
        )
        with np.errstate(over="ignore", invalid="ignore"):
            noise += float(np.square(made.astype(np.float64) - rows).sum(axis=0) @ v)
        signal += float(np.square(rows.astype(np.float64)).sum(axis=0) @ v)
    if not math.isfinite(noise):
        return math.inf
    if signal == 0:
        return 0.0 if noise == 0 else math.inf
    return noise / signal


def _capped(weights: F32Array, most: float | None = None) -> F32Array:
    """Importances of the columns of one matrix, none above `most` times the median of those above 0."""
    return np.minimum(weights, np.float32(MOST_IMPORTANCE if most is None else most) * np.median(weights[weights > 0]))


class Measure(Protocol):
    """Another way to tell the error of the types of a tensor."""

    @property
    def digest(self) -> str:
        """Of what the errors follow from, besides the tensor."""

    def error(self, kind: str) -> float: ...


class LossTable:
    """Errors by tensor and type, kept in a file. Safe to use from many threads, and from several processes."""

    def __init__(self, path: Path, kernels: Kernels, *, count: int = SAMPLE):
        """`count` is the number of weights that are sampled of a tensor. A line that a kill has cut is ignored."""
        self.path, self.kernels, self.count = path, kernels, count
        self.measured = 0  # errors that were not known before
        self._lock = threading.Lock()
        self._known = _read(path)

    def measure(
        self,
        tensor: Array,
        types: Iterable[str],
        *,
        importance: F32Array | None = None,
        by: Measure | None = None,
    ) -> dict[str, float]:
        """The error of each type that the tensor's width allows, measured unless it is known; `by` something else
        than `relative_error`.

        `tensor` is [rows, columns] or [matrices, rows, columns], of any float type, and may be a memory map;
        `importance` is [columns] or [matrices, columns]. `types` are taken one by one, each when the one before it is
        on the disk. Raises DiskError.
        """
        sample = sampled(tensor, self.count)
        if importance is not None:
            importance = np.ascontiguousarray(importance, dtype=np.float32).reshape(len(sample), sample.shape[2])
        digest = _digest(self.kernels.build, sample, importance)
        losses = {}
        for kind in types:
            if sample.shape[2] % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]:
                continue
            key = f"{digest} {kind}" + (f" {by.digest}" if by else "")
            with self._lock:
                loss = self._known.get(key)
            if loss is None:
                loss = by.error(kind) if by else relative_error(sample, kind, importance, kernels=self.kernels)
                self._keep(key, loss)
            losses[kind] = loss
        return losses

    def _keep(self, key: str, loss: float) -> None:
        line = json.dumps({"key": key, "loss": loss if math.isfinite(loss) else None}) + "\n"
        with self._lock, disk_errors(self.path):
            self._known[key] = loss
            self.measured += 1
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(descriptor, b"\n" + line.encode() if _cut(self.path) else line.encode())
                sync(descriptor)
            finally:
                os.close(descriptor)


def _digest(build: str, sample: F32Array, importance: F32Array | None) -> str:
    digest = hashlib.sha256(_VERSION)
    digest.update(f" {build} {sample.shape} {importance is not None} ".encode())
    digest.update(sample.data)
    if importance is not None:
        digest.update(importance.data)
        if any(weights.any() and (_capped(weights) != weights).any() for weights in importance):
            digest.update(f" capped at {MOST_IMPORTANCE:g}".encode())  # older tables have the other error
    return digest.hexdigest()


def _read(path: Path) -> dict[str, float]:
    known = {}
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
            loss = record["loss"]
            known[str(record["key"])] = math.inf if loss is None else float(loss)
        except (ValueError, TypeError, KeyError):
            continue  # cut by a kill, or empty
    return known


def _cut(path: Path) -> bool:
    """Whether the file's last line has no end."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"

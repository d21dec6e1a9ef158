"""Which tensors of a quant are compensated, how strongly, and what their rows become; see compensated.py.

Each tensor is prepared once, before its first rows: with some of them, evenly spread, and their first columns,
dampings are tried on inputs that were held out; among the good ones the strongest is taken, since it deviates least
from the weights where other texts differ from these. With all columns of these rows it is then seen whether their
outputs err less than with the ggml kernel's own codes, which are kept otherwise. Then any thread may make any of the
tensor's chunks, and when the last one is made the factor is forgotten.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ggufy.core.errors import CalibrationError
from ggufy.formats.torch_threads import one_thread
from ggufy.llama.ggml import ByteArray, F32Array, Ggml
from ggufy.quantize.compensated import (
    SWEEPS,
    TYPES,
    Factor,
    Kernel,
    Pace,
    compensate,
    decoded,
    factors,
    kernel_of,
    output_error,
)
from ggufy.quantize.layout import FileLayout, Rows, Tensor
from ggufy.quantize.turns import Ended
from ggufy.system.control import TICK_S

DAMPINGS = (0.01, 0.05, 0.2)
_UNTRIED = 0.05  # where no inputs were held out
_TOLERANCE = 1.02  # errors up to so many times the least are as good: the strongest of these dampings is taken
_SAMPLE_ROWS = 128
_TRIAL_COLUMNS = 512  # of a tensor, with which the damping is chosen
_MOST_AHEAD = 4  # tensors that are prepared before their turn


class Covariance(Protocol):
    """Σ x xᵀ over the inputs of a matrix, F32: square blocks along the diagonal, in the order of the columns."""

    @property
    def calibration(self) -> Sequence[F32Array]: ...

    @property
    def held_out(self) -> Sequence[F32Array]: ...

    @property
    def held_out_tokens(self) -> int: ...


class Covariances(Protocol):
    """Where covariances come from. May be asked by several threads."""

    @property
    def digest(self) -> str: ...

    def names(self) -> list[str]: ...

    def get(self, tensor_name: str) -> Covariance | None: ...


@dataclass(frozen=True)
class Preparation:
    """A tensor that is to be prepared."""

    tensor: Tensor


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Some rows of a tensor."""

    values: F32Array  # [rows, columns]
    kind: str
    kernel: Kernel

    def error(
        self, factor: Sequence[Factor], covariance: Sequence[F32Array], pace: Pace, *, sweeps: int = SWEEPS
    ) -> float:
        """The output error of these columns when they are compensated; infinite if the type cannot hold them."""
        values = np.ascontiguousarray(self.values[:, : factor[-1].stop])
        made = compensate(values, self.kind, self.kernel, factor, pace, sweeps=sweeps)
        return self._error(values, made, covariance)

    def plain_error(self, covariance: Sequence[F32Array]) -> float:
        return self._error(self.values, self.kernel(self.values, slice(None)), covariance)

    def _error(self, values: F32Array, made: ByteArray | None, covariance: Sequence[F32Array]) -> float:
        if made is None:
            return float("inf")
        return output_error(values - decoded(made, self.kind).reshape(values.shape), covariance)


def best_factor(sample: Sample, covariance: Covariance, pace: Pace) -> list[Factor] | None:
    """The factor with the best damping; None if the kernel's own codes are at least as good."""
    known, judge = (
        covariance.calibration,
        covariance.held_out if covariance.held_out_tokens else covariance.calibration,
    )
    width = min(len(known[0]), _TRIAL_COLUMNS)
    some, some_judge = ([np.ascontiguousarray(blocks[0][:width, :width])] for blocks in (known, judge))
    tried = {}
    for damping in DAMPINGS if covariance.held_out_tokens else (_UNTRIED,):
        pace()
        factor = factors(some, damping, pace)
        tried[damping] = sample.error(factor, some_judge, pace, sweeps=0), factor
    enough = min(error for error, _ in tried.values()) * _TOLERANCE
    chosen = max(damping for damping, (error, _) in tried.items() if error <= enough)
    _, best = tried[chosen]
    if width < sample.values.shape[1]:
        best = factors(known, chosen, pace)
    pace()
    return best if sample.error(best, judge, pace) < sample.plain_error(judge) else None


class Rounding:
    """What one run compensates. Safe to use from many threads, within `threads_kept`."""

    def __init__(self, covariances: Covariances, layout: FileLayout, ggml: Ggml, values: Callable[[Rows], F32Array]):
        """`values` reads rows of the base. Raises CalibrationError if the covariances are of another model."""
        self._covariances, self._ggml, self._values = covariances, ggml, values
        known = set(covariances.names())
        self.names = {tensor.name for tensor in layout.tensors if tensor.name in known and _fits(tensor)}
        self._prepared: dict[str, list[Factor] | None] = {}
        self._left: Counter[str] = Counter()
        self._lock = threading.Condition()

    def in_order(self, due: Iterable[Rows], copied: Container[str], ahead: int) -> list[Rows | Preparation]:
        """The chunks, and among them the preparations of their tensors: each so many tensors ahead of its turn."""
        chunks = list(due)
        wanted = [
            chunk.tensor for chunk in chunks if chunk.tensor.name in self.names and chunk.tensor.name not in copied
        ]
        self._left = Counter(tensor.name for tensor in wanted)
        tensors = {tensor.name: Preparation(tensor) for tensor in wanted}
        order: list[Rows | Preparation] = []
        waiting, ahead = iter([*tensors.values()]), min(max(1, ahead), _MOST_AHEAD)
        order += itertools.islice(waiting, ahead)
        for chunk in chunks:
            if tensors.pop(chunk.tensor.name, None):
                order += itertools.islice(waiting, 1)
            order.append(chunk)
        return order

    @one_thread()
    def prepare(self, tensor: Tensor, pace: Pace) -> None:
        covariance = self._covariances.get(tensor.name)
        (rows,) = tensor.matrices()
        if covariance is None or sum(map(len, covariance.calibration)) != rows.columns:
            raise CalibrationError(
                "the covariances have none for {tensor}, or one of another width: collect them from this model.",
                tensor=tensor.name,
            )
        taken = min(rows.count, _SAMPLE_ROWS)
        chosen = [rows.part(number * rows.count // taken, 1) for number in range(taken)]
        sample = Sample(
            values=np.concatenate([self._values(row) for row in chosen]),
            kind=tensor.type,
            kernel=self._kernel(tensor),
        )
        factor = best_factor(sample, covariance, pace)
        with self._lock:
            self._prepared[tensor.name] = factor
            self._lock.notify_all()

    def ready(self, tensor: Tensor, ended: threading.Event) -> bool:
        """Whether the tensor is compensated; waits until another thread has prepared it. Raises Ended."""
        if tensor.name not in self._left:
            return False
        with self._lock:
            while tensor.name not in self._prepared:
                if ended.is_set():
                    raise Ended
                self._lock.wait(TICK_S)
            return self._prepared[tensor.name] is not None

    @one_thread()
    def make(self, rows: Rows, pace: Pace) -> ByteArray | None:
        """The bytes of rows of a prepared tensor; None if they are to be what the kernel makes of them."""
        factor = self._prepared.get(rows.tensor.name)
        if factor is None:
            return None
        return compensate(self._values(rows), rows.tensor.type, self._kernel(rows.tensor), factor, pace)

    def forget(self, tensor: Tensor) -> None:
        """Says that one chunk of the tensor is made."""
        with self._lock:
            if tensor.name in self._left:
                self._left[tensor.name] -= 1
                if not self._left[tensor.name]:
                    self._prepared.pop(tensor.name)

    def _kernel(self, tensor: Tensor) -> Kernel:
        return kernel_of(self._ggml, tensor.type, None if tensor.weights is None else tensor.weights[0])


def _fits(tensor: Tensor) -> bool:
    """Scaled channels keep the kernel's codes: covariances are of inputs without the scales."""
    return tensor.changes and tensor.factors is None and len(tensor.source.shape) == 2 and tensor.type in TYPES

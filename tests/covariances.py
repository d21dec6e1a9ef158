"""Covariances that are made up, and the engine in another process with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

F32Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Sums:
    """The covariance of one input."""

    calibration: tuple[F32Array, ...]
    held_out: tuple[F32Array, ...]
    held_out_tokens: int


class InMemory:
    """Covariances by tensor name."""

    def __init__(self, sums: Mapping[str, Sums]):
        self._sums = dict(sums)
        digest = hashlib.sha256()
        for name, one in self._sums.items():
            digest.update(name.encode() + b"".join(block.tobytes() for block in (*one.calibration, *one.held_out)))
        self.digest = digest.hexdigest()

    def names(self) -> list[str]:
        return list(self._sums)

    def get(self, tensor_name: str) -> Sums | None:
        return self._sums.get(tensor_name)


def inputs(columns: int, *, tokens: int = 3000, seed: int = 0) -> F32Array:
    """Inputs whose columns go together, and differ in size as those of a model do."""
    random = np.random.default_rng(seed)
    causes = random.standard_normal((max(1, columns // 4), columns)) / np.sqrt(columns / 4)
    mixed = random.standard_normal((tokens, len(causes))) @ causes + 0.3 * random.standard_normal((tokens, columns))
    return np.asarray(mixed * np.exp(0.5 * random.standard_normal(columns)), dtype=np.float32)


def sums(columns: int, *, seed: int = 0, widths: tuple[int, ...] = ()) -> Sums:
    """The covariance of such inputs, in blocks of these widths."""
    x = inputs(columns, seed=seed)
    edges = np.cumsum([0, *(widths or (columns,))])
    known, held_out = (
        tuple(np.ascontiguousarray(part[:, a:b].T @ part[:, a:b]) for a, b in zip(edges, edges[1:], strict=False))
        for part in (x[:2400], x[2400:])
    )
    return Sums(known, held_out, 600)


def of_matrices(base: Path) -> InMemory:
    """Covariances for all matrices of a base but the embedding."""
    from ggufy.formats.gguf import read_head

    shapes = {name: tensor.shape for name, tensor in read_head(base).tensors.items() if len(tensor.shape) == 2}
    return InMemory(
        {name: sums(shape[0], seed=n) for n, (name, shape) in enumerate(shapes.items()) if name != "token_embd.weight"}
    )

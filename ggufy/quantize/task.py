"""What the engine is asked to make, and how it came about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy.quantize.factors import Scaling
from ggufy.quantize.imatrix import Imatrix
from ggufy.quantize.recipe import Recipe

if TYPE_CHECKING:
    from ggufy.quantize.rounding import Covariances  # loads PyTorch, which plain quants do without

ROUNDING = "ggufy.rounding"  # metadata: a digest of what compensated codes follow from, besides base and recipe
_DIGITS = 16
_ROUNDING_VERSION = "2"  # another one if the same inputs give other codes


@dataclass(frozen=True, kw_only=True)
class QuantizeTask:
    """One quant to make."""

    base: Path
    target: Path
    recipe: Recipe  # tensors that it does not name stay as they are
    ftype: int  # llama.cpp's number of the quant type (general.file_type)
    imatrix: Imatrix | None = None
    scales: Mapping[str, float] = field(default_factory=dict)  # see layout.plan
    scaling: Scaling = field(default_factory=dict)  # of channels, likewise; the imatrix is then the scaled model's
    siblings: Sequence[Path] = ()  # finished quants of the same base and imatrix
    facts: Mapping[str, str] = field(default_factory=dict)  # more metadata
    identity: str = ""  # tells the base from others of its size, its SHA-256 say; otherwise its time of change does
    covariances: Covariances | None = None  # of the inputs of the base's matrices: those are compensated then


@dataclass(kw_only=True)
class Made:
    """How a quant came about."""

    resumed: int = 0  # weights that an earlier run had finished
    copied: list[str] = field(default_factory=list)  # tensors that came, as far as this run made them, from a sibling
    computed: list[str] = field(default_factory=list)  # tensors that this run quantized, or some rows of them
    speeds: dict[str, tuple[int, float]] = field(default_factory=dict)  # tensor type -> weights, CPU seconds


def planned_facts(*, compensated: bool) -> dict[str, str]:
    """As `rounding_facts`, before it is known what codes follow from: of the same length."""
    return {ROUNDING: f"compensated {'0' * _DIGITS}"} if compensated else {}


def rounding_facts(order: QuantizeTask, kernels: str) -> dict[str, str]:
    """The metadata that tells how codes were chosen: always of the same length, and none if they are ggml's own.
    `kernels` is the digest of ggml's library."""
    if order.covariances is None:
        return {}
    return {ROUNDING: f"compensated {rounding_digest(order.covariances, order.imatrix, kernels)[:_DIGITS]}"}


def rounding_digest(covariances: Covariances, imatrix: Imatrix | None, kernels: str) -> str:
    """Of what compensated codes follow from, besides the weights and their types."""
    words = (_ROUNDING_VERSION, covariances.digest, imatrix.sha256 if imatrix else "", kernels)
    return hashlib.sha256(" ".join(words).encode()).hexdigest()

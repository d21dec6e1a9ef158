"""What each tensor of a base GGUF loses with each type that it can have: everything the solver goes by but how much a
role matters.

Candidates are the types of `RUNGS`, one or two a bit; for rows that are no multiple of 256 those of `NARROW`; for
RWKV's low-rank matrices, which llama-quantize leaves as they are, `LOW_RANK`; F16 of an F32 base, which is all that
rows that are no multiple of 32 can have; and always the type that the base has.
Each one's error is measured with the engine's own kernels on sampled rows, and kept (see `loss.py`), so an analysis
goes on where it was killed, and serves every later size.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufy.core.errors import SourceError
from ggufy.formats.gguf import GgufHead, TensorInfo, check_unquantized, padded, tensor_bytes
from ggufy.llama.ggml import Ggml
from ggufy.models import registry
from ggufy.quantize.imatrix import Imatrix
from ggufy.quantize.layout import needs_imatrix
from ggufy.quantize.recipe import Recipe
from ggufy.quantize.search import proxy
from ggufy.quantize.search.allocate import Option
from ggufy.quantize.search.loss import SAMPLE, ByteArray, F32Array, Kernels, LossTable, Measure
from ggufy.quantize.search.roles import Role, roles
from ggufy.quantize.task import rounding_digest

if TYPE_CHECKING:
    from ggufy.quantize.rounding import Covariances

RUNGS = (
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0",
)  # fmt: skip
NARROW = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
LOW_RANK = ("Q8_0", "F16")
LOW_RANK_PROBED = ("Q5_0", "Q5_1", "Q6_K")  # also, where probes of the model have shown how much they matter
LOW_RANK_PROBE = "Q5_0"  # what Q8_0 changes is less than what can be measured
_DECAY = "low_rank_decay"  # errors add up over a long text, and probes are short: never below LOW_RANK
_SUPER = 256  # a row of K and IQ types is whole blocks of so many weights
Progress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Of one base GGUF with one imatrix."""

    head: GgufHead
    losses: dict[str, dict[str, float]]  # tensor -> type -> relative error (see loss.py); what can be chosen
    probes: dict[str, float]  # low-rank tensor -> its error as LOW_RANK_PROBE, also where that cannot be chosen
    proxies: dict[str, proxy.Proxy]
    flat: dict[str, bool]  # tensor -> whether its imatrix says nothing

    @property
    def fixed(self) -> int:
        """Bytes of the tensors that stay as they are, padding included."""
        return sum(self._bytes(t, t.type) for name, t in self.head.tensors.items() if name not in self.losses)

    @property
    def weights(self) -> dict[str, int]:
        """Number of weights of each tensor that can be chosen."""
        return {name: self.head.tensors[name].elements for name in self.losses}

    @property
    def low_rank(self) -> set[str]:
        """RWKV's small matrices."""
        return {name for name, role in roles(self.head.tensors).items() if role.low_rank and name in self.losses}

    def loss(self, name: str, kind: str) -> float:
        """The error of a tensor as one type; 0 for the type that the base has."""
        if name in self.probes and kind == LOW_RANK_PROBE:
            return self.probes[name]
        return 0.0 if kind == self.head.tensors[name].type else self.losses[name][kind]

    def options(
        self,
        sensitivities: Mapping[str, float],
        *,
        probed: bool = False,
        prune: bool = False,
        rule: str = proxy.KURTOSIS,
    ) -> dict[str, list[Option]]:
        """What the solver takes: by tensor, every type's bytes, and sensitivity × weights × error.

        `probed` says that the sensitivities were measured of this model; otherwise low-rank tensors get types that
        were measured to be harmless (see models/architecture.py). With `prune`, the types that a rule of proxy.py
        rules out, block kurtosis or the paper's, are left out.
        """
        made = {}
        scalar = proxy.scalar_by_paper(self.proxies) if prune and rule == proxy.PAPER else set()
        found, architecture = roles(self.head.tensors), registry.of_tensors(self.head.tensors)
        harmless = architecture.harmless if architecture else ()
        for name, losses in self.losses.items():
            tensor = self.head.tensors[name]
            kinds: Iterable[str] = losses
            if name in self.probes and not probed and len(losses) > 1:
                least = LOW_RANK if found[name].name in harmless else ("F16",)
                kinds = [kind for kind in losses if kind in (*least, self.head.tensors[name].type)]
            if prune and name in self.proxies:
                if rule == proxy.PAPER:
                    kinds = proxy.candidates_by_paper(losses, scalar=name in scalar)
                else:
                    kinds = proxy.candidates(losses, self.proxies[name], flat=self.flat[name])
            scale = sensitivities[name] * tensor.elements
            made[name] = [
                Option(type=kind, size=self._bytes(tensor, kind), cost=scale * losses[kind])
                for kind in kinds
                if math.isfinite(losses[kind])
            ]
        return made

    def noise(self, recipe: Recipe, names: Iterable[str]) -> float:
        """Sum of weights × error over some tensors: what their sensitivity is multiplied with."""
        return math.fsum(
            self.head.tensors[name].elements * self.loss(name, recipe.get(name, self.head.tensors[name].type))
            for name in names
        )

    def tensor_bytes(self, recipe: Recipe) -> int:
        """Bytes of all tensors of the file, padding included."""
        return sum(self._bytes(tensor, recipe.get(name, tensor.type)) for name, tensor in self.head.tensors.items())

    def _bytes(self, tensor: TensorInfo, kind: str) -> int:
        return padded(tensor_bytes(tensor.shape, kind), self.head.alignment)


def analyse(
    base: Path,
    head: GgufHead,
    changing: Iterable[str],
    *,
    imatrix: Imatrix | None,
    scales: Mapping[str, float],
    ggml: Ggml,
    table: Path,
    covariances: Covariances | None = None,
    threads: int = 1,
    check: Callable[[], None] = lambda: None,
    report: Progress = lambda fraction: None,
) -> Analysis:
    """Measures what is not in `table` yet.

    `changing` are the tensors that llama-quantize would make smaller; `scales` are as in `layout.plan`. With
    `covariances`, errors are those of compensated codes (see compensated_loss.py). `check` is asked between two types
    of a tensor, and raises to end the run. Raises SourceError for weights that are not finite, DiskError.
    """
    _check_sources(base, head, changing)
    known = LossTable(table, kernels_of(ggml))
    found, architecture = roles(head.tensors), registry.of_tensors(head.tensors)
    unread = architecture.unread if architecture else frozenset()
    matrices = {name for name, tensor in head.tensors.items() if len(tensor.shape) > 1}
    low_rank = {name for name, role in found.items() if role.low_rank and name in matrices}
    names = sorted({*changing, *low_rank}, key=lambda name: -head.tensors[name].elements)
    total = sum(head.tensors[name].elements for name in names)
    stack = contextlib.ExitStack()
    measures = _measures(covariances, imatrix, ggml, check, stack)
    analysis = Analysis(head=head, losses={}, probes={}, proxies={}, flat={})
    done = 0

    def one(name: str) -> None:
        tensor = head.tensors[name]
        rows, weights = rows_of(base, tensor, head, ggml), _importance(imatrix, tensor)
        rows = rows * np.float32(scales.get(name, 1.0))
        kinds = _types(tensor, found[name], weights is not None, ggml)
        also = [LOW_RANK_PROBE] if name in low_rank else []
        # In one call, as each one reads all rows for their digest.
        asked = _checked(dict.fromkeys([*kinds, *also]), check)
        errors = known.measure(rows, asked, importance=weights, by=measures(name, rows, weights))
        losses = {kind: errors[kind] for kind in kinds if kind in errors}
        if name in low_rank:
            if LOW_RANK_PROBE in errors:
                analysis.probes[name] = errors[LOW_RANK_PROBE]
        else:
            analysis.proxies[name] = proxy.measure(rows)
            analysis.flat[name] = proxy.is_flat(weights)
        if name in unread and losses:
            analysis.losses[name] = {min(losses, key=lambda kind: tensor_bytes(tensor.shape, kind)): 0.0}
        else:
            analysis.losses[name] = losses | {tensor.type: 0.0}

    with stack, ThreadPoolExecutor(threads, thread_name_prefix="analyse") as pool:
        for name, _ in zip(names, pool.map(one, names), strict=True):
            done += head.tensors[name].elements
            report(done / total)
    return analysis


def _measures(
    covariances: Covariances | None,
    imatrix: Imatrix | None,
    ggml: Ggml,
    check: Callable[[], None],
    stack: contextlib.ExitStack,
) -> Callable[[str, F32Array, F32Array | None], Measure | None]:
    """What tells the errors of a tensor's rows, with these weights of its columns; None: the table itself."""
    if covariances is None:
        return lambda name, rows, weights: None
    from ggufy.formats.torch_threads import threads_kept  # noqa: PLC0415 - loads PyTorch
    from ggufy.quantize.search.compensated_loss import CompensatedLoss  # noqa: PLC0415

    stack.enter_context(threads_kept())
    names, digest = set(covariances.names()), rounding_digest(covariances, imatrix, ggml.sha256)

    def measure(name: str, rows: F32Array, weights: F32Array | None) -> Measure | None:
        if name not in names:
            return None
        return CompensatedLoss(
            name, rows[0], None if weights is None else weights[0], covariances, ggml=ggml, digest=digest, check=check
        )

    return measure


def _checked(kinds: Iterable[str], check: Callable[[], None]) -> Iterator[str]:
    """The same, asking before each one."""
    for kind in kinds:
        check()
        yield kind


def kernels_of(ggml: Ggml) -> Kernels:
    """ggml's kernels as `loss.py` takes them."""

    def quantize(rows: F32Array, kind: str, weights: F32Array | None) -> ByteArray:
        made = ggml.quantize(rows, kind, weights)
        # All bits set is a scale that is no number, so a type that cannot hold these weights gets an infinite error.
        return np.full(ggml.types[kind].bytes_of(rows.size), 0xFF, dtype=np.uint8) if made is None else made

    return Kernels(quantize=quantize, build=ggml.sha256)


def rows_of(base: Path, tensor: TensorInfo, head: GgufHead, ggml: Ggml, *, count: int = SAMPLE) -> F32Array:
    """The rows that are measured of a tensor: F32 [matrices, rows, columns]. Reads only them."""
    columns, rows = (*tensor.shape, 1)[:2]
    matrices = tensor.elements // (columns * rows)
    width: dict[str, Any] = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
    offset = head.data_start + tensor.offset
    raw = np.memmap(base, dtype=width[tensor.type], mode="r", offset=offset, shape=(matrices, rows, columns))
    taken = min(rows, max(16, count // (matrices * columns)))
    chosen = np.ascontiguousarray(raw[:, np.arange(taken) * rows // taken])
    values = ggml.to_f32(chosen.reshape(-1).view(np.uint8), tensor.type).reshape(chosen.shape)
    if not np.isfinite(values).all():
        raise SourceError(
            "{base}: {tensor} has values that are not finite: fetch or convert the model again.",
            base=base,
            tensor=tensor.name,
        )
    return values


def _types(tensor: TensorInfo, role: Role, weighted: bool, ggml: Ggml) -> list[str]:
    """The candidates of a tensor, but for the type that it has."""
    ladder: tuple[str, ...] = RUNGS if tensor.shape[0] % _SUPER == 0 else NARROW
    if role.low_rank:
        ladder = LOW_RANK if role.name == _DECAY else (*LOW_RANK_PROBED, *LOW_RANK)
    return [
        kind
        for kind in dict.fromkeys((*ladder, "F16"))
        if kind in ggml.types
        and kind != tensor.type
        and tensor.shape[0] % ggml.types[kind].block == 0
        and (weighted or not needs_imatrix(tensor.name, kind, 0))
        and tensor_bytes(tensor.shape, kind) < tensor.size
    ]


def _importance(imatrix: Imatrix | None, tensor: TensorInfo) -> F32Array | None:
    """F32 [matrices, columns], if the imatrix has data that fit."""
    weights = imatrix.weights.get(tensor.name) if imatrix else None
    matrices = math.prod(tensor.shape[2:])
    if weights is None or weights.size != matrices * tensor.shape[0]:
        return None
    return weights.reshape(matrices, tensor.shape[0])


def _check_sources(base: Path, head: GgufHead, names: Iterable[str]) -> None:
    for name in names:
        check_unquantized(head.tensors[name], base)

"""Whether a quant is what its base, its imatrix and its own metadata say: its head and its tensors are made again.

The types are the file's own, so are the keys that ggufy adds; all else follows as the engine (engine.py) has it. Of
each tensor the first and the last rows are compared, and some between them, or all. Compensated tensors need the
covariances, since their codes follow from those, and are compared in whole tiles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ggufy.core.errors import Cancelled, UsageError
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.llama.ggml import ByteArray, Ggml
from ggufy.quantize.imatrix import Imatrix, read_imatrix, with_embedding
from ggufy.quantize.layout import PIECE, TILE, FileLayout, Rows, Tensor, plan
from ggufy.quantize.open_file import OpenFile
from ggufy.quantize.plain_rows import PlainRows
from ggufy.quantize.search.mixes import rescaling
from ggufy.quantize.task import ROUNDING, QuantizeTask, rounding_facts

if TYPE_CHECKING:
    from ggufy.quantize.rounding import Covariances, Rounding

SAMPLES = 8  # parts of a tensor that are compared unless all are
_IMATRIX, _ENTRIES = "quantize.imatrix.file", "quantize.imatrix.entries_count"
_FTYPE = "general.file_type"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found."""

    metadata: tuple[str, ...]  # keys that differ from what would be written, or the words "order of tensors"
    same: tuple[str, ...]  # tensors of which every row that was compared is the same
    different: tuple[str, ...]
    compensated: tuple[str, ...]  # not compared, for want of the covariances
    whole: bool  # every row was compared

    @property
    def holds(self) -> bool:
        return not (self.metadata or self.different)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a quant is made again from."""

    base: Path
    imatrix: Path | None = None
    covariances: Covariances | None = None


def verify(
    quant: Path,
    evidence: Evidence,
    *,
    ggml: Ggml,
    whole: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    report: Callable[[float], None] = lambda fraction: None,
) -> Verdict:
    """Raises UsageError where the quant and the base have not the same tensors, or an imatrix is missing; what
    `plan` raises; Cancelled."""
    head, base = read_head(quant), read_head(evidence.base)
    layout, order = _planned(quant, head, evidence, base, ggml)
    with quant.open("rb") as file, evidence.base.open("rb") as source, contextlib.ExitStack() as stack:
        theirs = OpenFile(quant, file.fileno())
        found = _metadata(theirs, head, layout)
        if head.data_start != len(layout.head):  # tensors are compared where they are in the file
            moved = head.data_start - len(layout.head)
            layout = replace(layout, tensors=[replace(one, offset=one.offset + moved) for one in layout.tensors])
        maker = _Maker(order, layout, PlainRows(OpenFile(evidence.base, source.fileno()), ggml), ggml)
        if order.covariances is not None:
            from ggufy.formats.torch_threads import threads_kept  # noqa: PLC0415 - plain quants do without PyTorch

            stack.enter_context(threads_kept())
        return _compared(maker, theirs, found, whole=whole, stopped=stopped, report=report)


def _planned(
    quant: Path, head: GgufHead, evidence: Evidence, base: GgufHead, ggml: Ggml
) -> tuple[FileLayout, QuantizeTask]:
    shapes = {name: tensor.shape for name, tensor in head.tensors.items()}
    if shapes != {name: tensor.shape for name, tensor in base.tensors.items()}:
        raise UsageError(
            "{quant} and {base} have not the same tensors: give the base that it was made from.",
            quant=quant.name,
            base=evidence.base.name,
        )
    imatrix = _imatrix(quant, head, evidence.imatrix, base)
    scales = rescaling(base)
    if scales and not any(head.metadata.get(key) == 0 != value for key, value in base.metadata.items()):
        scales = {}  # a stock recipe's file is divided as the base is
    own = {key: str(value) for key, value in head.metadata.items() if key.startswith("ggufy.")}
    facts = {key: value for key, value in own.items() if key not in base.metadata and key != ROUNDING}
    order = QuantizeTask(
        base=evidence.base,
        target=quant,
        recipe={name: tensor.type for name, tensor in head.tensors.items()},
        ftype=int(head.metadata.get(_FTYPE, 0)),
        imatrix=imatrix,
        scales=scales,
        facts=facts,
        covariances=evidence.covariances if ROUNDING in own else None,
    )
    rounding = rounding_facts(order, ggml.sha256) or {key: own[key] for key in (ROUNDING,) if key in own}
    layout = plan(
        evidence.base,
        base,
        order.recipe,
        ftype=order.ftype,
        imatrix=imatrix,
        scales=scales,
        ggml=ggml,
        facts={**facts, **rounding},
    )
    return layout, order


def _imatrix(quant: Path, head: GgufHead, path: Path | None, base: GgufHead) -> Imatrix | None:
    """As it was used: mixes give the embedding ones, which is an entry more."""
    name = head.metadata.get(_IMATRIX)
    if name is None:
        return None
    if path is None:
        raise UsageError(
            "{quant} was made with an imatrix, {name}: give it with --imatrix.", quant=quant.name, name=name
        )
    imatrix = read_imatrix(path)
    more = with_embedding(imatrix, base)
    return more if head.metadata.get(_ENTRIES) == len(more.weights) else imatrix


def _metadata(theirs: OpenFile, head: GgufHead, layout: FileLayout) -> tuple[str, ...]:
    """Keys that differ; if none does and the bytes differ all the same, their order or that of the tensors."""
    size = len(layout.head)
    if head.data_start == size and theirs.read(0, size).tobytes() == layout.head:
        return ()
    keys = sorted(layout.metadata.keys() | head.metadata.keys())
    return tuple(key for key in keys if layout.metadata.get(key) != head.metadata.get(key)) or ("order of tensors",)


class _Maker:
    """Makes rows as the engine did; one tensor at a time, so that there is one factor of a covariance at a time."""

    def __init__(self, order: QuantizeTask, layout: FileLayout, plain: PlainRows, ggml: Ggml):
        self.order, self.layout, self.plain, self.ggml = order, layout, plain, ggml
        self._rounding: Rounding | None = None

    def parts(self, tensor: Tensor) -> list[Rows]:
        """All rows of a tensor, in parts that are made at once; compensated ones as the engine makes them."""
        self._rounding = None
        if self.order.covariances is not None and tensor.changes:
            from ggufy.quantize.rounding import Rounding  # noqa: PLC0415 - plain quants do without PyTorch

            self._rounding = Rounding(self.order.covariances, self.layout, self.ggml, self.plain.values)
        compensated = self._rounding is not None and tensor.name in self._rounding.names
        if compensated and self._rounding:
            self._rounding.prepare(tensor, lambda: None)
        weights = TILE * tensor.source.shape[0] if compensated else PIECE
        return [part for rows in tensor.matrices() for part in rows.split(weights)]

    def made(self, rows: Rows) -> ByteArray:
        made = self._rounding.make(rows, lambda: None) if self._rounding else None
        return self.plain.quantized(rows) if made is None else made


def _compared(
    maker: _Maker,
    theirs: OpenFile,
    metadata: tuple[str, ...],
    *,
    whole: bool,
    stopped: Callable[[], bool],
    report: Callable[[float], None],
) -> Verdict:
    same, different, unknown, done = [], [], [], 0
    needs_more = ROUNDING in maker.layout.metadata and maker.order.covariances is None
    for tensor in maker.layout.tensors:
        parts = _chosen(maker.parts(tensor), whole=whole)
        if all(_same(maker, theirs, rows, stopped) for rows in parts):
            same.append(tensor.name)
        elif needs_more and tensor.changes:
            unknown.append(tensor.name)
        else:
            different.append(tensor.name)
        done += tensor.source.elements
        report(done / maker.layout.elements)
    return Verdict(
        metadata=metadata,
        same=tuple(same),
        different=tuple(different),
        compensated=tuple(unknown),
        whole=whole,
    )


def _chosen(parts: list[Rows], *, whole: bool) -> Iterator[Rows]:
    """All parts, or some, evenly spread, of which the first and the last are two."""
    if whole or len(parts) <= SAMPLES:
        yield from parts
        return
    for number in range(SAMPLES):
        yield parts[number * (len(parts) - 1) // (SAMPLES - 1)]


def _same(maker: _Maker, theirs: OpenFile, rows: Rows, stopped: Callable[[], bool]) -> bool:
    if stopped():
        raise Cancelled("the job was stopped.")
    return np.array_equal(maker.made(rows), theirs.read(rows.offset, rows.size))

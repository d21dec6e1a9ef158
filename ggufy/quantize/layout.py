"""What a quant's file will be, byte for byte, before its first tensor is made: its head, and where each tensor goes.

Metadata and order are llama-quantize's: the base's keys in their order, without those about being split, then the keys
that are set anew; tensors by layer and name. All reasons to refuse a base, a recipe or an imatrix are checked here.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.errors import CalibrationError, SourceError, UsageError
from ggufy.formats.gguf import MAGIC, GgufHead, TensorInfo, check_unquantized, packed_entry, packed_text, padded
from ggufy.llama.ggml import Ggml
from ggufy.models import registry
from ggufy.quantize.factors import Factors, Scaling
from ggufy.quantize.imatrix import Imatrix
from ggufy.quantize.recipe import Recipe, head_size, kept_keys, quant_metadata

CHUNK = 1 << 20  # weights that are kept together when a run ends early: two seconds of the slowest type
TILE = 1024  # rows of a compensated tensor that are made together, and kept together
PIECE = 1 << 16  # weights quantized at once: an eighth of a second for the slowest type, and 256 kB as F32
_Q2_K_S = 21  # the file type whose Q2_K tensors need an imatrix too
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_NEED_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")  # llama-quant.cpp


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of the new file."""

    source: TensorInfo
    source_offset: int  # in the base GGUF, bytes
    type: str
    offset: int  # in the new file, bytes
    size: int  # bytes
    weights: np.ndarray[Any, np.dtype[np.float32]] | None  # importance, F32 [matrices, columns]
    scale: float = 1.0  # the base's weights are multiplied by it
    factors: Factors | None = None  # and by these

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def changes(self) -> bool:
        return self.type != self.source.type or self.scale != 1 or self.factors is not None

    def matrices(self) -> Iterator[Rows]:
        """The rows of each matrix: of each expert, where there are any."""
        columns, rows = (*self.source.shape, 1)[:2]
        for matrix in range(self.source.elements // (columns * rows)):
            yield Rows(tensor=self, matrix=matrix, first=matrix * rows, count=rows)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a tensor, all of one matrix."""

    tensor: Tensor
    matrix: int
    first: int  # counted over all matrices
    count: int

    @property
    def columns(self) -> int:
        return self.tensor.source.shape[0]

    @property
    def weights(self) -> int:
        return self.count * self.columns

    @property
    def start(self) -> int:
        """Bytes from the tensor's first one, in the new file."""
        return self.first * self._row(self.tensor.size)

    @property
    def size(self) -> int:
        """Bytes in the new file."""
        return self.count * self._row(self.tensor.size)

    @property
    def offset(self) -> int:
        """Where they go in the new file, bytes."""
        return self.tensor.offset + self.start

    @property
    def source(self) -> tuple[int, int]:
        """Where they are in the base GGUF: offset and size, bytes."""
        row = self._row(self.tensor.source.size)
        return self.tensor.source_offset + self.first * row, self.count * row

    def split(self, weights: int) -> Iterator[Rows]:
        """The same in parts of at most so many weights, but at least a row."""
        step = max(1, weights // self.columns)
        for start in range(0, self.count, step):
            yield self.part(start, min(step, self.count - start))

    def part(self, start: int, count: int) -> Rows:
        """Some of them, counted from their first."""
        return replace(self, first=self.first + start, count=count)

    def _row(self, size: int) -> int:
        return size * self.columns // self.tensor.source.elements


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """The whole file."""

    head: bytes  # with the padding before the first tensor
    metadata: dict[str, Any]  # what `head` says, as far as read_head keeps it
    tensors: list[Tensor]
    size: int  # bytes

    @property
    def elements(self) -> int:
        return sum(tensor.source.elements for tensor in self.tensors)

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of all that is no tensor: the head, and the padding behind each tensor."""
        yield 0, self.head
        ends = [*(tensor.offset for tensor in self.tensors[1:]), self.size]
        for tensor, end in zip(self.tensors, ends, strict=True):
            yield tensor.offset + tensor.size, bytes(end - tensor.offset - tensor.size)

    def chunks(self, compensated: Collection[str] = ()) -> list[Rows]:
        """All rows, in the order of the file; `compensated` tensors in tiles."""
        return [
            chunk
            for tensor in self.tensors
            for rows in tensor.matrices()
            for chunk in rows.split(TILE * rows.columns if tensor.name in compensated else CHUNK)
        ]


def plan(
    base: Path,
    head: GgufHead,
    recipe: Recipe,
    *,
    ftype: int,
    imatrix: Imatrix | None,
    ggml: Ggml,
    scales: Mapping[str, float] | None = None,
    scaling: Scaling | None = None,
    facts: Mapping[str, str] | None = None,
) -> FileLayout:
    """The file that `recipe` makes of a base GGUF; tensors that it does not name stay as they are. `facts` are put
    into its metadata, behind what llama-quantize would write.

    `scales` are factors that tensors are multiplied by: an RWKV-6 that gets them was divided by them (see
    `mixes.rescaling`), and its metadata then says that it is not. `scaling` are factors of rows and columns, which
    cancel each other out; `imatrix` is then the scaled model's.

    Raises UsageError for a recipe, SourceError for a base and CalibrationError for an imatrix that cannot be used.
    """
    _check(base, head, recipe)
    scales = scales or {}
    facts_of = (imatrix.facts, len(imatrix.weights)) if imatrix else (None, 0)
    architecture = registry.named(head.metadata.get("general.architecture")) if scales else None
    rescaled = {architecture.rescale_key: 0} if architecture else {}
    new = quant_metadata(ftype, *facts_of) | rescaled | dict(facts or {})
    kept = kept_keys(head, new)
    with base.open("rb") as file:
        raw = file.read(head.metadata_end)
    entries = [raw[slice(*head.entries[key])] for key in kept] + [packed_entry(*item) for item in new.items()]
    tensors, infos, offset = [], [], 0
    for name in sorted(head.tensors, key=_place):
        source = head.tensors[name]
        kind = recipe.get(name, source.type).upper()
        size = _checked_size(source, kind, base, ggml)
        weights = _weights(source, kind, ftype, imatrix) if kind != source.type else None
        tensors.append((source, kind, offset, size, weights))
        number = ggml.types[kind].number if kind in ggml.types else source.number
        shape = struct.pack(f"<I{len(source.shape)}Q", len(source.shape), *source.shape)
        infos.append(packed_text(name) + shape + struct.pack("<IQ", number, offset))
        offset += padded(size, head.alignment)
    start = MAGIC + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + b"".join(infos)
    start = start.ljust(head_size(head, new), b"\0")
    return FileLayout(
        head=start,
        metadata={key: head.metadata[key] for key in kept} | new,
        tensors=[
            Tensor(
                source=source,
                source_offset=head.data_start + source.offset,
                type=kind,
                offset=len(start) + offset,
                size=size,
                weights=weights,
                scale=scales.get(source.name, 1.0),
                factors=(scaling or {}).get(source.name),
            )
            for source, kind, offset, size, weights in tensors
        ],
        size=len(start) + offset,
    )


def _check(base: Path, head: GgufHead, recipe: Recipe) -> None:
    """Raises SourceError or UsageError for a base and a recipe that cannot go together."""
    if head.metadata.get("split.count", 1) not in (0, 1):
        raise SourceError(
            "{base} is one part of a split model: merge the parts with llama-gguf-split first.", base=base
        )
    if unknown := sorted(set(recipe) - set(head.tensors)):
        raise UsageError(
            "the recipe names the tensor {tensor}, which {base} has not: correct the recipe.",
            tensor=repr(unknown[0]),
            base=base,
        )


def _place(name: str) -> tuple[int, bytes]:
    """llama.cpp's order of tensors: those of no layer first, then layer by layer."""
    layer = re.match(r"blk\.(\d+)", name)
    return (int(layer[1]) if layer else -1, name.encode())


def _checked_size(source: TensorInfo, kind: str, base: Path, ggml: Ggml) -> int:
    if kind == source.type:
        return source.size
    check_unquantized(source, base)
    if kind not in ggml.types:
        raise UsageError(
            "the recipe wants {type} for {tensor}: known types are {types}.",
            type=kind,
            tensor=source.name,
            types=", ".join(ggml.types),
        )
    made = ggml.types[kind]
    if source.shape[0] % made.block:
        raise UsageError(
            "{tensor} is {width} wide and cannot become {type}, which needs a multiple of {block}: choose another "
            "type for it.",
            tensor=source.name,
            width=source.shape[0],
            type=kind,
            block=made.block,
        )
    return made.bytes_of(source.elements)


def _weights(
    source: TensorInfo, kind: str, ftype: int, imatrix: Imatrix | None
) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The tensor's importance, by llama-quantize's rules: embedding and head never need any."""
    columns, matrices = source.shape[0], math.prod(source.shape[2:])
    weights = imatrix.weights.get(source.name) if imatrix else None
    if weights is not None and weights.size != columns * matrices:
        if source.name not in _EMBEDDINGS:
            raise CalibrationError(
                "the imatrix has {found} values for {tensor}, which has {expected} columns: make one of this model.",
                found=weights.size,
                tensor=source.name,
                expected=columns * matrices,
            )
        weights = None
    if weights is None and needs_imatrix(source.name, kind, ftype):
        if imatrix is None:
            raise CalibrationError(
                "{tensor} needs an imatrix to become {type}, and there is none: make an imatrix of this model, or "
                "choose another type.",
                tensor=source.name,
                type=kind,
            )
        raise CalibrationError(
            "{tensor} needs an imatrix to become {type}, and {file} has no data for it: make an imatrix of this "
            "model, or choose another type.",
            tensor=source.name,
            type=kind,
            file=imatrix.facts.file,
        )
    return None if weights is None else weights.reshape(matrices, columns)


def needs_imatrix(name: str, kind: str, ftype: int) -> bool:
    """Whether llama-quantize makes no such tensor without imatrix data for it."""
    if name in (*_EMBEDDINGS, "output.weight"):
        return kind in ("IQ1_S", "IQ2_XXS", "IQ2_XS")  # where ggml itself would end the process
    return kind in _NEED_IMATRIX or (kind == "Q2_K" and ftype == _Q2_K_S)

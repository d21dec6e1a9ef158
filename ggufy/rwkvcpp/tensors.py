"""Which tensors an RWKV has in a file of rwkv.cpp, and which of BlinkDL's each is made from.

One row for each kind of tensor of a block: BlinkDL's name, its shape in a checkpoint, its shape in the file, and what
happens to its values on the way (convert.py). Shapes are torch's, outermost first, in symbols: C width, H heads of N
values, F width of the channel mix, and ranks of low-rank matrices. A loader ends its process over a tensor that it
does not know, so a file holds these and no others. Tables and changes are those of python/convert_pytorch_to_ggml.py
and rwkv_model_loading.inc of RWKV/rwkv.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ggufy.core.errors import CheckpointError, SourceError
from ggufy.core.messages import Message
from ggufy.formats.rwkvcpp import RwkvcppHead
from ggufy.models import registry
from ggufy.models.architecture import (
    DAMAGED,
    Shapes,
    block_numbers,
    brief,
    check_sources,
    refuse_strangers,
    shape_text,
    size_of,
)
from ggufy.rwkvcpp.writing import planned_head

FUSED = "att.x_rwkvag"
_FUSED_SOURCES = tuple(f"att.x_{letter}" for letter in "rwkvag")


@dataclass(frozen=True)
class Row:
    """One kind of tensor of a block."""

    target: str  # its name in the file, without the block's prefix
    sources: tuple[str, ...]
    source_shape: tuple[str, ...]  # of each source
    shape: tuple[str, ...]
    change: str = ""  # of convert.CHANGES; empty: the values stay, in their order


def _rows(text: str) -> tuple[Row, ...]:
    """A table of lines "name shape shape change"; the second shape and the change may be missing."""
    found = []
    for line in text.strip().splitlines():
        name, before, *rest = line.split()
        after, change = (*rest, "", "")[:2]
        shape = tuple(before.split(","))
        found.append(Row(name, (name,), shape, tuple(after.split(",")) if after else shape, change))
    return tuple(found)


_ENDS = {"emb.weight": ("V", "C"), "ln_out.weight": ("C",), "ln_out.bias": ("C",), "head.weight": ("V", "C")}
_FIRST = _rows("""
    ln0.weight  C
    ln0.bias    C
""")
_NORMS = _rows("""
    ln1.weight             C
    ln1.bias               C
    ln2.weight             C
    ln2.bias               C
    att.key.weight         C,C
    att.value.weight       C,C
    att.receptance.weight  C,C
    att.output.weight      C,C
    ffn.key.weight         F,C
    ffn.value.weight       C,F
""")
_HEAD_NORM = _rows("""
    att.ln_x.weight  C
    att.ln_x.bias    C
""")
_MIXES = _rows("""
    att.time_mix_k         C
    att.time_mix_v         C
    att.time_mix_r         C
    ffn.time_mix_k         C
    ffn.time_mix_r         C
    ffn.receptance.weight  C,C
""")
_BLOCKS = {
    "4": _NORMS + _MIXES + _rows("""
    att.time_decay  C  C  minus_exp
    att.time_first  C
"""),
    "5.1": _NORMS + _MIXES + _HEAD_NORM + _rows("""
    att.time_decay  H  H,1,1  exp_minus_exp
    att.time_first  H  H,1,1  exp
"""),
    "5.2": _NORMS + _MIXES + _HEAD_NORM + _rows("""
    att.time_mix_g   C
    att.gate.weight  C,C
    att.time_decay   H,N  H,N,1  exp_minus_exp
    att.time_faaaa   H,N  H,N,1
"""),
    "6": _NORMS + _HEAD_NORM + _rows("""
    att.time_maa_x         C
    att.time_maa_w         C
    att.time_maa_k         C
    att.time_maa_v         C
    att.time_maa_r         C
    att.time_maa_g         C
    att.time_maa_w1        C,5mix  5mix,C  transposed
    att.time_maa_w2        5,mix,C  5,C,mix  transposed
    att.time_decay         C        H,N,1
    att.time_decay_w1      C,decay  decay,C  transposed
    att.time_decay_w2      decay,C  C,decay  transposed
    att.time_faaaa         H,N      H,N,1
    att.gate.weight        C,C
    ffn.time_maa_k         C
    ffn.time_maa_r         C
    ffn.receptance.weight  C,C
"""),
    "7": _NORMS + _HEAD_NORM + (Row(FUSED, _FUSED_SOURCES, ("C",), ("6", "1", "C"), "stacked"),) + _rows("""
    att.w0   C        1,1,C
    att.w1   C,decay  decay,C  transposed
    att.w2   decay,C  C,decay  transposed
    att.a0   C        1,1,C
    att.a1   C,iclr   iclr,C   transposed
    att.a2   iclr,C   C,iclr   transposed
    att.g1   C,gate   gate,C   transposed
    att.g2   gate,C   C,gate   transposed
    att.k_k  C        1,1,C
    att.k_a  C        1,1,C
    att.r_k  H,N
    ffn.x_k  C        1,1,C
"""),
}  # fmt: skip
# Of the blocks of RWKV-7 behind the first, where nobody reads what some checkpoints have.
_RESIDUAL = _rows("""
    att.v0  C        1,1,C
    att.v1  C,value  value,C  transposed
    att.v2  value,C  C,value  transposed
""")
#: What rwkv.cpp calls the versions that the package `rwkv` calls otherwise.
_VERSIONS = {"4": "4", "5": "5.1", "5.2": "5.2", "6": "6", "7": "7"}
# Parts of the names of tensors that are F32 in every file (convert_pytorch_to_ggml.py), and that are never quantized
# (rwkv_quantize.inc).
_ALWAYS_F32 = (".time_", ".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0")
_NEVER_QUANTIZED = re.compile(r"(?:emb|head)\.weight|.*att\.(?:[vgaw][12]|r_k).*")


@dataclass(frozen=True)
class Planned:
    """One tensor of a file and what it is made from."""

    name: str
    sources: tuple[str, ...]  # BlinkDL's names
    source_shape: tuple[int, ...]  # of each, in a checkpoint
    shape: tuple[int, ...]  # in the file
    change: str  # see Row


@dataclass(frozen=True)
class RwkvcppModel:
    """An RWKV as rwkv.cpp knows it."""

    version: str  # 4, 5.1, 5.2, 6 or 7, as rwkv.cpp counts
    layers: int
    sizes: Mapping[str, int]  # what the symbols stand for

    @property
    def vocab_size(self) -> int:
        return self.sizes["V"]

    @property
    def width(self) -> int:
        return self.sizes["C"]

    def tensors(self) -> Iterator[Planned]:
        """All of them."""
        for name, shape in _ENDS.items():
            yield Planned(name, (name,), self._shape(shape), self._shape(shape), "")
        for block in range(self.layers):
            rows = _BLOCKS[self.version] + (() if block else _FIRST)
            rows += _RESIDUAL if block and self.version == "7" else ()
            for row in rows:
                prefix = f"blocks.{block}."
                sources = tuple(prefix + source for source in row.sources)
                shapes = self._shape(row.source_shape), self._shape(row.shape)
                yield Planned(prefix + row.target, sources, *shapes, row.change)

    def ordered(self, names: Iterable[str]) -> list[Planned]:
        """All of them, in the order in which a checkpoint lists the first that each is made from."""
        places: dict[str, int] = {name: at for at, name in enumerate(names)}
        return sorted(self.tensors(), key=lambda one: min(places[source] for source in one.sources))

    def head(self, planned: Iterable[Planned], type_name: str) -> RwkvcppHead:
        """What a file of the type FP32 or FP16 with these tensors, in this order, says about itself."""
        tensors = ((one.name, file_type(one.name, one.shape, type_name), one.shape) for one in planned)
        sizes = {"vocab_size": self.vocab_size, "width": self.width, "layers": self.layers}
        return planned_head(tensors, type_name=type_name, **sizes)

    def _shape(self, symbols: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self.sizes[symbol] if symbol in self.sizes else int(symbol) for symbol in symbols)


def measure(shapes: Shapes) -> RwkvcppModel:
    """What the tensors of a checkpoint (BlinkDL's names to torch shapes) are to rwkv.cpp.

    Raises CheckpointError for anything but a whole model that rwkv.cpp can run.
    """
    registry.check_rwkv(shapes)
    known = registry.version_of(shapes)
    if known == "5.1":
        raise CheckpointError(
            "this is RWKV-5.1 with a gate and one decay a head, which rwkv.cpp cannot run: make GGUF files of it."
        )
    if known not in _VERSIONS:
        raise CheckpointError("this is a variety of RWKV that rwkv.cpp does not know: choose an RWKV-4 to RWKV-7.")
    version, layers = _VERSIONS[known], 1 + max(block_numbers(shapes))
    model = RwkvcppModel(version, layers, _sizes(shapes, version, layers))
    check_sources(shapes, ((source, one.source_shape) for one in model.tensors() for source in one.sources))
    unread = {f"blocks.0.{row.target}" for row in _RESIDUAL} if version == "7" else set()
    refuse_strangers(shapes, [name for name in unused(shapes, model) if name not in unread], f"RWKV-{known}")
    return model


def check_file(head: RwkvcppHead, name: Path | str) -> RwkvcppModel:
    """What the tensors of a file are. Raises SourceError for one over which rwkv.cpp's loader would end its process:
    with a tensor too many or too few, or of another shape than its header and the others say."""
    model = model_of_file(head)
    expected = {one.name: one.shape for one in model.tensors()}
    for one, shape in expected.items():
        if one not in head.records:
            refuse_file(name, Message("it has no tensor {name}", name=one))
        if (found := head.records[one].shape) != shape:
            wrong = Message(
                "tensor {name} has the shape {shape}, but {expected} was expected",
                name=one,
                shape=shape_text(found),
                expected=shape_text(shape),
            )
            refuse_file(name, wrong)
    if strangers := [one for one in head.records if one not in expected]:
        refuse_file(name, Message("rwkv.cpp knows no tensor {name}", name=brief(strangers[0])))
    return model


def model_of_file(head: RwkvcppHead) -> RwkvcppModel:
    """The same as far as the header and the tensors of the first two blocks tell; nothing is checked."""
    rows = _BLOCKS[head.rwkv] + _RESIDUAL
    sizes = dict.fromkeys((symbol for row in rows for symbol in row.shape if symbol.isalpha()), 1)
    for row in rows[::-1]:
        record = head.records.get(f"blocks.{int(row in _RESIDUAL)}.{row.target}")
        if record is not None and len(record.shape) == len(row.shape):
            sizes |= {symbol: size for symbol, size in zip(row.shape, record.shape, strict=True) if symbol in sizes}
    sizes |= {"V": head.vocab_size, "C": head.width, "5mix": 5 * sizes.get("mix", 0)}
    return RwkvcppModel(head.rwkv, head.layers, sizes | {"N": head.width // sizes.get("H", 1)})


def refuse_file(name: Path | str, why: str) -> NoReturn:
    """Raises SourceError."""
    raise SourceError("{name} is not a sound file of rwkv.cpp ({why}): fetch or convert it again.", name=name, why=why)


def unused(names: Iterable[str], model: RwkvcppModel) -> list[str]:
    """Those that no tensor of a file is made from."""
    used = {source for one in model.tensors() for source in one.sources}
    return [name for name in names if name not in used]


def _sizes(shapes: Shapes, version: str, layers: int) -> dict[str, int]:
    def size(name: str, axis: int, block: int = 0) -> int:
        return size_of(shapes, f"blocks.{block}.{name}", axis)

    width = size_of(shapes, "emb.weight", 1)
    sizes = {"V": size_of(shapes, "emb.weight", 0), "C": width, "F": size("ffn.key.weight", 0)}
    match version:
        case "4":
            return sizes
        case "5.1":
            heads = math.prod(shapes.get("blocks.0.att.time_decay", ()))
        case "5.2" | "6":
            heads = _heads(width, size("att.time_faaaa", 1))
        case _:
            heads = _heads(width, size("att.r_k", 1))
    if not heads or width % heads:
        raise CheckpointError(
            "the width {width} does not fit its {heads} heads: {damaged}.", width=width, heads=heads, damaged=DAMAGED
        )
    sizes |= {"H": heads, "N": width // heads}
    if version == "6":
        mix = size("att.time_maa_w2", 1)
        sizes |= {"mix": mix, "5mix": 5 * mix, "decay": size("att.time_decay_w1", 1)}
    if version == "7":
        sizes |= {"decay": size("att.w1", 1), "iclr": size("att.a1", 1), "gate": size("att.g1", 1)}
        sizes |= {"value": size("att.v1", 1, block=1)} if layers > 1 else {}
    return sizes


def _heads(width: int, size: int) -> int:
    return 0 if width % size else width // size


# ---- types


def file_type(name: str, shape: tuple[int, ...], type_name: str) -> str:
    """The type of a tensor in a file of the type FP32 or FP16."""
    return "FP32" if len(shape) < 2 or any(part in name for part in _ALWAYS_F32) else type_name


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether rwkv.cpp quantizes a tensor of this name."""
    return len(shape) == 2 and not _NEVER_QUANTIZED.fullmatch(name)

"""RWKV-6 (x060) and RWKV-7 (x070) by name and shape: what a checkpoint is, and what each tensor becomes in GGUF.

The tables below have one row for each kind of tensor: its GGUF name, the names that it is made from, their shape in
symbols, and how it is laid out anew. `detect` reads every size from the shapes and then compares all tensors with the
table; nothing is guessed from the width. Shapes are torch's, outermost first; GGUF lists the same innermost first.
Names, layouts and the tensors that stay F32 are those of llama.cpp's converter (conversion/rwkv.py and
conversion/base.py), whose graphs read these files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from ggufy.core.errors import CheckpointError
from ggufy.core.messages import Message

Shapes = Mapping[str, tuple[int, ...]]


class Arrangement(Enum):
    """How a tensor is laid out anew."""

    AS_IS = "as is"
    FLAT = "flattened to one dimension"
    TRANSPOSED = "rows and columns exchanged"
    INNER_TRANSPOSED = "the last two of three dimensions exchanged"
    STACKED = "n vectors of C values, stacked to n x 1 x 1 x C"


@dataclass(frozen=True)
class TensorRow:
    """One kind of tensor; `sources` and `target` lack the block's prefix, `shape` holds symbols (see `_sizes`)."""

    target: str
    sources: tuple[str, ...]
    shape: str
    layout: Arrangement = Arrangement.AS_IS
    f32: bool = False


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the GGUF: `shape` is its own, `source_shape` that of each source without dimensions of 1."""

    name: str
    sources: tuple[str, ...]
    source_shape: tuple[int, ...]
    layout: Arrangement
    shape: tuple[int, ...]
    f32: bool
    block: int | None


@dataclass(frozen=True)
class Architecture:
    """What the shapes say. `ranks`: `mix`, `decay` for version 6; `decay`, `iclr`, `value`, `gate` for version 7."""

    version: str
    arch: str
    layers: int
    width: int
    vocab_size: int
    ffn: int
    head_size: int
    ranks: dict[str, int] = field(hash=False)
    parameters: int = 0


def _row(
    target: str, sources: str, shape: str, layout: Arrangement = Arrangement.AS_IS, *, f32: bool = False
) -> TensorRow:
    return TensorRow(target, tuple(sources.split()), shape, layout, f32)


_MODEL = (
    _row("token_embd.weight", "emb.weight", "V C"),
    _row("token_embd_norm.weight", "blocks.0.ln0.weight", "C", Arrangement.FLAT),
    _row("token_embd_norm.bias", "blocks.0.ln0.bias", "C", Arrangement.FLAT),
    _row("output_norm.weight", "ln_out.weight", "C", Arrangement.FLAT),
    _row("output_norm.bias", "ln_out.bias", "C", Arrangement.FLAT),
    _row("output.weight", "head.weight", "V C"),
)
_BLOCK_COMMON = (
    _row("attn_norm.weight", "ln1.weight", "C", Arrangement.FLAT),
    _row("attn_norm.bias", "ln1.bias", "C", Arrangement.FLAT),
    _row("attn_norm_2.weight", "ln2.weight", "C", Arrangement.FLAT),
    _row("attn_norm_2.bias", "ln2.bias", "C", Arrangement.FLAT),
    _row("time_mix_receptance.weight", "att.receptance.weight", "C C"),
    _row("time_mix_key.weight", "att.key.weight", "C C"),
    _row("time_mix_value.weight", "att.value.weight", "C C"),
    _row("time_mix_output.weight", "att.output.weight", "C C"),
    _row("time_mix_ln.weight", "att.ln_x.weight", "C", Arrangement.FLAT),
    _row("time_mix_ln.bias", "att.ln_x.bias", "C", Arrangement.FLAT),
    _row("channel_mix_key.weight", "ffn.key.weight", "F C"),
    _row("channel_mix_value.weight", "ffn.value.weight", "C F"),
)
_BLOCK_6 = (
    _row("time_mix_lerp_x.weight", "att.time_maa_x", "C", Arrangement.FLAT),
    _row(
        "time_mix_lerp_fused.weight",
        "att.time_maa_w att.time_maa_k att.time_maa_v att.time_maa_r att.time_maa_g",
        "C",
        Arrangement.STACKED,
        f32=True,
    ),
    _row("time_mix_w1.weight", "att.time_maa_w1", "C 5mix", Arrangement.TRANSPOSED, f32=True),
    _row("time_mix_w2.weight", "att.time_maa_w2", "5 mix C", Arrangement.INNER_TRANSPOSED, f32=True),
    _row("time_mix_decay.weight", "att.time_decay", "C", Arrangement.FLAT),
    _row("time_mix_decay_w1.weight", "att.time_decay_w1", "C decay", Arrangement.TRANSPOSED, f32=True),
    _row("time_mix_decay_w2.weight", "att.time_decay_w2", "decay C", Arrangement.TRANSPOSED, f32=True),
    _row("time_mix_first.weight", "att.time_faaaa", "H N", f32=True),
    _row("time_mix_gate.weight", "att.gate.weight", "C C"),
    _row("channel_mix_lerp_k.weight", "ffn.time_maa_k", "C", Arrangement.FLAT),
    _row("channel_mix_lerp_r.weight", "ffn.time_maa_r", "C", Arrangement.FLAT),
    _row("channel_mix_receptance.weight", "ffn.receptance.weight", "C C"),
)
_BLOCK_7 = (
    _row(
        "time_mix_lerp_fused.weight",
        "att.x_r att.x_w att.x_k att.x_v att.x_a att.x_g",
        "C",
        Arrangement.STACKED,
        f32=True,
    ),
    _row("time_mix_w0.weight", "att.w0", "C", Arrangement.FLAT),
    _row("time_mix_w1.weight", "att.w1", "C decay", Arrangement.TRANSPOSED, f32=True),
    _row("time_mix_w2.weight", "att.w2", "decay C", Arrangement.TRANSPOSED, f32=True),
    _row("time_mix_a0.weight", "att.a0", "C", Arrangement.FLAT),
    _row("time_mix_a1.weight", "att.a1", "C iclr", Arrangement.TRANSPOSED),
    _row("time_mix_a2.weight", "att.a2", "iclr C", Arrangement.TRANSPOSED),
    _row("time_mix_v0.weight", "att.v0", "C", Arrangement.FLAT),
    _row("time_mix_v1.weight", "att.v1", "C value", Arrangement.TRANSPOSED),
    _row("time_mix_v2.weight", "att.v2", "value C", Arrangement.TRANSPOSED),
    _row("time_mix_g1.weight", "att.g1", "C gate", Arrangement.TRANSPOSED),
    _row("time_mix_g2.weight", "att.g2", "gate C", Arrangement.TRANSPOSED),
    _row("time_mix_k_k.weight", "att.k_k", "C", Arrangement.FLAT),
    _row("time_mix_k_a.weight", "att.k_a", "C", Arrangement.FLAT),
    _row("time_mix_r_k.weight", "att.r_k", "H N", Arrangement.FLAT),
    _row("channel_mix_lerp_k.weight", "ffn.x_k", "C", Arrangement.FLAT),
)
# Block 0 of RWKV-7 has no value residual. llama.cpp's loader wants v0, v1, v2 there all the same, of the ranks of a0,
# a1, a2, and never uses them; whatever a checkpoint holds under their names is ignored.
_FIRST_BLOCK_7 = {
    "time_mix_v0.weight": _row("time_mix_v0.weight", "att.a0", "C", Arrangement.FLAT),
    "time_mix_v1.weight": _row("time_mix_v1.weight", "att.a1", "C iclr", Arrangement.TRANSPOSED),
    "time_mix_v2.weight": _row("time_mix_v2.weight", "att.a2", "iclr C", Arrangement.TRANSPOSED),
}
_IGNORED_7 = {"blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"}


def detect(shapes: Shapes) -> Architecture:
    """What the tensors of a checkpoint (names to torch shapes) are.

    Raises CheckpointError for anything but a whole RWKV-6 or RWKV-7: an older RWKV, DeepEmbed, another model, a
    missing tensor or a wrong shape (with its name, and what was found and expected).
    """
    blocks = [int(match[1]) for name in shapes if (match := re.match(r"blocks\.([0-9]{1,6})\.", name))]
    version = _version(shapes, has_blocks=bool(blocks))
    vocab_size, width = _size(shapes, "emb.weight", 0), _size(shapes, "emb.weight", 1)
    layers = 1 + max(blocks)
    if version == "6":
        head_size = _size(shapes, "blocks.0.att.time_faaaa", -1)
        ranks = {
            "mix": _size(shapes, "blocks.0.att.time_maa_w2", 1),
            "decay": _size(shapes, "blocks.0.att.time_decay_w1", 1),
        }
    else:
        head_size = _size(shapes, "blocks.0.att.r_k", -1)
        ranks = {
            "decay": _size(shapes, "blocks.0.att.w1", 1),
            "iclr": _size(shapes, "blocks.0.att.a1", 1),
            # A single block has no value residual, but the key is required.
            "value": _size(shapes, "blocks.1.att.v1" if layers > 1 else "blocks.0.att.a1", 1),
            "gate": _size(shapes, "blocks.0.att.g1", 1),
        }
    if width % head_size:
        raise CheckpointError(
            "the width {width} is not a multiple of the head size {size}: {damaged}.",
            width=width,
            size=head_size,
            damaged=_DAMAGED,
        )
    architecture = Architecture(
        version=version,
        arch=f"rwkv{version}",
        layers=layers,
        width=width,
        vocab_size=vocab_size,
        ffn=_size(shapes, "blocks.0.ffn.key.weight", 0),
        head_size=head_size,
        ranks=ranks,
    )
    used = _check(shapes, architecture)
    parameters = sum(math.prod(shapes[name]) for name in used)
    return replace(architecture, parameters=parameters)


def version_of(shapes: Shapes) -> str:
    """The version of RWKV that the names belong to: 4, 5, 5.1, 5.2, 6 or 7, or nothing if it is none of these.

    The versions 5.x are told apart as the package `rwkv` does: 5.1 added a gate, 5.2 a decay for each channel.
    """
    if any(name.endswith((".att.r_k", ".att.k_k", ".att.x_r")) for name in shapes):
        return "7"
    if any(".att.time_maa_" in name for name in shapes):
        return "6"
    if not any(name.endswith(".att.time_mix_k") for name in shapes):
        return ""
    if not any(".att.ln_x." in name for name in shapes):
        return "4"
    if any(name.endswith(".att.time_decay") and len(_squeezed(shape)) > 1 for name, shape in shapes.items()):
        return "5.2"
    return "5.1" if any(name.endswith(".att.gate.weight") for name in shapes) else "5"


def tensor_plans(architecture: Architecture) -> Iterator[TensorPlan]:
    """Every tensor of the GGUF, in the order in which it is written: embedding, blocks, head."""
    sizes = _sizes(architecture)
    rows = _BLOCK_COMMON + (_BLOCK_6 if architecture.version == "6" else _BLOCK_7)
    yield from (_plan(row, sizes, None) for row in _MODEL[:3])
    for block in range(architecture.layers):
        for row in rows:
            if architecture.version == "7" and block == 0:
                row = _FIRST_BLOCK_7.get(row.target, row)
            yield _plan(row, sizes, block)
    yield from (_plan(row, sizes, None) for row in _MODEL[3:])


def leftovers(shapes: Shapes, architecture: Architecture) -> list[str]:
    """Names in the checkpoint that no tensor of the GGUF is made from, without those that are known to be unused."""
    used = {source for plan in tensor_plans(architecture) for source in plan.sources}
    ignored = _IGNORED_7 if architecture.version == "7" else set()
    return [name for name in shapes if name not in used and name not in ignored]


_DAMAGED = Message("the checkpoint is damaged, or a variety of RWKV that ggufy does not know")


def _version(shapes: Shapes, *, has_blocks: bool) -> str:
    if not has_blocks:
        found = ", ".join(repr(name[:80])[1:-1] for name in list(shapes)[:3])  # a stranger's texts: keep them tame
        raise CheckpointError(
            "this is not an RWKV checkpoint (its first tensors are {names}): choose an RWKV-6 or RWKV-7 .pth.",
            names=found,
        )
    if any(".ffn.s_emb" in name for name in shapes):
        raise CheckpointError(
            "this is an RWKV-7 with DeepEmbed, which llama.cpp cannot run: choose a checkpoint without DeepEmbed."
        )
    version = version_of(shapes)
    if version in ("6", "7"):
        return version
    if version:
        raise CheckpointError(
            "this is RWKV-{version}, which llama.cpp cannot run: choose an RWKV-6 or RWKV-7 checkpoint.",
            version=version,
        )
    raise CheckpointError("this is a variety of RWKV that ggufy does not know: choose an RWKV-6 or RWKV-7 checkpoint.")


def _size(shapes: Shapes, name: str, axis: int) -> int:
    """One size of one tensor; raises CheckpointError if there is no such tensor or axis, or if it is empty."""
    if name not in shapes:
        raise CheckpointError("the checkpoint has no tensor {name}: {damaged}.", name=name, damaged=_DAMAGED)
    shape = shapes[name]
    if len(shape) <= max(axis, 1) or 0 in shape:
        raise CheckpointError(
            "{name} has the shape {shape}, not that of a matrix: {damaged}.",
            name=name,
            shape=_text(shape),
            damaged=_DAMAGED,
        )
    return shape[axis]


def _check(shapes: Shapes, architecture: Architecture) -> set[str]:
    """Compares every source with the table; gives the names of all of them."""
    used = set()
    for plan in tensor_plans(architecture):
        for source in plan.sources:
            if source not in shapes:
                raise CheckpointError("the checkpoint has no tensor {name}: {damaged}.", name=source, damaged=_DAMAGED)
            found = shapes[source]
            # Trainers save vectors as 1 x 1 x C or as C; both hold the same values in the same order.
            if _squeezed(found) != _squeezed(plan.source_shape):
                raise CheckpointError(
                    "{name} has the shape {shape}, but {expected} was expected: {damaged}.",
                    name=source,
                    shape=_text(found),
                    expected=_text(plan.source_shape),
                    damaged=_DAMAGED,
                )
            used.add(source)
    return used


def _sizes(architecture: Architecture) -> dict[str, int]:
    """The value of each symbol: V tokens, C width, F width of the channel mix, H heads of N values, and the ranks."""
    sizes = {"V": architecture.vocab_size, "C": architecture.width, "F": architecture.ffn, "5": 5}
    sizes |= {"H": architecture.width // architecture.head_size, "N": architecture.head_size} | architecture.ranks
    if architecture.version == "6":
        sizes["5mix"] = 5 * architecture.ranks["mix"]
    return sizes


def _plan(row: TensorRow, sizes: Mapping[str, int], block: int | None) -> TensorPlan:
    before = tuple(sizes[symbol] for symbol in row.shape.split())
    match row.layout:
        case Arrangement.FLAT:
            after: tuple[int, ...] = (math.prod(before),)
        case Arrangement.STACKED:
            after = (len(row.sources), 1, 1, *before)
        case Arrangement.TRANSPOSED | Arrangement.INNER_TRANSPOSED:
            after = (*before[:-2], before[-1], before[-2])
        case Arrangement.AS_IS:
            after = before
    name = row.target if block is None else f"blk.{block}.{row.target}"
    sources = row.sources if block is None else tuple(f"blocks.{block}.{source}" for source in row.sources)
    return TensorPlan(name, sources, before, row.layout, after, row.f32 or len(after) == 1, block)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or Message("of a single number")

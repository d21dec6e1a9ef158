"""Adapters: what was trained beside a model, told from the names and shapes in its file and, of a folder that Hugging
Face's PEFT has saved, from its adapter_config.json. No values are read here; merge.py merges them.

A trainer names its tensors after the layer that they change: `blocks.0.att.key.lora_A`, with its wrapper's prefix
before that, or `.weight` after it. What has no such ending is a whole tensor, trained along with the adapter, which
replaces the model's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from ggufy.core.errors import SourceError, UsageError
from ggufy.models.adapter_config import AdapterConfig, tame
from ggufy.models.architecture import Shapes, block_numbers, squeezed
from ggufy.models.names.blinkdl import from_blinkdl
from ggufy.models.names.fla import from_fla_6, from_fla_7
from ggufy.models.names.rwkv_rs import from_rwkv_rs
from ggufy.models.origin import Origin


class Formula(Enum):
    """How a tensor W [out, in] of the model changes. Indices: o of out, i of in; block (a, b) of r x r values of W."""

    LORA = "W + scale B A, A [r, in], B [out, r]"
    DORA = "M V / (norms of V's columns + 1e-6), V = W + scale B A, M [1, in]"
    PISSA = "W - B0 A0 + B A"
    ROWS = "W[o, i] + D[i mod r, o mod m], D [r, m]"
    COLUMN_BLOCKS = "W + W D[b] + D[b] in each block, D [in / r, r, r]"
    ROW_BLOCKS = "W + W D[a] + D[a] in each block, D [out / r, r, r]"
    WHOLE = "the adapter's own tensor"


SCALED = frozenset({Formula.LORA, Formula.DORA})
_BLOCKS = frozenset({Formula.COLUMN_BLOCKS, Formula.ROW_BLOCKS})
# What people call it, by the endings of the tensors of a layer, in the order in which its formula takes them.
_KINDS = {
    ("lora_A", "lora_B"): ("LoRA", Formula.LORA),
    ("lora_A", "lora_B", "lora_M"): ("DoRA", Formula.DORA),
    ("lora_A", "lora_B", "init_lora_A", "init_lora_B"): ("PiSSA", Formula.PISSA),
    ("bone",): ("Bone", Formula.ROWS),
    ("disha",): ("DiSHA", Formula.ROWS),
    ("bone_block",): ("Bone", Formula.ROWS),
    ("miss_block",): ("MiSS", Formula.ROWS),
}
_OF_PEFT = ("bone_block", "miss_block")  # the same, as Hugging Face's PEFT names them
_ENDINGS = sorted({ending for endings in _KINDS for ending in endings})
_LAYER = re.compile(rf"(.+)\.({'|'.join(_ENDINGS)})(?:\.default)?(?:\.weight)?")
_WRAPPERS = re.compile(r"^(?:(?:base_model\.model|_orig_mod|_forward_module|module|model|rwkv7|rwkv)\.)+")
_PARTED = re.compile(r"\.attn\.x_(?:proj|x|bias)\b")  # fla's, which hold several of BlinkDL's
_LAYER_SHAPE = (2, 3)  # any that shows whether rows and columns are exchanged


@dataclass(frozen=True)
class Part:
    """What an adapter makes of one tensor of the model."""

    formula: Formula
    tensors: tuple[str, ...]  # names in the adapter's files, in the order in which the formula takes them
    shapes: tuple[tuple[int, ...], ...]  # of these
    transposed: bool = False  # it was trained beside a layout that has this tensor's rows as columns

    @property
    def rank(self) -> int:
        """Its r; 0 of a whole tensor."""
        return 0 if self.formula is Formula.WHOLE else self.shapes[0][-1 if self.formula in _BLOCKS else 0]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One adapter, before any value is read."""

    name: str  # its file's or folder's, for sentences
    kind: str  # for people
    parts: Mapping[str, Part]  # by BlinkDL's name of the tensor that each changes
    own_scale: float | None = None  # as its configuration says
    mini: int = 0  # columns of D that stand for all, as its configuration says

    @property
    def rank(self) -> int:
        return max(part.rank for part in self.parts.values())

    @property
    def asks_alpha(self) -> bool:
        """True if merging needs alpha, and the adapter does not say it."""
        return self.own_scale is None and any(part.formula in SCALED for part in self.parts.values())

    def scale(self, given: float | None, alpha: float | None) -> float:
        """What B A is multiplied with: as given, or as the adapter says, or alpha / r; 1 where nothing is.

        Raises UsageError if it is not known, and for a scale of what has none.
        """
        ranks = {part.rank for part in self.parts.values() if part.formula in SCALED}
        if given is not None and not ranks:
            raise UsageError("{name} ({kind}) has no scale: leave it out.", name=self.name, kind=self.kind)
        known = given if given is not None else 1.0 if not ranks else self.own_scale
        if known is None and alpha is not None and len(ranks) == 1:
            known = alpha / max(ranks)
        if known is None:
            raise UsageError(
                "{name} is a {kind} of rank {rank} that does not say its alpha: look up what it was trained with, and "
                "give {LORA} with :SCALE behind its name, which is alpha / rank, or {LORA_ALPHA}.",
                name=self.name,
                kind=self.kind,
                rank=" / ".join(map(str, sorted(ranks))),
            )
        return known


def describe_adapter(shapes: Shapes, name: str, config: AdapterConfig | None = None) -> Adapter:
    """What the tensors of an adapter are; `shapes` has those of a PiSSA's init file too.

    Raises SourceError for what is no adapter, or none that can be merged.
    """
    _check_is_adapter(shapes, name)
    layers: dict[str, dict[str, str]] = {}
    for key in shapes:
        bare = bare_name(key)
        match = _LAYER.fullmatch(bare)
        layer, ending = (f"{match[1]}.weight", match[2]) if match else (bare, "")
        if layers.setdefault(layer, {}).setdefault(ending, key) != key:
            raise SourceError("{name} holds {key} twice: fetch or save it again.", name=name, key=tame(layer))
    found = {layer: _part(tensors, shapes, name) for layer, tensors in layers.items()}
    kinds = dict.fromkeys(kind for kind, _ in found.values() if kind)
    named = _by_blinkdl({layer: part for layer, (_, part) in found.items()})
    return Adapter(
        name=name,
        kind=", ".join(kinds) or "whole tensors",
        parts=named,
        own_scale=config.scale if config else None,
        mini=config.mini if config else 0,
    )


def bare_name(key: str) -> str:
    """A tensor's name without what trainers and Hugging Face put before it."""
    return _WRAPPERS.sub("", key)


def check_fits(adapter: Adapter, shapes: Shapes) -> None:
    """Raises SourceError if the adapter is not for a model with these tensors (by BlinkDL's names)."""
    changed = {target: part.shapes[0] for target, part in adapter.parts.items()}
    layers, own = (1 + max(block_numbers(one), default=-1) for one in (shapes, changed))
    if own > layers:
        raise SourceError(
            "{name} is for a model of {own} blocks or more, and this one has {layers}: choose the model that it was "
            "trained from.",
            name=adapter.name,
            own=own,
            layers=layers,
        )
    for target, part in adapter.parts.items():
        key = tame(part.tensors[0])
        if target.endswith(".time_state") and part.formula is Formula.WHOLE:
            raise SourceError(
                "{name} holds a tuned state ({key}), which is no weight: save the adapter without it.",
                name=adapter.name,
                key=key,
            )
        if target not in shapes:
            raise SourceError(
                "{name} holds {key}, which belongs to no tensor of this model: choose the model that it was trained "
                "from.",
                name=adapter.name,
                key=key,
            )
        _check_shape(adapter, target, part, shapes[target])
    _check_not_old_bone(adapter, shapes)


# ---- one adapter


def _check_is_adapter(shapes: Shapes, name: str) -> None:
    if not shapes:
        raise SourceError("{name} holds no tensors: choose another adapter.", name=name)
    if all(key.endswith(".time_state") for key in shapes):
        raise SourceError(
            "{name} is a tuned state and no adapter: it is loaded when the model talks, not merged.", name=name
        )
    if "emb.weight" in shapes and "head.weight" in shapes and not any(map(_LAYER.fullmatch, shapes)):
        raise SourceError("{name} is a whole model and no adapter: give it as the source.", name=name)


def _by_blinkdl(parts: Mapping[str, Part]) -> dict[str, Part]:
    """The parts by BlinkDL's names of the tensors that they change; one that has none keeps its own."""
    tensors = {
        layer: Origin((layer,), part.shapes[0] if part.formula is Formula.WHOLE else _LAYER_SHAPE)
        for layer, part in parts.items()
        if not _PARTED.search(layer)
    }
    if any(".linear_attn." in layer for layer in tensors):
        named = from_rwkv_rs(tensors)
    elif any(".attn." in layer for layer in tensors):
        named = (from_fla_6 if any(".linear.weight" in layer for layer in tensors) else from_fla_7)(tensors)
    else:
        _, named = from_blinkdl(tensors)
    found = {
        target: replace(parts[origin.sources[0]], transposed=origin.make is not None)
        for target, origin in named.items()
    }
    return found | {layer: part for layer, part in parts.items() if layer not in tensors}


def _part(tensors: Mapping[str, str], shapes: Shapes, name: str) -> tuple[str, Part]:
    """One layer's part, and what people call its kind; `tensors` are names in the file by their endings."""
    if list(tensors) == [""]:
        return "", Part(Formula.WHOLE, (tensors[""],), (tuple(shapes[tensors[""]]),))
    endings = next((known for known in _KINDS if set(known) == set(tensors)), None)
    if endings is None:
        raise SourceError(
            "{name} has of one layer only {keys}, which makes no adapter that ggufy knows: fetch or save it again.",
            name=name,
            keys=", ".join(tame(key) for key in tensors.values()),
        )
    kind, formula = _KINDS[endings]
    keys = tuple(tensors[ending] for ending in endings)
    sizes = tuple(tuple(shapes[key]) for key in keys)
    blocks = formula is Formula.ROWS and len(sizes[0]) == 3
    if blocks:
        kind, formula = f"{kind} bat", Formula.ROW_BLOCKS if endings[0] in _OF_PEFT else Formula.COLUMN_BLOCKS
    if any(0 in size for size in sizes) or len(sizes[0]) != (3 if blocks else 2):
        raise SourceError(
            "{name} holds {key} with the shape {shape}, which no adapter has: fetch or save it again.",
            name=name,
            key=tame(keys[0]),
            shape=_text(sizes[0]),
        )
    return kind, Part(formula, keys, sizes)


def _check_shape(adapter: Adapter, target: str, part: Part, shape: tuple[int, ...]) -> None:
    """Compares a part with the tensor that it changes."""
    if part.formula is Formula.WHOLE:
        fits = squeezed(part.shapes[0]) == squeezed(shape[::-1] if part.transposed else shape)
    else:
        fits = len(shape) == 2 and _fits_matrix(part, shape[::-1] if part.transposed else shape, adapter.mini)
    if not fits:
        raise SourceError(
            "{name} does not fit this model: its {key} is {found}, and the model's {target} is {shape}; choose the "
            "model that it was trained from.",
            name=adapter.name,
            key=tame(part.tensors[-1]),
            found=_text(part.shapes[-1]),
            target=target,
            shape=_text(shape),
        )


def _fits_matrix(part: Part, shape: tuple[int, ...], mini: int) -> bool:
    (out, columns), found, r = shape, part.shapes, part.rank
    if max(r, *(min(size) for size in found)) > max(shape):  # a stranger's r, and what it would take to multiply
        return False
    match part.formula:
        case Formula.ROWS:
            return found[0][1] == (mini or out) and out % found[0][1] == 0
        case Formula.COLUMN_BLOCKS | Formula.ROW_BLOCKS:
            count = (columns if part.formula is Formula.COLUMN_BLOCKS else out) // r
            return out % r == 0 and columns % r == 0 and found[0] == (count, r, r)
        case _:
            pairs = [found[:2], *([found[2:]] if part.formula is Formula.PISSA else [])]
            fits = all(a[1:] == (columns,) and b == (out, a[0]) for a, b in pairs)
            return fits and (part.formula is not Formula.DORA or squeezed(found[2]) == squeezed((columns,)))


def _check_not_old_bone(adapter: Adapter, shapes: Shapes) -> None:
    """Bone of September 2024 numbered its blocks by rows: between square matrices nobody can tell it from its
    successor, which numbers them by columns."""
    blocks = [
        target
        for target, part in adapter.parts.items()
        if part.formula is Formula.COLUMN_BLOCKS and part.tensors[0].endswith("bone")
    ]
    if blocks and all(shapes[target][0] == shapes[target][1] for target in blocks):
        raise SourceError(
            "{name} may be the Bone of September 2024 or the one after it, which are merged in different ways: merge "
            "it with the trainer that made it, and give the result as the source.",
            name=adapter.name,
        )


# ---- words


def _text(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "1"

"""Widths that a quant type does not fit, and what such a type really is on a model that has them.

K, IQ and ternary types pack 256 weights of a row. Rows that are no multiple of that, as those of many small
transformers, get a type of 32 instead (`FALLBACK`), and what is said of the types in general is wrong there: on a
model that is 576 wide Q2_K becomes Q4_0, larger than IQ3_XXS, which becomes IQ4_NL, and worse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ggufy.core.catalog import BY_NAME
from ggufy.formats.gguf import GgufHead, type_of_most
from ggufy.quantize.recipe import Forecast, Recipe
from ggufy.quantize.search.mixes import LOSSES
from ggufy.quantize.search.roles import transferred

# llama-quant.cpp, tensor_type_fallback. Types that are not here have blocks of 32.
FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
_CLEARLY = 0.97  # of the other's expected loss; what differs by less is called neither better nor worse
Shapes = Mapping[str, tuple[int, ...]]  # tensor -> its shape, the row's width first


@dataclass(frozen=True, kw_only=True)
class Instead:
    """What a quant type is on a model whose widths it does not fit."""

    mostly: str  # the tensor type of most weights of its blocks
    better: str = ""  # a quant type that takes no more bytes and is expected to lose less


def fitting_type(kind: str, width: int) -> str:
    """The tensor type that llama-quantize makes of rows of this width where `kind` (upper case) was meant."""
    for one in (kind, FALLBACK.get(kind, kind)):
        if width % int(GGML_QUANT_SIZES[GGMLQuantizationType[one]][0]) == 0:
            return one
    return "F16"


def fallen_back(shapes: Shapes) -> dict[str, str]:
    """The quant types whose own tensor type most weights of the blocks cannot have -> the type that most get."""
    matrices = [shape for name, shape in shapes.items() if name.startswith("blk.") and len(shape) > 1]
    found = {}
    for row in BY_NAME.values():
        meant = row.tensor_type.upper()
        most = type_of_most((fitting_type(meant, shape[0]), math.prod(shape)) for shape in matrices)
        if matrices and most != meant:
            found[row.name] = most
    return found


def mostly(head: GgufHead, quant: str, recipe: Recipe) -> str:
    """The tensor type of most weights of the blocks, if the quant type does not fit the model's widths; else empty."""
    return _most(head, recipe) if quant in fallen_back(_shapes(head)) else ""


def _shapes(head: GgufHead) -> Shapes:
    return {name: tensor.shape for name, tensor in head.tensors.items()}


def _most(head: GgufHead, recipe: Recipe) -> str:
    blocks = [tensor for tensor in head.tensors.values() if tensor.name.startswith("blk.") and len(tensor.shape) > 1]
    return type_of_most((recipe.get(tensor.name, tensor.type), tensor.elements) for tensor in blocks)


def instead(head: GgufHead, quants: Mapping[str, Forecast]) -> dict[str, Instead]:
    """What each forecast quant type is that does not fit the model's widths.

    Losses are expected as `mixes.py` does: from the types' errors on normal weights and the shipped sensitivities.
    """
    values = transferred({name: tensor.elements for name, tensor in head.tensors.items()})
    lost = {
        name: math.fsum(
            values[tensor] * head.tensors[tensor].elements * LOSSES.get(kind, 0.0)
            for tensor, kind in quant.recipe.items()
        )
        for name, quant in quants.items()
    }
    found, fallen = {}, fallen_back(_shapes(head))
    for name, quant in quants.items():
        if name not in fallen:
            continue
        rivals = [o for o in quants if quants[o].size <= quant.size and lost[o] < _CLEARLY * lost[name]]
        best = min(rivals, key=lambda other: lost[other], default="")
        found[name] = Instead(mostly=_most(head, quant.recipe), better=best)
    return found

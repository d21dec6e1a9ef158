"""RWKV's own recipes: which tensor type each matrix of a known architecture gets under each of the 29 names.

llama-quantize has mixes for transformers only; of RWKV's matrices it makes one type, so that S, M and L are the same,
and leaves the small low-rank matrices in F16 or F32. Here a name stands for three things (`MIXES`):

- a size: that of llama-quantize's file of this name (its twin), or a share of it for the lesser of S, M and L;
- the types that blocks may have: those of its kind (K, IQ, legacy, ternary) from a little below its own type upwards,
  so that a name keeps its character; a legacy name keeps its type for every matrix but a few that get Q8_0;
- the types that embedding and head may have.

The solver (allocate.py) then chooses by what each type loses on weights of a normal distribution (`LOSSES`) and by how
much each role matters (`roles.transferred`). All of it follows from names and shapes, so a recipe is known before any
weight is, and is the same every time. Measuring the model itself gives better ones.

Low-rank matrices become F16, and Q8_0 where that was measured to be harmless (`Architecture.harmless`).
`tools/measure_mixes.py` measures that, and `LOSSES`.

The 29 names are 29 recipes where widths are multiples of 256 and there are enough blocks: the demo has six, real
models 12 and more. In toys of one or two blocks the steps between two sizes are too few. Rows that are no multiple of
256 can only have the legacy types and IQ4_NL (`_ODD`), none of which is below 4.5 bits, so all names below that give
such matrices the same type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ggufy.core.job import RWKV_MIX, STOCK_MIX
from ggufy.formats.gguf import UNQUANTIZED, GgufHead, padded, tensor_bytes
from ggufy.models import registry
from ggufy.models.architecture import Architecture
from ggufy.quantize.recipe import Recipe
from ggufy.quantize.search.allocate import Option, allocate
from ggufy.quantize.search.roles import Depth, Role, roles, transferred

# Relative error (see loss.py) of 2^18 normal weights, the importances of their columns log-normal (sigma 1).
LOSSES = {
    "F16": 4.28e-8, "Q8_0": 2.89e-5, "Q6_K": 2.66e-4, "Q5_1": 9.68e-4, "Q5_K": 1.10e-3, "Q5_0": 1.49e-3,
    "Q4_1": 4.12e-3, "Q4_K": 4.24e-3, "IQ4_NL": 5.02e-3, "IQ4_XS": 5.13e-3, "Q4_0": 6.07e-3, "IQ3_S": 1.47e-2,
    "Q3_K": 1.83e-2, "IQ3_XXS": 2.41e-2, "IQ2_S": 5.15e-2, "Q2_K": 5.70e-2, "IQ2_XS": 6.86e-2, "IQ2_XXS": 8.99e-2,
    "IQ1_M": 0.155, "IQ1_S": 0.197, "TQ2_0": 0.656, "TQ1_0": 0.656,
}  # fmt: skip
_HIGH = ("Q6_K", "Q8_0")
_ENDS_K = ("Q3_K", "Q4_K", "Q5_K", *_HIGH)
_ENDS_I = ("IQ3_S", "IQ4_XS", "Q5_K", *_HIGH)
_ODD = ("IQ4_NL", "Q5_0", "Q5_1", "Q8_0")  # for widths that are no multiple of 256
_HARMLESS_DIVISOR = 2**3
_SLOPE = 0.01  # by how much the first of all middle blocks counts more than the last: it says who goes first


@dataclass(frozen=True, kw_only=True)
class RecipeRule:
    """What one name stands for."""

    blocks: tuple[str, ...]  # tensor types that the blocks' matrices may have
    ends: tuple[str, ...]  # that embedding and head may have
    share: float = 1.0  # of the bytes of its twin


def _mix(blocks: str, ends: tuple[str, ...], share: float = 1.0) -> RecipeRule:
    return RecipeRule(blocks=tuple(blocks.split()), ends=ends, share=share)


MIXES: dict[str, RecipeRule] = {
    "Q8_0": _mix("Q8_0 F16", ("Q8_0", "F16")),
    "Q6_K": _mix("Q5_K Q6_K Q8_0", ("Q5_K", *_HIGH)),
    "Q5_K_M": _mix("Q4_K Q5_K Q6_K Q8_0", _ENDS_K),
    "Q5_K_S": _mix("Q4_K Q5_K Q6_K Q8_0", _ENDS_K, 0.97),
    "Q5_1": _mix("Q5_1 Q8_0", ("Q5_1", *_HIGH)),
    "Q5_0": _mix("Q5_0 Q8_0", ("Q5_0", "Q5_1", *_HIGH)),
    "Q4_K_M": _mix("Q3_K Q4_K Q5_K Q6_K Q8_0", _ENDS_K),
    "Q4_K_S": _mix("Q3_K Q4_K Q5_K Q6_K Q8_0", _ENDS_K, 0.97),
    "Q4_1": _mix("Q4_1 Q8_0", ("Q4_1", "Q5_0", "Q5_1", *_HIGH)),
    "Q4_0": _mix("Q4_0 Q8_0", ("Q4_0", "Q5_0", "Q5_1", *_HIGH)),
    "Q3_K_L": _mix("Q2_K Q3_K Q4_K Q5_K Q6_K", _ENDS_K),
    "Q3_K_M": _mix("Q2_K Q3_K Q4_K Q5_K Q6_K", _ENDS_K, 0.97),
    "Q3_K_S": _mix("Q2_K Q3_K Q4_K Q5_K Q6_K", _ENDS_K, 0.94),
    "Q2_K": _mix("Q2_K Q3_K Q4_K Q5_K Q6_K", ("Q2_K", *_ENDS_K)),
    "Q2_K_S": _mix("Q2_K Q3_K Q4_K Q5_K Q6_K", ("Q2_K", *_ENDS_K), 0.96),
    "IQ4_XS": _mix("IQ3_S IQ4_XS Q5_K Q6_K Q8_0", _ENDS_I),
    "IQ4_NL": _mix("IQ4_NL Q8_0", ("IQ4_NL", "Q5_0", "Q5_1", *_HIGH)),
    "IQ3_M": _mix("Q2_K IQ3_S IQ4_XS Q5_K Q6_K", _ENDS_I),
    "IQ3_S": _mix("Q2_K IQ3_S IQ4_XS Q5_K Q6_K", _ENDS_I, 0.97),
    "IQ3_XS": _mix("Q2_K IQ3_S IQ4_XS Q5_K Q6_K", _ENDS_I, 0.94),
    "IQ3_XXS": _mix("IQ2_S IQ3_XXS IQ3_S IQ4_XS Q5_K Q6_K", _ENDS_I),
    "IQ2_M": _mix("IQ2_XXS IQ2_S IQ3_XXS IQ3_S IQ4_XS Q5_K", ("Q2_K", *_ENDS_I)),
    "IQ2_S": _mix("IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ4_XS Q5_K", ("Q2_K", *_ENDS_I)),
    "IQ2_XS": _mix("IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ4_XS Q5_K", ("Q2_K", *_ENDS_I)),
    "IQ2_XXS": _mix("IQ1_M IQ2_XXS IQ2_XS IQ3_XXS IQ4_XS Q5_K", ("Q2_K", *_ENDS_I)),
    "IQ1_M": _mix("IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ3_XXS IQ4_XS", ("Q2_K", *_ENDS_I)),
    "IQ1_S": _mix("IQ1_S IQ1_M IQ2_XXS IQ3_XXS IQ4_XS", ("Q2_K", *_ENDS_I)),
    "TQ2_0": _mix("TQ2_0", _ENDS_K[1:]),
    "TQ1_0": _mix("TQ1_0", _ENDS_K[1:]),
}


def architecture_of(head: GgufHead) -> Architecture | None:
    """The known architecture of a GGUF; None for other models."""
    return registry.named(head.metadata.get("general.architecture"))


def has_recipes(head: GgufHead) -> bool:
    """Whether there are recipes for this model."""
    return architecture_of(head) is not None


def mixed(head: GgufHead, quant_type: str, *, stock: Recipe, mix: str = RWKV_MIX) -> Recipe:
    """The recipe of a quant type for the base with this head; `stock` is llama-quantize's, and stays for models of no
    known architecture or if `mix` asks for it. Never larger than the stock file."""
    if mix == STOCK_MIX or not (architecture := architecture_of(head)):
        return stock
    asked = MIXES[quant_type]
    found = roles(head.tensors)
    fixed = {
        name: "Q8_0" if role.name in architecture.harmless and _fits("Q8_0", head.tensors[name].shape[0]) else "F16"
        for name, role in found.items()
        if role.low_rank
    }
    if quant_type == "Q8_0":
        fixed = dict.fromkeys(fixed, "F16")
    fixed = {name: kind for name, kind in fixed.items() if _bytes(head, name, kind) <= _bytes(head, name, stock[name])}
    kept = {name: kind for name, kind in stock.items() if kind in UNQUANTIZED} | fixed
    weights = _sensitivities(head, found)
    options = {
        name: [
            Option(
                type=kind,
                size=_bytes(head, name, kind),
                cost=weights[name] * head.tensors[name].elements * LOSSES[kind],
            )
            for kind in _types(asked, found[name], head.tensors[name].shape[0])
        ]
        for name in stock
        if name not in kept
    }
    whole = sum(_bytes(head, name, kind) for name, kind in stock.items())
    rest = math.floor(asked.share * whole) - sum(_bytes(head, name, kind) for name, kind in kept.items())
    least = sum(min(option.size for option in choices) for choices in options.values())
    chosen = allocate(options, max(rest, least)).recipe if options else {}
    return {name: kept.get(name) or chosen[name] for name in stock}


def rescaling(head: GgufHead) -> dict[str, float]:
    """What a converter divided the matrices of an RWKV-6 by that write into the residual stream: tensor -> factor.

    A block's are divided by 2^(block // n), and llama.cpp halves the stream every n blocks to match, which suits F16
    arithmetic. In deep models it takes small weights below what the F16 scales of a K or IQ type can hold: of weights
    with a deviation of 0.02, Q6_K loses 1.6 times as much after five halvings, and everything after ten. llama.cpp
    computes the stream in F32, so a quant multiplies them back, and says n = 0. Up to three halvings nothing is lost,
    and nothing is changed.
    """
    architecture = architecture_of(head)
    every = head.metadata.get(architecture.rescale_key, 0) if architecture else 0
    if architecture is None or not isinstance(every, int):
        return {}
    divisors = {name: float(architecture.divisor(name, every)) for name in head.tensors}
    factors = {name: divisor for name, divisor in divisors.items() if divisor > 1}
    return factors if max(factors.values(), default=1.0) > _HARMLESS_DIVISOR else {}


def _types(asked: RecipeRule, role: Role, width: int) -> tuple[str, ...]:
    kinds = asked.blocks if role.depth else asked.ends
    fitting = tuple(kind for kind in kinds if _fits(kind, width))
    return fitting if fitting and _fits(kinds[0], width) else _ODD if _fits("Q8_0", width) else ("F16",)


def _sensitivities(head: GgufHead, found: Mapping[str, Role]) -> dict[str, float]:
    """Of a weight of each tensor; of middle blocks that matter alike, the first come first."""
    table = transferred({name: head.tensors[name].elements for name in found})
    blocks = 1 + max((int(name.split(".")[1]) for name, role in found.items() if role.depth), default=0)
    return {
        name: c * (1 + _SLOPE * (1 - int(name.split(".")[1]) / blocks) if found[name].depth is Depth.MIDDLE else 1)
        for name, c in table.items()
    }


def _fits(kind: str, width: int) -> bool:
    block: int = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
    return width % block == 0


def _bytes(head: GgufHead, name: str, kind: str) -> int:
    return padded(tensor_bytes(head.tensors[name].shape, kind), head.alignment)

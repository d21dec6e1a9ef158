"""The 29 quant types that ggufy makes, one row each; the page, the plan, the command line and the docs iterate it.

`needs_imatrix` is llama-quantize's own rule for RWKV (it goes by tensor type, and never counts embedding and head).
`bits` are the bits per weight of the tensor type that carries the file, from ggml's block layouts.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from ggufy.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class QuantType:
    """One row of the table."""

    name: str  # what llama-quantize takes, and how the file is called
    ftype: int  # llama.cpp's number for it (general.file_type)
    tensor_type: str  # ggml type of most matrices, as llama-quantize prints it
    bits: float  # bits per weight of that tensor type
    needs_imatrix: bool  # llama-quantize refuses it without an imatrix
    recommended: bool  # part of `--types recommended`
    ordinary: bool  # keeps most models usable: to be picked by its size where nothing is measured
    ternary: bool  # for models that were trained with ternary weights, and for no others
    advice: str  # one honest line


def _row(name: str, ftype: int, tensor_type: str, bits: float, advice: str, flags: str = "") -> QuantType:
    return QuantType(
        name=name,
        ftype=ftype,
        tensor_type=tensor_type,
        bits=bits,
        needs_imatrix="i" in flags,
        recommended="r" in flags,
        ordinary="x" not in flags and "t" not in flags,
        ternary="t" in flags,
        advice=advice,
    )


# The founding document's list, in its order. Flags: r = recommended, i = needs an imatrix, x = for experiments, t =
# for ternary models.
QUANT_TYPES: tuple[QuantType, ...] = (
    _row("Q8_0", 7, "q8_0", 8.5, "Practically the original; for small models and for making other files.", "r"),
    _row("Q6_K", 18, "q6_K", 6.5625, "Hard to tell from the original.", "r"),
    _row("Q5_K_M", 17, "q5_K", 5.5, "Very close to the original; good when memory allows.", "r"),
    _row("Q5_K_S", 16, "q5_K", 5.5, "Meant to be a little smaller than Q5_K_M."),
    _row("Q5_1", 9, "q5_1", 6.0, "Older format, fast on old CPUs; Q5_K_M is smaller and as good."),
    _row("Q5_0", 8, "q5_0", 5.5, "Older format; Q5_K_M is better at the same size."),
    _row("Q4_K_M", 15, "q4_K", 4.5, "The usual choice: a third of the size, little is lost.", "r"),
    _row("Q4_K_S", 14, "q4_K", 4.5, "Meant to be a little smaller than Q4_K_M."),
    _row("Q4_1", 3, "q4_1", 5.0, "Older format; Q4_K_M is smaller and better."),
    _row("Q4_0", 2, "q4_0", 4.5, "Older format, quick on ARM phones; RWKV suffers from its outliers."),
    _row("Q3_K_L", 13, "q3_K", 3.4375, "Meant to be the best of the 3-bit K files."),
    _row("Q3_K_M", 12, "q3_K", 3.4375, "Loses noticeably; for when Q4 does not fit.", "r"),
    _row("Q3_K_S", 11, "q3_K", 3.4375, "Meant to be the smallest of the 3-bit K files."),
    _row("Q2_K", 10, "q2_K", 2.625, "Loses a lot; small models become hard to use."),
    _row("Q2_K_S", 21, "q2_K", 2.625, "As Q2_K, refused without an imatrix.", "i"),
    _row("IQ4_XS", 30, "iq4_xs", 4.25, "Nearly Q4_K_M in less space; slower on CPUs.", "r"),
    _row("IQ4_NL", 25, "iq4_nl", 4.5, "As IQ4_XS for widths that are no multiple of 256."),
    _row("IQ3_M", 27, "iq3_s", 3.4375, "Better than Q3_K at the same size; slower on CPUs."),
    _row("IQ3_S", 26, "iq3_s", 3.4375, "Better than Q3_K at the same size; slower on CPUs."),
    _row("IQ3_XS", 22, "iq3_s", 3.4375, "Meant to be a little smaller than IQ3_S."),
    _row("IQ3_XXS", 23, "iq3_xxs", 3.0625, "Three bits; the smallest that large models bear well.", "ri"),
    _row("IQ2_M", 29, "iq2_s", 2.5625, "Two and a half bits; only for large models.", "i"),
    _row("IQ2_S", 28, "iq2_xs", 2.3125, "As IQ2_XS with a better embedding.", "i"),
    _row("IQ2_XS", 20, "iq2_xs", 2.3125, "Two bits; a last resort for large models.", "i"),
    _row("IQ2_XXS", 19, "iq2_xxs", 2.0625, "Two bits; a last resort for large models.", "i"),
    _row("IQ1_M", 31, "iq1_m", 1.75, "For experiments; expect nonsense from small models.", "ix"),
    _row("IQ1_S", 24, "iq1_s", 1.5625, "For experiments; expect nonsense from small models.", "ix"),
    _row("TQ2_0", 37, "tq2_0", 2.0625, "Only for models trained with ternary weights; nonsense for others.", "t"),
    _row("TQ1_0", 36, "tq1_0", 1.6875, "Only for models trained with ternary weights; nonsense for others.", "t"),
)
BY_NAME = {row.name: row for row in QUANT_TYPES}
# Core seconds per million weights that ggml's kernels take with an imatrix, by tensor type, measured on one CPU; for
# the ETA only their ratios matter.
KERNEL_COST = {
    "Q8_0": 0.003, "Q6_K": 0.027, "Q5_K": 0.095, "Q5_1": 0.09, "Q5_0": 0.024, "Q4_K": 0.088, "Q4_1": 0.087,
    "Q4_0": 0.027, "Q3_K": 0.034, "Q2_K": 0.114, "IQ4_XS": 0.175, "IQ4_NL": 0.18, "IQ3_S": 0.271, "IQ3_XXS": 0.376,
    "IQ2_S": 0.178, "IQ2_XS": 0.498, "IQ2_XXS": 0.268, "IQ1_M": 0.121, "IQ1_S": 0.132, "TQ2_0": 0.002, "TQ1_0": 0.002,
}  # fmt: skip
# The same of compensated codes, with a factor that is there: what is added, measured with two sweeps at widths of 768
# to 2,048 (narrower ones take less, wider ones more).
_ADDED = {"IQ1": 0.06, "IQ2": 0.3, "IQ3": 0.3}
COMPENSATED_COST = {kind: cost + _ADDED.get(kind[:3], 0.2) for kind, cost in KERNEL_COST.items()}
COPY_COST = 0.001
# Core seconds for the tables that a kernel searches in, computed once in a process; a type may use that of another.
TABLE_OF = {"IQ1_M": "IQ1_S"}
TABLE_COST = {"IQ1_S": 8.6, "IQ2_S": 4.9, "IQ2_XS": 2.6, "IQ2_XXS": 1.0, "IQ3_S": 0.2, "IQ3_XXS": 0.1}
OUTTYPES = ("f16", "bf16", "f32")
# Presets besides `recommended` and `all`: what phones and old laptops bear, and what the RWKV tutorials publish.
SMALL = ("Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K")
TUTORIAL = ("Q5_1", "Q8_0")
# The most useful file comes first, so that an interrupted job has already given something.
FIRST = "Q4_K_M"


def make_order(names: set[str], table: Mapping[str, QuantType] = BY_NAME) -> tuple[str, ...]:
    """The order in which files are made: Q4_K_M, then the recommended types, then the rest of the format's table."""
    rows = [row for row in table.values() if row.name in names]
    return tuple(row.name for row in sorted(rows, key=lambda row: (row.name != FIRST, not row.recommended)))


def parse_types(text: str, table: Mapping[str, QuantType] = BY_NAME) -> tuple[str, ...]:
    """`all`, `recommended`, `none` or a comma-separated list of names in a format's table, in any case -> names in the
    order of making.

    Raises UsageError for an unknown name, and offers the nearest ones.
    """
    if text.strip().lower() == "none":
        return ()
    names: set[str] = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        if word.lower() == "all":
            names |= set(table)
        elif word.lower() == "recommended":
            names |= {row.name for row in table.values() if row.recommended}
        elif word.upper() in table:
            names.add(word.upper())
        else:
            if near := difflib.get_close_matches(word.upper(), table, n=3, cutoff=0.5):
                raise UsageError(
                    "unknown quant type {word}: did you mean {names}?", word=repr(word), names=", ".join(near)
                )
            raise UsageError(
                "unknown quant type {word}: known types: {types}.", word=repr(word), types=", ".join(table)
            )
    if not names:
        raise UsageError("no quant type given: use {TYPES} all, recommended, or names such as Q4_K_M,Q6_K.")
    return make_order(names, table)

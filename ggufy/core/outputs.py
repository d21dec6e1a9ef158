"""What formats quants can have, one row each: how their files are called, and which types there are. How they are made
says ggufy/steps/outputs.

The base of a job is a file of the same format as its quants, unless the row says that it is a GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ggufy.core.catalog import BY_NAME, OUTTYPES, QuantType
from ggufy.core.errors import UsageError

GGUF, RWKVCPP = "gguf", "rwkv.cpp"


def _row(name: str, ftype: int, bits: float, advice: str, *, recommended: bool = False) -> QuantType:
    return QuantType(
        name=name,
        ftype=ftype,
        tensor_type=name,
        bits=bits,
        needs_imatrix=False,
        recommended=recommended,
        ordinary=True,
        ternary=False,
        advice=advice,
    )


# rwkv.cpp's numbers and names (docs/FILE_FORMAT.md there). K types need rows of whole blocks of 256 values.
RWKVCPP_TYPES = {
    row.name: row
    for row in (
        _row("Q5_1", 8, 6.0, "The usual choice of rwkv.cpp: a fifth of FP32, little is lost.", recommended=True),
        _row("Q8_0", 9, 8.5, "Practically the original.", recommended=True),
        _row("FP16", 1, 16.0, "Half of FP32, for making the others and for fast machines.", recommended=True),
        _row("FP32", 0, 32.0, "Every weight as it was."),
        _row("Q5_0", 7, 5.5, "A little smaller than Q5_1, and a little worse."),
        _row("Q4_1", 3, 5.0, "Loses noticeably; for when Q5 does not fit."),
        _row("Q4_0", 2, 4.5, "The smallest; RWKV suffers from its outliers."),
        _row("Q5_K", 14, 5.5, "Better than Q5_0 at its size; needs a width of 256, 512, 768 and so on."),
        _row("Q4_K", 13, 4.5, "Better than Q4_0 at its size; needs a width of 256, 512, 768 and so on."),
    )
}


@dataclass(frozen=True, kw_only=True)
class OutputNames:
    """One row of `OUTPUT_NAMES`."""

    name: str  # in requests and options
    suffix: str  # what its files end in
    ending: str  # of the folder's and the repo's name, behind the model's
    types: Mapping[str, QuantType]  # what can be made, by name
    base_suffix: str = "gguf"
    # Types of the base: what options call them -> how its file is called; the first is the default.
    outtypes: Mapping[str, str] = field(default_factory=lambda: {one: one.upper() for one in OUTTYPES})

    def base_type(self, outtype: str | None) -> str:
        """That type of a base, as options call it, or the default if there is no such."""
        return outtype if outtype and outtype in self.outtypes else next(iter(self.outtypes))

    def folder(self, name: str) -> str:
        """`<Model>-GGUF`: the output folder, and the output repo."""
        return f"{name}-{self.ending}"


OUTPUT_NAMES: dict[str, OutputNames] = {
    row.name: row
    for row in (
        OutputNames(name=GGUF, suffix="gguf", ending="GGUF", types=BY_NAME),
        OutputNames(
            name=RWKVCPP,
            suffix="bin",
            ending="rwkv.cpp",
            types=RWKVCPP_TYPES,
            outtypes={"f32": "FP32", "f16": "FP16"},
            base_suffix="bin",
        ),
    )
}


def names_of_output(name: str) -> OutputNames:
    """The row of a format. Raises UsageError for one that is not known: a record may be of a later version."""
    if name not in OUTPUT_NAMES:
        raise UsageError(
            "unknown format {format}: one of {formats}.", format=repr(name), formats=", ".join(OUTPUT_NAMES)
        )
    return OUTPUT_NAMES[name]

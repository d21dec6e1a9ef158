"""How a family's names become BlinkDL's: tables of two columns, and what reads them.

`N` in a name stands for the number of a block, `*` for any rest, and both for the same on the right. A third column
`turned` says that rows and columns are exchanged. The first row that fits a name counts; a name that fits none stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggufy.core.errors import CheckpointError
from ggufy.models.architecture import Shapes, brief
from ggufy.models.origin import Origin

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NameRow:
    """One kind of tensor."""

    theirs: re.Pattern[str]
    blinkdl: str
    turned: bool


def name_table(text: str) -> tuple[NameRow, ...]:
    """The rows of a table, one a line."""
    return tuple(_row(*line.split()) for line in text.strip().splitlines())


def _row(theirs: str, blinkdl: str, turned: str = "") -> NameRow:
    pattern = re.escape(theirs).replace(r"\.N\.", r"\.(?P<N>[0-9]{1,6})\.").replace(r"\*", "(?P<rest>.+)")
    return NameRow(re.compile(pattern), blinkdl, turned == "turned")


def named_by(rows: Iterable[NameRow], tensors: Mapping[str, Origin]) -> dict[str, Origin]:
    """The same tensors under the names, and in the layout, that a table has for them."""
    found: dict[str, Origin] = {}
    for name, origin in tensors.items():
        row, match = next(((r, m) for r in rows if (m := r.theirs.fullmatch(name))), (None, None))
        if row is None or match is None:
            add(found, name, origin)
            continue
        groups = match.groupdict()
        new = row.blinkdl.replace(".N.", f".{groups.get('N')}.").replace("*", groups.get("rest") or "")
        add(found, new, turned(origin) if row.turned else origin)
    return found


def add(tensors: dict[str, Origin], name: str, origin: Origin) -> None:
    """Puts a tensor under its name. Raises CheckpointError if there is one of that name."""
    if (other := tensors.setdefault(name, origin)) is not origin:
        raise CheckpointError(
            "the tensors {one} and {other} are both {name}: save the model again with each tensor once.",
            one=brief(other.sources[0]),
            other=brief(origin.sources[0]),
            name=brief(name),
        )


def turned(origin: Origin) -> Origin:
    """The same tensor of the file, with its last two dimensions exchanged."""
    if len(origin.shape) < 2 or origin.make is not None:
        return origin  # the architecture says what is wrong with its shape
    *first, rows, columns = origin.shape
    return Origin(origin.sources, (*first, columns, rows), _turn)


def _turn(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.transpose(-1, -2)


def any_ends(shapes: Shapes | Mapping[str, Origin], *ends: str) -> bool:
    """Whether a tensor's name has one of these ends."""
    return any(name.endswith(ends) for name in shapes)

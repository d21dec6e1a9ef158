"""Whether an evaluation text and a calibration text share anything.

A quant that is measured on the text that its imatrix was made from looks better than it is. Texts are compared by
their sentences and lines, so that another order, other white space or a larger file around it hide nothing.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from ggufy.core.errors import CalibrationError
from ggufy.system.files import sha256

MOST_SHARED = 0.05  # of either text's characters; different texts share some common lines
_LEAST_CHARS = 24  # shorter pieces ("See also:") come in every text


def check_disjoint(evaluation: Path, calibration: Path) -> None:
    """Raises CalibrationError if the evaluation text is, holds, or is a piece of the calibration text."""
    share = _share(evaluation, sha256(evaluation), calibration, sha256(calibration))
    if share > MOST_SHARED:
        raise CalibrationError(
            "{evaluation} and the calibration text {calibration} share {share}, so the figures would flatter the "
            "quants: give another --text.",
            evaluation=evaluation.name,
            calibration=calibration.name,
            share=f"{share:.0%}",
        )


@functools.lru_cache(64)
def _share(one: Path, digest: str, other: Path, other_digest: str) -> float:
    """Comparing takes a tenth of a second, and every job of the page asks for the same two texts."""
    return 1.0 if digest == other_digest else shared(_read(one), _read(other))


def shared(one: str, other: str) -> float:
    """The share, 0 to 1, of the characters of one text that stand in the other one too; the larger of both ways."""
    first, second = _pieces(one), _pieces(other)
    common = sum(map(len, first & second))
    return max((common / sum(map(len, pieces)) for pieces in (first, second) if pieces), default=0.0)


def _pieces(text: str) -> set[str]:
    """Lines and sentences, without their white space."""
    parts = re.split(r"\n+|(?<=[.!?])\s+|(?<=[。！？])", text)
    return {piece for part in parts if len(piece := "".join(part.split())) >= _LEAST_CHARS}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")

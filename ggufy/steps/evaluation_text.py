"""How much of a text is measured over, and whether it may be: no calibration text stands in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ggufy.core.errors import CalibrationError
from ggufy.llama import perplexity, tools
from ggufy.texts.overlap import check_disjoint

LEAST_CHUNKS = 4  # what the disk must hold; a mean over less says little


def check_text(text: Path, calibrations: Iterable[Path]) -> None:
    """Raises CalibrationError if the text is missing, no UTF-8, or was used for calibration."""
    if not text.is_file():
        raise CalibrationError("there is no evaluation text {path}: check the path of --text.", path=text)
    try:
        text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            "the evaluation text {path} is not UTF-8 (byte {byte}): save it as UTF-8 text.",
            path=text,
            byte=error.start,
        ) from error
    for calibration in calibrations:
        check_disjoint(text, calibration)


def fitting_chunks(wanted: int, room: int, vocab: int) -> int:
    """The chunks whose predictions fit into `room` bytes: `wanted`, halved as often as needed; 0 if too few fit.

    Halving, not filling: a disk that is a little fuller today gives the same number, and comparable figures.
    """
    chunks = wanted
    while chunks >= min(LEAST_CHUNKS, wanted) and chunks:
        if perplexity.logits_bytes(vocab, chunks) <= room:
            return chunks
        chunks //= 2
    return 0


def most_chunks(text: Path) -> int:
    """No text of this size has more: a token is a byte at least."""
    return text.stat().st_size // tools.CONTEXT + 1

"""What a Space's visitor who is not its owner may ask for.

A wish is cut down here once, by a list of what is allowed: the demo or a repo of the Hub, texts by name, and no word
that becomes a path, a repo of the owner's or a question to the disk. What may be seen and done is in access.py.
"""

from __future__ import annotations

from ggufy.core.errors import UsageError
from ggufy.jobs.request import Wish
from ggufy.sources.hub import is_on_hub
from ggufy.texts.calibration import BUNDLED, NAMED

MOST_SIZES = 8  # sizes to order in one job
_TEXTS = frozenset({BUNDLED, *NAMED})


def for_stranger(wish: Wish) -> Wish:
    """The wish with nothing in it but what a stranger may choose: results go where they go by default, to be seen by
    all. Raises UsageError for what would be another job without it."""
    if wish.source.strip() and wish.source != "demo" and not is_on_hub(wish.source):
        raise UsageError("on a Space the source is demo or owner/repo:file.pth, and no file of this machine.")
    if wish.vocab or wish.imatrix not in ("auto", "none") or not {wish.calibration, wish.evaluation} <= _TEXTS:
        raise UsageError(
            f"on a Space a text is {' or '.join(sorted(_TEXTS))}, and no file of this machine: leave other texts, "
            "imatrix files and vocabularies out."
        )
    if len(wish.targets) > MOST_SIZES:
        raise UsageError(f"on a Space one job makes at most {MOST_SIZES} sizes: order fewer.")
    return Wish(
        source=wish.source,
        quant_types=wish.quant_types,
        outtype=wish.outtype,
        imatrix=wish.imatrix,
        calibration=wish.calibration,
        evaluate=wish.evaluate,
        evaluation=wish.evaluation,
        mix=wish.mix,
        targets=wish.targets,
        mode=wish.mode,
        owner=wish.owner,
        by_stranger=True,
    )

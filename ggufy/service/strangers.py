"""What a Space's visitor who is not its owner may ask for.

A wish is cut down here once, by a list of what is allowed: the demo or a repo of the Hub, texts by name, and no word
that becomes a path, a repo of the owner's or a question to the disk. What may be seen and done is in access.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggufy.core.errors import UsageError
from ggufy.jobs.options import OPTIONS, JobOptions
from ggufy.sources.hub import is_on_hub
from ggufy.texts.calibration import BUNDLED, NAMED

MOST_SIZES = 8  # sizes to order in one job
MOST_ADAPTERS = 4
MOST_AT_ONCE = 3  # models of a repo that are started together
_TEXTS = frozenset({BUNDLED, *NAMED})


def check_count(sources: Sequence[str]) -> None:
    """Raises UsageError for more models than a stranger may start at once."""
    if len(sources) > MOST_AT_ONCE:
        raise UsageError("on a Space at most {most} models are started at once: tick fewer.", most=MOST_AT_ONCE)


def for_stranger(options: JobOptions) -> JobOptions:
    """The wish with nothing in it but what a stranger may choose: results go where they go by default, to be seen by
    all. Raises UsageError for what would be another job without it."""
    if options.source.strip() and options.source != "demo" and not is_on_hub(options.source):
        raise UsageError("on a Space the source is demo or owner/repo:file.pth, and no file of this machine.")
    if (
        options.vocab
        or options.imatrix not in ("auto", "none")
        or not {options.calibration, options.evaluation} <= _TEXTS
    ):
        raise UsageError(
            "on a Space a text is {texts}, and no file of this machine: leave other texts, imatrix files and "
            "vocabularies out.",
            texts=" or ".join(sorted(_TEXTS)),
        )
    if options.lora_init or not all(map(is_on_hub, options.lora)) or len(options.lora) > MOST_ADAPTERS:
        raise UsageError(
            "on a Space an adapter is owner/repo:file and no file of this machine, and there are at most {most}: "
            "leave out others.",
            most=MOST_ADAPTERS,
        )
    if len(options.targets) > MOST_SIZES:
        raise UsageError("on a Space one job makes at most {most} sizes: order fewer.", most=MOST_SIZES)
    allowed = {option.name: getattr(options, option.name) for option in OPTIONS if option.visitors}
    allowed |= {"owner": options.owner, "copy_owner": options.copy_owner}
    return JobOptions(source=options.source, by_stranger=True, **allowed)

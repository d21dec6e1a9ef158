"""Which kinds of writing a text holds, and which of them a model speaks: records and their wording. No I/O.

Kinds are writing systems, English apart from other Latin script, and code. ggufy/texts/writing.py tells them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ggufy.core.messages import Message

#: What kinds are called in English, on cards and in a terminal.
NAMES = {
    "english": "English",
    "latin": "other Latin script",
    "chinese": "Chinese",
    "japanese": "Japanese",
    "korean": "Korean",
    "cyrillic": "Cyrillic",
    "arabic": "Arabic",
    "code": "code",
    "other": "other",
}
#: Writing systems, by their kind -> the kinds that are written in them.
SYSTEMS = {
    "latin": ("english", "latin", "code"),
    "chinese": ("chinese",),
    "japanese": ("japanese",),
    "korean": ("korean",),
    "cyrillic": ("cyrillic",),
    "arabic": ("arabic",),
}
_SYSTEM_NAMES = {
    "latin": Message("Latin script"),
    "chinese": Message("Chinese"),
    "japanese": Message("Japanese"),
    "korean": Message("Korean"),
    "cyrillic": Message("Cyrillic script"),
    "arabic": Message("Arabic script"),
}


@dataclass(frozen=True, kw_only=True)
class WritingShare:
    """How much of a text is of one kind."""

    kind: str  # one of writing.NAMES
    percent: int  # of the bytes of what is read of it, which are about the same part of its tokens


def list_shares(shares: Iterable[WritingShare]) -> str:
    """`60 % English, 25 % Chinese, 15 % code`; empty if nothing is known."""
    return ", ".join(f"{one.percent} % {NAMES[one.kind]}" for one in shares)


def missing_systems(speaks: Iterable[str], shares: Collection[WritingShare]) -> tuple[str, ...]:
    """The writing systems that a model speaks and a text has under 1 % of; none if nothing is known of the text."""
    here = {one.kind for one in shares}
    return tuple(system for system in speaks if here and here.isdisjoint(SYSTEMS[system]))


def check_writing(speaks: Iterable[str], shares: Iterable[WritingShare]) -> None:
    """Raises ValueError for what no record of ours holds: these words get onto cards."""
    known = all(system in SYSTEMS for system in speaks)
    if not (known and all(one.kind in NAMES and type(one.percent) is int for one in shares)):
        raise ValueError("not a job record: kinds of writing that nobody knows")


def warn_of_texts(
    speaks: Iterable[str], calibration: Collection[WritingShare], evaluation: Collection[WritingShare]
) -> list[Message]:
    """One sentence, with what to do, for each writing system that the model speaks and a text has not."""
    systems = tuple(speaks)
    found = [
        Message(
            "the calibration text has no {system}, which this model speaks, and its quants may lose more of that: "
            "take the bundled text, which has English, Chinese and code, or one of your own.",
            system=_SYSTEM_NAMES[system],
        )
        for system in missing_systems(systems, calibration)
    ]
    found += [
        Message(
            "the evaluation text has no {system}, which this model speaks, so the figures say nothing of that: give a "
            "text that has some.",
            system=_SYSTEM_NAMES[system],
        )
        for system in missing_systems(systems, evaluation)
    ]
    return found

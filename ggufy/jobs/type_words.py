"""The words for quant types that people write, by the format of the quants."""

from __future__ import annotations

from ggufy.core.catalog import parse_types
from ggufy.core.errors import UsageError
from ggufy.core.outputs import RWKVCPP, names_of_output
from ggufy.formats.rwkvcpp import REMOVED, TYPES


def read_types(text: str, output: str) -> tuple[str, ...]:
    """Quant types of a format in the order of making. Raises UsageError: see `parse_types`."""
    if output == RWKVCPP:
        for word in text.split(","):
            _check_word(word.strip().upper())
    return parse_types(text, names_of_output(output).types)


def _check_word(word: str) -> None:
    """Raises UsageError for what rwkv.cpp called a type in April 2023, and does no more."""
    numbers = {str(one.number): name for name, one in (TYPES | REMOVED).items() if 2 <= one.number <= 6}
    name = numbers.get(word, word)
    if gone := REMOVED.get(name):
        raise UsageError(
            "rwkv.cpp removed the type {type} on {date}: choose {instead}, which is better at about the same size.",
            type=name if name == word else f"{word} ({name})",
            date=gone.date,
            instead=gone.instead,
        )
    if name != word:
        raise UsageError(
            "rwkv.cpp's types have names instead of numbers since 2023: choose {type} for {number}.",
            type=name,
            number=word,
        )

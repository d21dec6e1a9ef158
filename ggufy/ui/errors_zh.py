"""What the sentences of errors say in Simplified Chinese.

Errors are raised in English, by parts that know nothing of languages, and are kept so in job records. The page
translates what it shows: `say` looks for the English pattern that a sentence was made from, keeps what stands in its
holes (names, paths, numbers), and puts that into the Chinese one. A hole may hold a known phrase or sentence of its
own, which is translated too. A sentence that nobody knows stays English.

The patterns are in errors_zh_sources.py, errors_zh_hub.py and errors_zh_jobs.py. A line that begins at the margin is
English, with `{name}` for every hole; the indented line after it is the Chinese, with the same holes. `{said}` is what
the Hub said, ` (…)` or nothing; other holes hold anything. Lines that begin with `# ` are headings. The Chinese calls
options by their names on the page, since only the page shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from ggufy.ui.errors_zh_hub import HUB
from ggufy.ui.errors_zh_jobs import JOBS
from ggufy.ui.errors_zh_sources import SOURCES

_INDENT = "    "
_HOLE = re.compile(r"\{(\w+)\}")
_ANYTHING, _QUOTE = ".*?", r"(?: \(.*?\))?"


@dataclass(frozen=True)
class Row:
    """One English pattern and its Chinese."""

    english: str
    chinese: str
    pattern: re.Pattern[str]
    literals: tuple[str, ...]  # what stands between the holes: looked for first, as that is cheap


def say(text: str, language: str) -> str:
    """An error's English sentence in the language (`en` or `zh`); as it is where no Chinese is known."""
    return _chinese(text) if language == "zh" else text


@cache
def rows() -> tuple[Row, ...]:
    """All patterns, those with the most literal characters first: they are the most particular."""
    found = [row for table in (SOURCES, HUB, JOBS) for row in _read(table)]
    return tuple(sorted(found, key=lambda row: -sum(map(len, row.literals))))


def _read(table: str) -> Iterator[Row]:
    english = ""
    for line in table.splitlines():
        if line.startswith(_INDENT):
            pieces = _HOLE.split(english)  # literals, and between them the names of the holes
            parts = [_hole(piece) if number % 2 else re.escape(piece) for number, piece in enumerate(pieces)]
            pattern = re.compile("".join(parts), re.DOTALL)
            yield Row(english, line.removeprefix(_INDENT), pattern, tuple(filter(None, pieces[::2])))
        elif line and not line.startswith("# "):
            english = line


def _hole(name: str) -> str:
    return f"(?P<{name}>{_QUOTE if name == 'said' else _ANYTHING})"


def find(text: str) -> tuple[Row, dict[str, str]] | None:
    """The pattern that a sentence or phrase was made from, and what stands in its holes."""
    for row in rows():
        if all(literal in text for literal in row.literals) and (match := row.pattern.fullmatch(text)):
            return row, match.groupdict()
    return None


@lru_cache(maxsize=1024)  # the page draws its jobs every second
def _chinese(text: str) -> str:
    if (found := find(text)) is None:
        return text
    row, holes = found
    return row.chinese.format(**{hole: _chinese(value) for hole, value in holes.items()})

"""What the sentences of errors say in Simplified Chinese.

Errors are raised in English, by parts that know nothing of languages, and are kept so in job records. The page
translates what it shows: `say` looks for the English pattern that a sentence was made from, keeps what stands in its
holes (names, paths, numbers), and puts that into the Chinese one. A hole may hold a known phrase or sentence of its
own, which is translated too. A sentence that nobody knows stays English.

The patterns are in errors_zh_sources.py, errors_zh_hub.py, errors_zh_tools.py and errors_zh_jobs.py. A line that
begins at the margin is English, with `{name}` for every hole; the indented line after it is the Chinese, with the same
holes. `{said}` is what the Hub said, ` (…)` or nothing; other holes hold anything. Lines that begin with `# ` are
headings. The Chinese calls options by their names on the page, since only the page shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from ggufy.ui.errors_zh_hub import HUB
from ggufy.ui.errors_zh_jobs import JOBS
from ggufy.ui.errors_zh_sources import SOURCES
from ggufy.ui.errors_zh_tools import TOOLS

_INDENT = "    "
_HOLE = re.compile(r"\{(\w+)\}")
_SAID = "{said}"
_WIDE = re.compile("[\u4e00-\u9fff]")
_DEPTH = 3  # of sentences in the holes of sentences; strangers choose what some holes hold


@dataclass(frozen=True)
class Row:
    """One English pattern and its Chinese."""

    english: str
    chinese: str
    literals: tuple[str, ...]  # what stands before, between and after the holes
    holes: tuple[str, ...]

    def match(self, text: str) -> dict[str, str] | None:
        """What stands in the holes if the text was made from this pattern: as little as can be in the first ones.

        No regular expression, which could take minutes over a text that was made for it.
        """
        if not self.holes:
            return {} if text == self.english else None
        first, *between, last = self.literals
        if not text.startswith(first) or not text.endswith(last):
            return None
        values, place = [], len(first)
        for literal in between:
            end = text.find(literal, place)
            if end < 0:
                return None
            values.append(text[place:end])
            place = end + len(literal)
        end = len(text) - len(last)
        return dict(zip(self.holes, [*values, text[place:end]], strict=True)) if end >= place else None


def say(text: str, language: str) -> str:
    """An error's English sentence in the language (`en` or `zh`); as it is where no Chinese is known."""
    return _chinese(text, _DEPTH) if language == "zh" else text


def find(text: str) -> tuple[Row, dict[str, str]] | None:
    """The pattern that a sentence or phrase was made from, and what stands in its holes."""
    return next(((row, holes) for row in rows() if (holes := row.match(text)) is not None), None)


@cache
def rows() -> tuple[Row, ...]:
    """All patterns, those with the most literal characters first: they are the most particular."""
    found = [row for table in (SOURCES, HUB, TOOLS, JOBS) for row in _read(table)]
    return tuple(sorted(found, key=lambda row: -sum(map(len, row.literals))))


def _read(table: str) -> Iterator[Row]:
    english = ""
    for line in table.splitlines():
        if line.startswith(_INDENT):
            chinese = line.removeprefix(_INDENT)
            yield _row(english.replace(_SAID, ""), chinese.replace(_SAID, ""))
            if _SAID in english:
                yield _row(english.replace(_SAID, f" ({_SAID})"), chinese.replace(_SAID, f"（{_SAID}）"))
        elif line and not line.startswith("# "):
            english = line


def _row(english: str, chinese: str) -> Row:
    pieces = _HOLE.split(english)  # literals, and between them the names of the holes
    return Row(english, chinese, tuple(pieces[::2]), tuple(pieces[1::2]))


@lru_cache(maxsize=1024)  # the page draws its jobs every second
def _chinese(text: str, depth: int) -> str:
    if depth == 0 or (found := find(text)) is None:
        return text
    row, holes = found
    chinese, told = row.chinese, {hole: _chinese(value, depth - 1) for hole, value in holes.items()}
    for hole in (hole for hole in holes if told[hole] != holes[hole]):  # blanks are for what is not Chinese
        if _WIDE.match(told[hole][0]):
            chinese = chinese.replace(f" {{{hole}}}", f"{{{hole}}}")
        if _WIDE.match(told[hole][-1]):
            chinese = chinese.replace(f"{{{hole}}} ", f"{{{hole}}}")
    return chinese.format(**told)

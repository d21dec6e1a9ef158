"""Patterns for the models of a repo, such as `*-pro.pth`: `*` (also across folders), `?` and `[…]`."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from ggufy.sources.format import SourceFormat
from ggufy.sources.registry import format_of_name

_WILD = frozenset("*?[")


def is_wild(file: str) -> bool:
    """True for what stands for several files."""
    return not _WILD.isdisjoint(file)


def matching(pattern: str, models: Iterable[tuple[str, SourceFormat]]) -> list[str]:
    """The models of a repo that are meant, by name; all for an empty pattern.

    Of a format whose models have to be named, such as GGUF, only a pattern with its ending means any: most GGUFs of a
    repo are quants.
    """
    named = format_of_name(pattern)
    wanted = [name for name, form in models if form.unnamed or (named is not None and form.kind == named.kind)]
    return sorted(name for name in wanted if name == pattern or not pattern or fnmatchcase(name, pattern))

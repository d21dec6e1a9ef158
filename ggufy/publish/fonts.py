"""Fonts for pictures: the one that Pillow carries for what it has, which is Latin, else one of this machine's.

Whether a font has a letter is seen by drawing it: one that is missing looks like any other that is.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts"),  # Linux
    *("/System/Library/Fonts", "/Library/Fonts"),  # macOS
    "C:/Windows/Fonts",
)
_KINDS = (".ttf", ".ttc", ".otf", ".otc")
_LIKELY = ("cjk", "hei", "fallback", "pingfang", "msyh")  # in names of fonts that have Chinese: looked at first
_STYLES = ("bold", "italic", "oblique", "light", "black", "mono", "serif")  # looked at last
_NOBODY_HAS = "\U0010ffff"
_TRIED_AT = 16  # pixels

Font = ImageFont.FreeTypeFont


def font_for(text: str, size: float) -> Font | ImageFont.ImageFont:
    """A font of `size` pixels that has all letters of the text; if none has, the one with most."""
    own = ImageFont.load_default(size)
    letters = frozenset(letter for letter in text if not letter.isspace() and not letter.isascii())
    if not letters or not isinstance(own, Font):
        return own
    path = _best(letters)
    return ImageFont.truetype(path, size) if path else own


@lru_cache(maxsize=256)
def _best(letters: frozenset[str]) -> Path | None:
    """The file of the font that lacks the fewest of these; None for Pillow's own."""
    own = ImageFont.load_default(_TRIED_AT)
    assert isinstance(own, Font)
    fewest, best = _missing(own, letters), None
    for path in _font_files():
        if not fewest:
            break
        try:
            missing = _missing(ImageFont.truetype(path, _TRIED_AT), letters)
        except OSError:  # broken, or one that has no letters of this size
            continue
        if missing < fewest:
            fewest, best = missing, path
    return best


def _missing(font: Font, letters: Iterable[str]) -> int:
    """How many of the letters it lacks."""
    nothing = _drawn(font, _NOBODY_HAS)
    return sum(_drawn(font, letter) == nothing for letter in letters)


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@cache
def _font_files() -> tuple[Path, ...]:
    """This machine's, the likely ones first."""
    found = (path for folder in FOLDERS for path in Path(folder).rglob("*") if path.suffix.lower() in _KINDS)
    return tuple(sorted(found, key=_rank))


def _rank(path: Path) -> tuple[bool, bool, str]:
    name = path.stem.lower()
    likely, styled = (any(word in name for word in words) for words in (_LIKELY, _STYLES))
    return not likely, styled, str(path)

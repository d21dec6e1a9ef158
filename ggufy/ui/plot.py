"""The results as a picture: size against KLD where quants were measured, size alone where not."""

from __future__ import annotations

from collections.abc import Sequence

from ggufy.core.words import human_size
from ggufy.publish.kld_plot import NARROW, WIDTH, Point, Words, measured, scatter
from ggufy.publish.markup import Markup, el
from ggufy.ui.i18n import Texts


def plot(points: Sequence[Point], texts: Texts) -> Markup:
    """The points, smallest file first; the style sheet shows one of the two pictures."""
    if len(measured(points)) < 2:
        return _bars(points)
    words = Words(size=texts["column_size"], kld=texts["column_kld"], title=texts["plot"])
    return el("div", *(scatter(points, words, width) for width in (WIDTH, NARROW)), class_="gg-plots")


def _bars(points: Sequence[Point]) -> Markup:
    most = max(point.size for point in points)
    rows = [
        el(
            "li",
            el("span", point.name, class_="gg-bars-name"),
            el("span", el("span", style=f"width: {100 * point.size / most:.1f}%"), class_="gg-bars-bar"),
            el("span", human_size(point.size), class_="gg-numbers"),
        )
        for point in points
    ]
    return el("ul", *rows, class_="gg-bars")

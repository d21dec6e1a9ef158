"""The results as a picture: size against KLD where quants were measured, size alone where not.

SVG and HTML of our own, without a script: nothing has to be loaded, and nothing moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ggufy.files import human_size
from ggufy.ui.i18n import Texts
from ggufy.ui.markup import Markup, el
from ggufy.ui.views import Point

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 40  # margins for the axes
_LABEL_WIDTH, _LABEL_HEIGHT = 46, 12


def plot(points: Sequence[Point], texts: Texts) -> Markup:
    """The points, smallest file first."""
    measured = [point for point in points if point.kld]
    if len(measured) < 2:
        return _bars(points)
    return _scatter(measured, texts)


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


def _scatter(points: Sequence[Point], texts: Texts) -> Markup:
    """Size to the right, KLD upwards in decades: better is lower left."""
    klds = [point.kld or 0.0 for point in points]
    low, high = math.floor(math.log10(min(klds))), math.ceil(math.log10(max(klds)) + 1e-9)
    most = max(point.size for point in points) * 1.06
    least = min(point.size for point in points) * 0.94

    def x(size: float) -> float:
        return _LEFT + (size - least) / (most - least) * (_WIDTH - _LEFT - _RIGHT)

    def y(kld: float) -> float:
        return _TOP + (high - math.log10(kld)) / max(1, high - low) * (_HEIGHT - _TOP - _BOTTOM)

    lines = []
    for decade in range(low, high + 1):
        at = y(10.0**decade)
        lines.append(el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="gg-grid"))
        lines.append(_text(_LEFT - 8, at + 4, f"{10.0**decade:g}", "end"))
    for part in range(5):
        size = least + (most - least) * part / 4
        anchor = "end" if part == 4 else "middle"
        lines.append(_text(x(size), _HEIGHT - _BOTTOM + 18, human_size(round(size)), anchor))
    lines.append(_text(_WIDTH - _RIGHT, _HEIGHT - 6, texts["column_size"], "end"))
    lines.append(_text(_LEFT - 8, _HEIGHT - 6, texts["column_kld"], "end"))
    return el(
        "svg",
        *lines,
        *_marks([(x(point.size), y(point.kld or 1.0), point) for point in points]),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        class_="gg-plot",
        role="img",
        aria_label=texts["plot"],
    )


def _marks(placed: Sequence[tuple[float, float, Point]]) -> list[Markup]:
    """A dot each, and its name wherever that covers no other name; all names show when the mouse is over a dot."""
    marks: list[Markup] = []
    taken: list[tuple[float, float]] = []
    best = math.inf
    for at_x, at_y, point in placed:
        kld = point.kld or 0.0
        frontier, best = kld < best, min(best, kld)
        title = el("title", f"{point.name}: {human_size(point.size)}, KLD {kld:.4f}")
        kind = "gg-dot-best" if frontier else "gg-dot-other"
        marks.append(el("circle", title, cx=f"{at_x:.1f}", cy=f"{at_y:.1f}", r=5 if frontier else 4, class_=kind))
        spot = (min(at_x + 8, _WIDTH - _LABEL_WIDTH), at_y - 7)
        free = all(abs(spot[0] - x) > _LABEL_WIDTH or abs(spot[1] - y) > _LABEL_HEIGHT for x, y in taken)
        if frontier and free:
            taken.append(spot)
            marks.append(_text(*spot, point.name, "start"))
    return marks


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return el("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)

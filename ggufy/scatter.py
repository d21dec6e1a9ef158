"""Size against KLD as a picture: of the page, and beside the model card. Pure.

SVG of our own, without a script: nothing has to be loaded, and nothing moves. The page colours it with its own style
sheet. `document` is for an SVG that stands alone: shown by an `<img>` it sees no other style sheet, and it has a light
background since it cannot know whether the page around it is light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ggufy.files import human_size
from ggufy.markup import Markup, el

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 40  # margins for the axes
_LABEL_WIDTH, _LABEL_HEIGHT = 46, 12
_STYLE = (
    "svg { font: 11px system-ui, sans-serif; } text { fill: #52606d; } .gg-back { fill: #ffffff; } "
    ".gg-grid { stroke: #e4e7eb; } .gg-dot-best { fill: #2563eb; } .gg-dot-other { fill: #52606d; opacity: 0.45; }"
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One file of the plot."""

    name: str  # quant type, or the base's type
    size: int  # bytes
    kld: float | None  # nats a token; None: not measured, or the base itself


@dataclass(frozen=True, kw_only=True)
class Words:
    """What is written at the axes, and what the picture is for those who cannot see it."""

    size: str
    kld: str
    title: str


def measured(points: Sequence[Point]) -> list[Point]:
    """Those that `scatter` can show. It needs two of them."""
    return [point for point in points if point.kld]


def scatter(points: Sequence[Point], words: Words) -> Markup:
    """The measured points, smallest file first, as an element of a page.

    Size to the right, KLD upwards in decades: better is lower left. A file with a smaller KLD than every smaller file
    is marked and, where there is room, named.
    """
    return el("svg", *_inside(points, words), class_="gg-plot", **_about(words))


def document(points: Sequence[Point], words: Words) -> str:
    """The same as a file of its own."""
    back = el("rect", width="100%", height="100%", class_="gg-back")
    size: dict[str, str | int] = {"width": _WIDTH, "height": _HEIGHT, "xmlns": "http://www.w3.org/2000/svg"}
    return el("svg", el("style", _STYLE), back, *_inside(points, words), **size, **_about(words)) + "\n"


def _about(words: Words) -> dict[str, str]:
    return {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria_label": words.title}


def _inside(points: Sequence[Point], words: Words) -> list[Markup]:
    shown = measured(points)
    klds = [point.kld or 0.0 for point in shown]
    low, high = math.floor(math.log10(min(klds))), math.ceil(math.log10(max(klds)) + 1e-9)
    most = max(point.size for point in shown) * 1.06
    least = min(point.size for point in shown) * 0.94

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
    lines.append(_text(_WIDTH - _RIGHT, _HEIGHT - 6, words.size, "end"))
    lines.append(_text(_LEFT - 8, _HEIGHT - 6, words.kld, "end"))
    return [*lines, *_marks([(x(point.size), y(point.kld or 1.0), point) for point in shown])]


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

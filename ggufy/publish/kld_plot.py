"""Size against KLD as a picture: of the page, and beside the model card. Pure.

SVG of our own, without a script: nothing has to be loaded, and nothing moves. The page colours it with its own style
sheet. `document` is for an SVG that stands alone: shown by an `<img>` it sees no other style sheet, and it has a light
background since it cannot know whether the page around it is light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ggufy.core.words import human_size
from ggufy.publish.markup import Markup, el

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 40  # margins for the axes
_LETTER = 7.2  # width of a name's letters, at most
_Box = tuple[float, float, float, float]  # left, top, right, bottom
_STYLE = (
    "svg { font: 11px system-ui, sans-serif; } text { fill: #52606d; } .gg-back { fill: #ffffff; } "
    ".gg-grid { stroke: #e4e7eb; } .gg-frontier { fill: none; stroke: #2563eb; opacity: 0.35; } "
    ".gg-dot-best { fill: #2563eb; } .gg-dot-other { fill: #52606d; opacity: 0.45; }"
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
    """Those that `scatter` can show; it needs two of them. The mean KLD of a file that loses next to nothing may come
    out as zero or a little below, and has no place on a logarithmic axis."""
    return [point for point in points if point.kld is not None and point.kld > 0]


def scatter(points: Sequence[Point], words: Words) -> Markup:
    """The measured points, smallest file first, as an element of a page.

    Size to the right, KLD upwards in decades: better is lower left. A file with a smaller KLD than every smaller file
    is marked and, where there is room, named; a line joins them.
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
    """The frontier, a dot for each point, and the names on the frontier that cover nothing; the others show when the
    mouse is over a dot."""
    best, frontier = math.inf, []
    for at_x, at_y, point in placed:
        if (point.kld or 0.0) < best:
            best = point.kld or 0.0
            frontier.append((at_x, at_y, point))
    path = " ".join(f"{at_x:.1f},{at_y:.1f}" for at_x, at_y, _ in frontier)
    marks = [el("polyline", points=path, class_="gg-frontier")]
    for at_x, at_y, point in placed:
        good = (at_x, at_y, point) in frontier
        title = el("title", f"{point.name}: {human_size(point.size)}, KLD {point.kld:.4f}")
        kind = "gg-dot-best" if good else "gg-dot-other"
        marks.append(el("circle", title, cx=f"{at_x:.1f}", cy=f"{at_y:.1f}", r=5 if good else 4, class_=kind))
    taken = [(at_x - 5, at_y - 5, at_x + 5, at_y + 5) for at_x, at_y, _ in placed]
    return marks + [name for at_x, at_y, point in frontier if (name := _name(at_x, at_y, point.name, taken))]


def _name(x: float, y: float, name: str, taken: list[_Box]) -> Markup | None:
    """A name below or above its dot, where it covers nothing of `taken`, to which it is added; None if nowhere."""
    width = _LETTER * len(name)
    for left, baseline in ((x - 7 - width, y + 14), (x + 8, y - 7)):
        box = (left, baseline - 10, left + width, baseline + 2)
        inside = left > _LEFT and left + width < _WIDTH and box[1] > 0 and box[3] < _HEIGHT - _BOTTOM
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return _text(left, baseline, name, "start")
    return None


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return el("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)

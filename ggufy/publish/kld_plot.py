"""Size against KLD as a picture: of the page, beside the model card, and of files of several models. Pure.

`drawn` says what is where, and two hands draw it: SVG here, PNG in plot_png.py. The SVG is our own, without a script:
nothing has to be loaded, and nothing moves. The page colours it with its own style sheet. `document` is for an SVG
that stands alone: shown by an `<img>` it sees no other style sheet, and it has a light background since it cannot know
whether the page around it is light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

from ggufy.core.words import human_size
from ggufy.publish.markup import Markup, el

WIDTH, HEIGHT = 560, 250
NARROW = 330  # WIDTH on a phone: text that is not made smaller with the picture
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 40  # margins for the axes
SERIES = 6  # that have a colour of their own; then they begin again
_LETTER, _WIDE_LETTER = 7.2, 11  # width of a name's letters, at most: of Latin ones, and of such as Chinese
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
    series: int | None = None  # points of one series can be compared; None: there is one, which needs no colour


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


@dataclass(frozen=True, kw_only=True)
class Line:
    """Joins places: of the grid, or a series' frontier."""

    places: tuple[tuple[float, float], ...]
    grid: bool = False
    series: int | None = None


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text that begins, ends or has its middle at x, and stands on y."""

    x: float
    y: float
    text: str
    anchor: str = "start"  # or end, or middle


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A file."""

    x: float
    y: float
    good: bool  # on the frontier
    point: Point

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """Of a square, or one that stands on its corner, so that series differ by more than their colours; none of a
        circle."""
        r = self.radius
        match (self.point.series or 0) % 3:
            case 1:
                return tuple((self.x + a * r * 0.9, self.y + b * r * 0.9) for a, b in _SQUARE)
            case 2:
                return tuple((self.x + a * r * 1.25, self.y + b * r * 1.25) for a, b in _DIAMOND)
            case _:
                return ()

    @property
    def radius(self) -> float:
        return 5 if self.good else 4


Shape = Line | Label | Dot
_SQUARE = ((-1, -1), (1, -1), (1, 1), (-1, 1))
_DIAMOND = ((0, -1), (1, 0), (0, 1), (-1, 0))


def scatter(points: Sequence[Point], words: Words, width: int = WIDTH) -> Markup:
    """The measured points, smallest file first, as an element of a page that is about `width` pixels wide.

    Size to the right, KLD upwards in decades: better is lower left. A file with a smaller KLD than every smaller file
    of its series is marked and, where there is room, named; a line joins them.
    """
    return el("svg", *map(_svg, drawn(points, words, width)), class_="gg-plot", **_about(words, width))


def document(points: Sequence[Point], words: Words) -> str:
    """The same as a file of its own."""
    back = el("rect", width="100%", height="100%", class_="gg-back")
    size: dict[str, str | int] = {"width": WIDTH, "height": HEIGHT, "xmlns": "http://www.w3.org/2000/svg"}
    shapes = map(_svg, drawn(points, words))
    return el("svg", el("style", _STYLE), back, *shapes, **size, **_about(words, WIDTH)) + "\n"


def _about(words: Words, width: int) -> dict[str, str]:
    return {"viewBox": f"0 0 {width} {HEIGHT}", "role": "img", "aria_label": words.title}


def _svg(shape: Shape) -> Markup:
    match shape:
        case Label():
            return el("text", shape.text, x=f"{shape.x:.1f}", y=f"{shape.y:.1f}", text_anchor=shape.anchor)
        case Line():
            path = _path(shape.places)
            if not shape.grid:
                return el("polyline", points=path, class_=f"gg-frontier{_series(shape.series)}")
            (x1, y1), (x2, y2) = shape.places
            return el("line", x1=f"{x1:g}", x2=f"{x2:g}", y1=f"{y1:.1f}", y2=f"{y2:.1f}", class_="gg-grid")
        case Dot():
            kind = f"gg-dot-{'best' if shape.good else 'other'}{_series(shape.point.series)}"
            point = shape.point
            title = el("title", f"{point.name}: {human_size(point.size)}, KLD {point.kld:.4f}")
            if shape.corners:
                return el("polygon", title, points=_path(shape.corners), class_=kind)
            return el("circle", title, cx=f"{shape.x:.1f}", cy=f"{shape.y:.1f}", r=int(shape.radius), class_=kind)


def _path(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _series(number: int | None) -> str:
    return "" if number is None else f" gg-series-{number % SERIES}"


def drawn(points: Sequence[Point], words: Words, width: int = WIDTH) -> list[Shape]:
    """What there is to draw of the measured points, of which there must be one, on `width` times HEIGHT; what comes
    later covers what was before."""
    shown = measured(points)
    klds = [point.kld or 0.0 for point in shown]
    low, high = math.floor(math.log10(min(klds))), math.ceil(math.log10(max(klds)) + 1e-9)
    most = max(point.size for point in shown) * 1.06
    least = min(point.size for point in shown) * 0.94

    def x(size: float) -> float:
        return _LEFT + (size - least) / (most - least) * (width - _LEFT - _RIGHT)

    def y(kld: float) -> float:
        return _TOP + (high - math.log10(kld)) / max(1, high - low) * (HEIGHT - _TOP - _BOTTOM)

    shapes: list[Shape] = []
    for decade in range(low, high + 1):
        at = y(10.0**decade)
        shapes.append(Line(places=((_LEFT, at), (width - _RIGHT, at)), grid=True))
        shapes.append(Label(x=_LEFT - 8, y=at + 4, text=f"{10.0**decade:g}", anchor="end"))
    parts = 4 if width > NARROW else 3
    for part in range(parts + 1):
        size = least + (most - least) * part / parts
        anchor = "end" if part == parts else "middle"
        shapes.append(Label(x=x(size), y=HEIGHT - _BOTTOM + 18, text=human_size(round(size)), anchor=anchor))
    shapes.append(Label(x=width - _RIGHT, y=HEIGHT - 6, text=words.size, anchor="end"))
    shapes.append(Label(x=_LEFT - 8, y=HEIGHT - 6, text=words.kld, anchor="end"))
    return [*shapes, *_marks([(x(point.size), y(point.kld or 1.0), point) for point in shown], width)]


def _marks(placed: Sequence[tuple[float, float, Point]], width: int) -> list[Shape]:
    """The frontiers, a dot for each point, and the names on the frontiers that cover nothing; the others show when the
    mouse is over a dot."""
    lines: list[Shape] = []
    dots: list[Dot] = []
    for series in dict.fromkeys(point.series for _, _, point in placed):
        best = math.inf
        own: list[Dot] = []
        for at_x, at_y, point in placed:
            if point.series == series:
                own.append(Dot(x=at_x, y=at_y, point=point, good=(point.kld or 0.0) < best))
                best = min(best, point.kld or 0.0)
        lines.append(Line(places=tuple((dot.x, dot.y) for dot in own if dot.good), series=series))
        dots += own
    taken = [(dot.x - 5, dot.y - 5, dot.x + 5, dot.y + 5) for dot in dots]
    names = [name for dot in dots if dot.good and (name := _name(dot, width, taken))]
    return [*lines, *dots, *names]


def _name(dot: Dot, right: int, taken: list[_Box]) -> Label | None:
    """A name below or above its dot, where it covers nothing of `taken`, to which it is added; None if nowhere."""
    width = sum(_WIDE_LETTER if east_asian_width(letter) in "WF" else _LETTER for letter in dot.point.name)
    for left, baseline in ((dot.x - 7 - width, dot.y + 14), (dot.x + 8, dot.y - 7)):
        box = (left, baseline - 10, left + width, baseline + 2)
        inside = left > _LEFT and left + width < right and box[1] > 0 and box[3] < HEIGHT - _BOTTOM
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            return Label(x=left, y=baseline, text=dot.point.name)
    return None


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

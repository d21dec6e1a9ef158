"""The plot of kld_plot.py as a PNG, with a line below for each series. Drawn by Pillow; see fonts.py."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ggufy.publish.fonts import font_for
from ggufy.publish.kld_plot import HEIGHT, SERIES, WIDTH, Dot, Label, Line, Point, Shape, Words, drawn

SCALE = 2  # pixels of the picture for each unit of the plot
_FINE = 2  # times as many while it is drawn: then edges are smooth
_LETTERS, _LINE_HEIGHT = 11, 17
# Okabe and Ito's colours, which people tell apart who see fewer of them.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a6a00", "#2f9fd8")
_QUIET, _GRID, _BACK = "#52606d", "#e4e7eb", "#ffffff"
assert len(COLOURS) == SERIES


def png(points: Sequence[Point], words: Words, legend: Sequence[str]) -> bytes:
    """The picture; `legend` has a text for each series. One point at least must be measured, see kld_plot.py."""
    height = HEIGHT + _LINE_HEIGHT * len(legend) + (8 if legend else 0)
    pen = _Pen(WIDTH, height)
    for shape in drawn(points, words):
        pen.draw(shape)
    for number, text in enumerate(legend):
        y = HEIGHT + _LINE_HEIGHT * (number + 0.5)
        pen.draw(Dot(x=20, y=y, good=True, point=Point(name="", size=0, kld=None, series=number)))
        pen.draw(Label(x=32, y=y + 4, text=text))
    return pen.finished()


class _Pen:
    def __init__(self, width: int, height: int):
        self._scale = SCALE * _FINE
        self._size = (width * SCALE, height * SCALE)
        self._image = Image.new("RGB", (width * self._scale, height * self._scale), _BACK)
        self._draw = ImageDraw.Draw(self._image)

    def draw(self, shape: Shape) -> None:
        match shape:
            case Line():
                places = [self._at(place) for place in shape.places]
                colour = _GRID if shape.grid else _pale(_colour(shape.series))
                self._draw.line(places, fill=colour, width=self._scale)
            case Label():
                anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
                font = font_for(shape.text, _LETTERS * self._scale)
                self._draw.text(self._at((shape.x, shape.y)), shape.text, _QUIET, font, anchor)
            case Dot():
                colour = _colour(shape.point.series) if shape.good else _pale(_colour(shape.point.series))
                r = shape.radius
                if shape.corners:
                    self._draw.polygon([self._at(corner) for corner in shape.corners], fill=colour)
                else:
                    box = [self._at((shape.x - r, shape.y - r)), self._at((shape.x + r, shape.y + r))]
                    self._draw.ellipse(box, fill=colour)

    def finished(self) -> bytes:
        out = io.BytesIO()
        self._image.resize(self._size, Image.Resampling.LANCZOS).save(out, "PNG", optimize=True)
        return out.getvalue()

    def _at(self, place: tuple[float, float]) -> tuple[float, float]:
        return place[0] * self._scale, place[1] * self._scale


def _colour(series: int | None) -> str:
    return COLOURS[(series or 0) % SERIES]


def _pale(colour: str) -> str:
    """Half way to white."""
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{(part + 255) // 2:02x}" for part in parts)

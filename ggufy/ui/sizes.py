"""“Another size” on the card of a model: a slider over the frontier that was measured, and the button that orders.

The server says what there is to choose; which of it is chosen stays in the browser (jobs.js), so nothing jumps when
the card is drawn again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ggufy.core.job import FrontierPoint, Job
from ggufy.core.plan import quant_name
from ggufy.publish.markup import Markup, el
from ggufy.quantize.search import target
from ggufy.ui.i18n import Texts
from ggufy.ui.parts import button

_USUAL_BPW = 4.5


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """A size that can be ordered."""

    size: int  # bytes, as the frontier has them
    text: str  # as the file will be called
    bpw: str
    kld: str
    height: float  # of its KLD between the worst and the best, on a logarithmic scale, 1 to 0


def size_rows(points: Sequence[FrontierPoint]) -> tuple[SizeRow, ...]:
    """The sizes that can be ordered; none if there is nothing to choose."""
    if len(points) < 2:
        return ()
    logs = [math.log(max(point.kld, 1e-6)) for point in points]
    low, span = min(logs), max(logs) - min(logs) or 1.0
    return tuple(
        SizeRow(
            size=point.size,
            text=sized(target.size_word(point.size)),
            bpw=f"{point.bpw:.2f}",
            kld=f"{point.kld:.4f}" if point.kld >= 0.001 else f"{point.kld:.5f}",
            height=(log - low) / span,
        )
        for point, log in zip(points, logs, strict=True)
    )


def start_at(job: Job) -> int:
    """The size that the job was for, or one that most people would take."""
    made = {artifact.name: artifact.size for artifact in job.artifacts}
    size = next((made[name] for t in job.request.targets if (name := quant_name(job.request, t)) in made), 0)
    far = [abs(p.size - size) if size else abs(p.bpw - _USUAL_BPW) for p in job.frontier]
    return far.index(min(far)) if far else 0


def sized(word: str) -> str:
    """`1.2GB` -> `1.2 GB`."""
    return re.sub(r"(?<=[0-9])(?=[A-Za-z])", " ", word, count=1)


def finder(job_id: str, takes: str, texts: Texts) -> Markup:
    """The button that finds which sizes there are, and how long that takes."""
    info = texts["find_sizes_info"].format(time=takes)
    find = button(texts["find_sizes"], "find-sizes", job_id)
    return el("p", el("span", info, class_="gg-quiet"), find, class_="gg-line gg-find-sizes")


def panel(model: str, job_id: str, sizes: Sequence[SizeRow], start: int, texts: Texts, *, may_work: bool) -> Markup:
    """A slider over the best files for their size, and the button that orders one from a job of the model.

    jobs.js shows what is chosen: its place, its figures and what the button would make.
    """
    last = len(sizes) - 1
    places = [(100 * i / last, 100 - 100 * row.height) for i, row in enumerate(sizes)]
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
    rows = [
        {"size": row.size, "text": row.text, "bpw": row.bpw, "kld": row.kld, "left": round(x, 2), "top": round(y, 2)}
        for row, (x, y) in zip(sizes, places, strict=True)
    ]
    curve = {"viewBox": "0 0 100 100", "preserveAspectRatio": "none", "aria_hidden": "true"}
    slider = el(
        "input",
        type="range",
        min=0,
        max=last,
        step=1,
        value=start,
        aria_label=texts["sizes_slider"],
        data_key=f"slider {model}",
    )
    figures = [
        el("span", el("span", texts[label], class_="gg-quiet"), el("output", data_figure=name))
        for label, name in (("column_size", "text"), ("column_bpw", "bpw"), ("sizes_kld", "kld"))
    ]
    return el(
        "div",
        el("p", texts["sizes_info"], class_="gg-quiet gg-where"),
        el(
            "div",
            el("svg", el("polyline", points=path), **curve),
            el("span", f"KLD {sizes[0].kld}", class_="gg-quiet gg-curve-from"),
            el("span", f"KLD {sizes[-1].kld}", class_="gg-quiet gg-curve-to"),
            el("span", class_="gg-curve-dot"),
            class_="gg-curve gg-numbers",
        ),
        slider,
        el("p", el("span", sizes[0].text), el("span", sizes[-1].text), class_="gg-ends gg-quiet gg-numbers"),
        el(
            "div",
            el("p", *figures, class_="gg-chosen gg-numbers"),
            button(texts["make_size"], "make-size", job_id) if may_work else None,
            class_="gg-line gg-order",
        ),
        class_="gg-sizes",
        data_sizes=model,
        data_rows=json.dumps(rows),
        data_spoken=texts["sizes_chosen"],
    )

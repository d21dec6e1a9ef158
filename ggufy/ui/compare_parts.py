"""Files of several models side by side, as HTML: the line above the cards that counts what is ticked, and the window
with search, table and plot (see parts.py for the conventions). Which files are ticked is known to jobs.js alone."""

from __future__ import annotations

from collections.abc import Sequence

from ggufy.core.comparison import COLUMNS, Basis, ComparedFile, Figures, Group, apart, grouped, thread_counts
from ggufy.core.words import human_size
from ggufy.jobs.compared import points
from ggufy.publish.kld_plot import SERIES, measured
from ggufy.publish.markup import Markup, el, join
from ggufy.quantize.search import target
from ggufy.ui.comparing import MOST, Found, Ticked, address
from ggufy.ui.file_rows import FileRow
from ggufy.ui.i18n import Texts
from ggufy.ui.job_parts import Piece
from ggufy.ui.model_parts import file_table, tick_box
from ggufy.ui.plot import plot

_WINDOW = "compare"


def bar(texts: Texts) -> Piece:
    """Above the cards: how many files are ticked, and what opens the window."""
    count = el("output", class_="gg-quiet gg-numbers", data_text=texts["compare_count"], data_most=MOST)
    parts = (_press("open", texts["compare"]), count, _press("clear", texts["compare_clear"], kind="gg-link"))
    return "comparing", el("div", *parts, class_="gg-line gg-comparing", data_comparing="")


def window(ticked: Sequence[Ticked], found: Found | None, texts: Texts) -> list[Piece]:
    """The pieces of the window while it is open; `found`: what the visitor's words have found, if there are any."""
    title = el("h2", texts["compare"])
    box = el(
        "input", type="search", placeholder=texts["compare_search"], aria_label=texts["compare_search"], data_find=""
    )
    bodies = (el("div", data_body=f"{name} {_WINDOW}", class_=f"gg-{name}") for name in ("matches", "compared"))
    head = el("div", title, _press("close", texts["close"]), class_="gg-line gg-compare-head")
    shell = el("dialog", head, box, *bodies, class_="gg-job gg-compare", aria_label=texts["compare"])
    matches = [(f"matches {_WINDOW}", _matches(found, texts))] if found else []
    return [(_WINDOW, shell), *matches, (f"compared {_WINDOW}", _compared(ticked, texts))]


def _press(what: str, text: str, *, kind: str = "gg-button") -> Markup:
    return el("button", text, type="button", data_compare=what, data_key=f"compare {what}", class_=kind)


def _matches(found: Found, texts: Texts) -> Markup:
    """What a search has found, to be ticked."""
    if not found.first:
        return el("p", texts["compare_nothing"], class_="gg-quiet")
    rows = (
        el("li", el("label", tick_box(tick, name, texts), name, el("span", human_size(size), class_="gg-quiet")))
        for tick, name, size in found.first
    )
    shown = len(found.first)
    more = el("p", texts["compare_more"].format(count=found.count - shown), class_="gg-quiet")
    every = _press("all", texts["compare_all"].format(count=shown), kind="gg-link")
    return join(every if shown > 1 else None, el("ul", *rows), more if found.count > shown else None)


def _compared(ticked: Sequence[Ticked], texts: Texts) -> Markup:
    """Tables and plot beside each other."""
    if not ticked:
        return el("p", texts["compare_none"], class_="gg-quiet gg-where")
    of = {one.file: one for one in ticked}
    groups = grouped(of)
    tables = (part for number, group in enumerate(groups) for part in _group(group, number, of, texts))
    drawn = points(groups)
    seen = bool(measured(drawn))
    kinds = ("csv", "png") if seen else ("csv",)
    links = [
        el("a", kind.upper(), href=address(kind, ticked), download=f"comparison.{kind}", class_="gg-button")
        for kind in kinds
    ]
    picture = el(
        "div",
        plot(drawn, texts) if seen else None,
        *(el("p", text, class_="gg-quiet gg-where") for text in _remarks(groups, texts)),
        el("p", *links, class_="gg-line"),
    )
    return el("div", el("div", *tables), picture, class_="gg-side-by-side")


def _group(group: Group, number: int, of: dict[ComparedFile, Ticked], texts: Texts) -> tuple[Markup, Markup]:
    """A heading that names the base and the text, with the colour that its points have; and the table."""
    names = [name for name in COLUMNS if any(COLUMNS[name](*pair) for pair in group.files)]
    rows = [_row(of[file], figures, texts) for file, figures in group.files]
    title = _title(group.basis, number, texts) if group.basis else el("h3", texts["compare_unmeasured"])
    return title, file_table(rows, ("file", *names), texts)


def _title(basis: Basis, number: int, texts: Texts) -> Markup:
    told = texts["compare_basis"].format(base=basis.base, tokens=f"{basis.tokens:,}", text=basis.text)
    return el("h3", el("span", class_=f"gg-key gg-series-{number % SERIES} gg-shape-{number % 3}"), told)


def _row(one: Ticked, figures: Figures | None, texts: Texts) -> FileRow:
    """A line of the table, with the spread of speeds; the standard errors of the others are in the CSV."""
    file = one.file
    cells = {name: cell(file, figures) for name, cell in COLUMNS.items()}
    return FileRow(
        file=file.file,
        link=one.link,
        type=target.short(file.type) or texts["product_base"],
        size=cells["size"],
        bpw=cells["bpw"],
        kld=_without_error(cells["kld"]),
        ppl=_without_error(cells["ppl"]),
        ppl_ratio=_without_error(cells["ppl_ratio"]),
        same_top=_without_error(cells["same_top"]),
        prompt=cells["prompt"],
        speed=cells["speed"],
        memory=cells["memory"],
        sha256=file.sha256,
        tick=one.tick,
    )


def _without_error(cell: str) -> str:
    """`91.0 ± 0.3 %` -> `91.0 %`."""
    value, _, rest = cell.partition(" ± ")
    return value + (" %" if rest.endswith(" %") else "")


def _remarks(groups: Sequence[Group], texts: Texts) -> list[str]:
    """What cannot be compared, and what is missing."""
    told = [texts["kld_info"]] if any(group.basis for group in groups) else []
    if why := apart(groups):
        reasons = texts["comma"].join(texts[f"apart_{one}"] for one in why)
        told.append(texts["compare_apart"].format(reasons=reasons))
    if len(threads := thread_counts(file for group in groups for file, _ in group.files)) > 1:
        told.append(texts["compare_threads"].format(counts=texts["comma"].join(map(str, sorted(threads)))))
    missing = any(not figures and not file.is_base for group in groups for file, figures in group.files)
    return told + ([texts["not_measured"]] if missing else [])

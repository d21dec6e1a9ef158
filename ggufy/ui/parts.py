"""The parts of the page that are HTML of our own, from the rows of views.py; markup.py escapes every text.

`data-key` names a part that the visitor can open and close, or focus; page.js keeps those states while the part is
drawn again. `data-action` and `data-job` are what a button reports.
"""

from __future__ import annotations

from collections.abc import Iterable

from ggufy.catalog import QUANT_TYPES, QuantType
from ggufy.service import Preparation
from ggufy.ui.i18n import Texts
from ggufy.ui.markup import Markup, el, join
from ggufy.ui.views import FileRow, JobCard, StepRow, in_page_words


def header(texts: Texts) -> Markup:
    return el(
        "header",
        el("h1", el("span", "gguf", class_="gg-mark"), "y"),
        el("p", texts["tagline"]),
        class_="gg-header",
    )


def title(texts: Texts) -> Markup:
    """Heading of the form."""
    return el("h2", texts["new_job"])


def message(text: str, kind: str = "bad") -> Markup:
    """What came of pressing a button; `kind` is bad, good or busy."""
    return el("p", in_page_words(text), class_=f"gg-message gg-{kind}", role="alert" if kind == "bad" else "status")


def banner(state: Preparation, texts: Texts, *, read_only: bool) -> Markup:
    """What everybody should know: llama.cpp is being prepared, or could not be; the Space is for looking only."""
    parts = []
    if read_only:
        parts.append(el("div", el("p", texts["space_closed"]), class_="gg-banner", role="note"))
    if state.error:
        again = el("button", texts["again"], type="button", data_action="again", data_key="again", class_="gg-button")
        title = el("strong", texts["prepare_failed"])
        text = el("div", title, el("p", state.error))
        parts.append(el("div", text, None if read_only else again, class_="gg-banner gg-bad", role="alert"))
    elif not state.ready:
        parts.append(_preparing(state, texts))
    return join(*parts)


def _preparing(state: Preparation, texts: Texts) -> Markup:
    title = texts["preparing"]
    step = texts["preparing_step"].format(done=state.done, total=state.total) if state.total else ""
    return el(
        "div",
        el("div", el("strong", title), el("span", step, class_="gg-right gg-numbers"), class_="gg-line"),
        _bar(100 * state.done // state.total if state.total else 0, label=title, moving=True),
        el("p", state.text, class_="gg-quiet gg-cut") if state.text else None,
        el("p", texts["preparing_wait"], class_="gg-quiet"),
        class_="gg-banner gg-prepare",
    )


# ---- quant types


def types(texts: Texts) -> Markup:
    """The table of quant types: one checkbox each, and buttons that check many."""
    total = len(QUANT_TYPES)
    presets = [
        el("button", texts[f"preset_{which}"].format(total=total), type="button", data_preset=which, class_="gg-chip")
        for which in ("recommended", "all", "none")
    ]
    return el(
        "fieldset",
        el("legend", texts["types"]),
        el(
            "div",
            el("div", *presets, class_="gg-chips"),
            el("output", class_="gg-quiet gg-right gg-numbers", data_text=texts["chosen"], data_total=total),
            class_="gg-line",
        ),
        el("div", *(_type(row, texts) for row in QUANT_TYPES), class_="gg-types", tabindex="-1"),
        class_="gg-fieldset",
    )


def _type(row: QuantType, texts: Texts) -> Markup:
    name = row.name
    needs = el("span", texts["needs_imatrix"], class_="gg-tag") if row.needs_imatrix else None
    return el(
        "label",
        el(
            "input",
            type="checkbox",
            value=name,
            data_recommended=row.recommended,
            data_needs_imatrix=row.needs_imatrix,
            aria_label=name,
            aria_describedby=f"gg-advice-{name}",
        ),
        el("span", name, class_="gg-type-name"),
        el("span", f"{row.bits:.2f} bpw", title=texts["types_bits"], class_="gg-type-bits gg-numbers"),
        el("span", needs, texts[f"advice_{name}"], class_="gg-type-advice", id=f"gg-advice-{name}"),
        class_="gg-type",
    )


# ---- jobs


def jobs(cards: Iterable[JobCard], texts: Texts, *, read_only: bool, older: int = 0) -> Markup:
    """The cards, and how many older jobs have none; a visitor who may only look gets no buttons."""
    articles = [_job(card, texts, newest=i == 0, read_only=read_only) for i, card in enumerate(cards)]
    if not articles:
        empty = el("p", el("strong", texts["no_jobs"]), None if read_only else el("span", texts["no_jobs_hint"]))
        articles = [el("div", empty, class_="gg-empty")]
    more = el("p", texts["older"].format(count=older), class_="gg-quiet gg-older") if older else None
    return el("section", el("h2", texts["jobs"]), *articles, more, class_="gg-jobs", aria_label=texts["jobs"])


def _job(card: JobCard, texts: Texts, *, newest: bool, read_only: bool) -> Markup:
    busy = card.state in ("running", "queued", "cancelling")
    button = None
    if card.action and not read_only:
        button = el(
            "button",
            texts[card.action],
            type="button",
            data_action=card.action,
            data_job=card.id,
            data_key=f"{card.action} {card.id}",
            aria_label=texts[f"{card.action}_job"].format(name=card.name),
            class_="gg-button",
        )
    badge = el("span", card.state_text, class_="gg-badge")
    return el(
        "article",
        el("div", el("h3", card.name), badge, el("span", button, class_="gg-right"), class_="gg-line gg-title"),
        el("p", *_dotted(card.facts), class_="gg-facts gg-quiet"),
        _bar(card.percent, label=texts["progress"].format(name=card.name), moving=card.state == "running")
        if card.state != "done"
        else None,
        el("p", el("span", card.now), el("span", card.left, class_="gg-quiet"), class_="gg-now gg-numbers")
        if card.now
        else None,
        el("p", card.error, class_="gg-message gg-bad") if card.error else None,
        _details(f"steps {card.id}", texts["steps"], card.steps_sum, _steps(card.steps), opened=busy and newest),
        _details(f"files {card.id}", texts["files"], card.files_sum, _files(card, texts), opened=newest and not busy)
        if card.files
        else None,
        class_=f"gg-job gg-{card.state}",
        aria_label=card.name,
        data_job=card.id,
    )


def _details(key: str, title: str, total: str, content: Markup, *, opened: bool) -> Markup:
    summary = el("summary", el("span", title), el("span", total, class_="gg-quiet gg-numbers"), data_key=key)
    return el("details", summary, content, data_open=opened, data_details=key)


def _dotted(words: Iterable[str]) -> list[Markup]:
    return [el("span", word) for word in words]


def _bar(percent: int, *, label: str, moving: bool) -> Markup:
    return el(
        "div",
        el("div", style=f"width: {percent}%"),
        class_=f"gg-bar{' gg-moving' if moving else ''}",
        role="progressbar",
        aria_label=label,
        aria_valuenow=percent,
        aria_valuemin=0,
        aria_valuemax=100,
    )


def _steps(rows: Iterable[StepRow]) -> Markup:
    return el("ol", *(_step(row) for row in rows), class_="gg-steps")


def _step(row: StepRow) -> Markup:
    running = row.state == "running"
    return el(
        "li",
        el("span", class_="gg-dot", role="img", aria_label=row.state_text),
        el("span", row.label, class_="gg-step-label"),
        el("span", _bar(row.percent, label=row.label, moving=True) if running else None, class_="gg-step-bar"),
        el("span", f"{row.percent} %" if running else row.size, class_="gg-numbers gg-step-size"),
        el("span", row.time, class_="gg-numbers gg-quiet gg-step-time"),
        class_=f"gg-step gg-step-{row.state}",
        data_step=row.label,
    )


def _files(card: JobCard, texts: Texts) -> Markup:
    columns = ("type", "file", "size", "bpw", "imatrix", "sha256")
    head = el("tr", *(el("th", texts[f"column_{name}"], scope="col", class_=f"gg-c-{name}") for name in columns))
    table = el("table", el("thead", head), el("tbody", *(_file(row, texts) for row in card.files)), class_="gg-files")
    return join(
        el("p", texts["where"].format(folder=card.folder), class_="gg-quiet gg-where"),
        el("div", table, class_="gg-scroll"),
    )


def _file(row: FileRow, texts: Texts) -> Markup:
    label = texts["download_file"].format(file=row.file)
    link = el("a", row.file, href=row.link, download=row.file, aria_label=label)
    digest = el("code", row.sha256, title=row.sha256) if row.sha256 else None
    return el(
        "tr",
        el("th", row.type, scope="row", class_="gg-c-type"),
        el("td", link, el("p", row.note, class_="gg-quiet"), class_="gg-c-file"),
        el("td", row.size, class_="gg-c-size gg-numbers"),
        el("td", row.bpw, class_="gg-c-bpw gg-numbers", data_label=texts["column_bpw"]),
        el("td", row.needs_imatrix, class_="gg-c-imatrix", data_label=texts["column_imatrix"]),
        el("td", digest, class_="gg-c-sha256", data_label=texts["column_sha256"]),
    )

"""The cards of models as HTML: a line each, or with jobs, files, plot and slider (see parts.py for the conventions).

A card is made in pieces, each with a key: the card itself, and what stands in each section that is open. jobs.js puts
them together, so that only the pieces that changed have to be sent.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from ggufy.publish.markup import Markup, el, join
from ggufy.ui import job_parts
from ggufy.ui.file_rows import FileRow
from ggufy.ui.i18n import Texts
from ggufy.ui.job_parts import Piece
from ggufy.ui.models import ModelCard
from ggufy.ui.parts import button
from ggufy.ui.plot import plot
from ggufy.ui.sizes import finder, panel
from ggufy.ui.views import JobLine

_FIGURES = ("kld", "ppl_ratio", "same_top", "speed")


def nothing(texts: Texts, *, may_work: bool) -> Piece:
    """In place of the cards, while there are none."""
    empty = el("p", el("strong", texts["no_jobs"]), el("span", texts["no_jobs_hint"]) if may_work else None)
    return "nothing", el("div", empty, class_="gg-empty")


def more(count: int, page: int, texts: Texts) -> Piece:
    """Below the cards, when there are `count` more."""
    text = texts["more_jobs"].format(count=min(count, page))
    show = el("button", text, type="button", data_more=page, data_key="more", class_="gg-button")
    line = el("p", show, el("span", texts["older"].format(count=count), class_="gg-quiet"), class_="gg-older gg-line")
    return "more", line


def news(ended: Mapping[str, str], percent: int | None) -> Piece:
    """For the page's title and for screen readers (see jobs.js): how jobs ended, and how far the running one is."""
    return "news", el("p", hidden=True, data_news=json.dumps(ended), data_percent="" if percent is None else percent)


def model(card: ModelCard, texts: Texts, *, may_work: bool, folded: bool, opened: Collection[str]) -> list[Piece]:
    """The pieces of a card; `opened` are the open sections: of the card by name, of jobs with their id. A visitor who
    may only look gets no buttons."""
    pieces: list[Piece] = [(f"card {card.id}", _card(card, texts, opened, folded=folded, may_work=may_work))]
    if folded:
        return pieces
    for name in _shown(card, may_work=may_work):
        if name in opened:
            pieces.append((f"{name} {card.id}", _body(card, name, texts, opened, may_work=may_work)))
    lines = (*card.jobs, *(card.earlier if "jobs" in opened else ()))
    for line in lines:
        pieces += job_parts.bodies(line, may_work=may_work, opened=_of(line.id, opened))
    return pieces


def opened_at_first(card: ModelCard, *, newest: bool) -> set[str]:
    """The sections that are open until the visitor says otherwise: results, or the steps towards the first ones."""
    if not newest:
        return set()
    if card.busy and all(line.state != "done" for line in (*card.jobs, *card.earlier)):
        return {f"steps {line.id}" for line in card.jobs if line.busy}
    return {"files"} | ({"plot"} if card.measured else set()) | (set() if card.findable else {"sizes"})


def _shown(card: ModelCard, *, may_work: bool) -> list[str]:
    return [name for name in card.sections if may_work or name != "sizes" or not card.findable]


def _of(job_id: str, opened: Collection[str]) -> list[str]:
    """The open sections of a job."""
    return [key.partition(" ")[0] for key in opened if key.partition(" ")[2] == job_id]


def _body(card: ModelCard, name: str, texts: Texts, opened: Collection[str], *, may_work: bool) -> Markup:
    match name:
        case "files":
            return _files(card, texts)
        case "plot":
            return _plot(card, texts)
        case "sizes":
            if card.findable:
                return finder(card.sizer, card.finding_time, texts)
            return panel(card.id, card.sizer, card.sizes, card.size_at, texts, may_work=may_work)
        case _:
            return join(*(_job(line, texts, opened, may_work=may_work) for line in card.earlier))


def _job(line: JobLine, texts: Texts, opened: Collection[str], *, may_work: bool, alone: bool = False) -> Markup:
    return job_parts.job(line, texts, may_work=may_work, alone=alone, opened=_of(line.id, opened))


def _card(card: ModelCard, texts: Texts, opened: Collection[str], *, folded: bool, may_work: bool) -> Markup:
    fold = el(
        "button",
        card.name,
        type="button",
        aria_expanded="false" if folded else "true",
        data_fold=f"card {card.id}",
        data_key=f"fold {card.id}",
        title=card.name,
        class_="gg-fold",
    )
    title = el(
        "div",
        el("h3", fold),
        el("span", card.state_text, class_=f"gg-badge gg-{card.state}"),
        el("span", *(el("span", word) for word in (card.files_sum, card.age)), class_="gg-facts gg-quiet gg-age")
        if folded
        else None,
        job_parts.buttons(card.jobs[0], texts) if folded and may_work else _delete(card, texts),
        class_="gg-line gg-title",
    )
    content = [] if folded else _content(card, texts, opened, may_work=may_work)
    kind = f"gg-job gg-{card.state}{' gg-folded' if folded else ''}"
    return el("article", title, *content, class_=kind, aria_label=card.name, data_model=card.id)


def _delete(card: ModelCard, texts: Texts) -> Markup | None:
    """The button that deletes all of a model, for who may."""
    label = texts["delete_model"].format(name=card.name)
    press = button(texts["delete"], "delete-model", card.jobs[0].id, label=label, confirm=card.delete)
    return el("span", press, class_="gg-right") if card.delete else None


def _content(card: ModelCard, texts: Texts, opened: Collection[str], *, may_work: bool) -> list[Markup | None]:
    """What an unfolded card has below its title; the sections are filled by pieces of their own."""
    sums = {"files": card.files_sum, "jobs": str(len(card.earlier))}
    titles = {"jobs": texts["earlier_jobs"]}
    alone = len(card.jobs) == 1
    return [
        el("p", *(el("span", word) for word in card.facts), class_="gg-facts gg-quiet"),
        *(_job(line, texts, opened, may_work=may_work, alone=alone) for line in card.jobs),
        *(
            job_parts.section(
                name, card.id, titles.get(name) or texts[name], sums.get(name, ""), opened=name in opened
            )
            for name in _shown(card, may_work=may_work)
        ),
    ]


def _plot(card: ModelCard, texts: Texts) -> Markup:
    note = el("p", texts["kld_info"] if card.measured else texts["not_measured"], class_="gg-quiet gg-where")
    return join(plot(card.points, texts), note)


def _picks(card: ModelCard, texts: Texts) -> Markup | None:
    """Which file to take, for any amount of memory."""
    if len(card.picks) < 2:
        return None
    rows = [el("li", el("span", pick.memory, class_="gg-quiet"), el("strong", pick.type)) for pick in card.picks]
    return el(
        "div",
        el("p", texts["pick"], " ", el("span", texts["pick_info"], class_="gg-quiet"), class_="gg-pick-title"),
        el("ul", *rows, class_="gg-picks gg-numbers"),
    )


def _files(card: ModelCard, texts: Texts) -> Markup:
    expected = any(row.expected for row in card.files)
    figures = _FIGURES if card.measured else ("kld" if expected else "imatrix", "note")
    where = [
        el("a", name, href=address, target="_blank", rel="noopener") if address else name
        for name, address in card.where
    ]
    return join(
        _picks(card, texts),
        file_table(card.files, ("file", "size", "bpw", *figures), texts),
        el("p", texts["where"], *(part for one in where for part in (" ", one)), class_="gg-quiet gg-where"),
    )


def file_table(rows: Sequence[FileRow], columns: Sequence[str], texts: Texts) -> Markup:
    """A line for each file: what it is, and the columns, each with a field of that name; the first is `file`."""
    head = el("tr", *(_head(name, texts) for name in columns))
    body = el("tbody", *(line for row in rows for line in _lines(row, texts, columns)))
    return el("div", el("table", el("thead", head), body, class_="gg-files"), class_="gg-scroll", tabindex="0")


def tick_box(tick: str, file: str, texts: Texts) -> Markup:
    """What chooses a file to be compared."""
    label = texts["compare_file"].format(file=file)
    return el("input", type="checkbox", data_tick=tick, data_key=f"tick {tick}", aria_label=label, title=label)


def _head(name: str, texts: Texts) -> Markup:
    return el(
        "th", texts[f"column_{name}"], scope="col", class_=f"gg-c-{name}", title=texts.get(f"column_{name}_info")
    )


def _file(row: FileRow, texts: Texts, columns: Iterable[str]) -> Markup:
    """One line: what it is with its file below, then the figures; the digest shows when the mouse is on the name."""
    label = texts["download_file"].format(file=row.file)
    told = f"{row.file}\nsha256 {row.sha256}" if row.sha256 else row.file
    link = el("a", row.file, href=row.link, download=row.file, aria_label=label, title=told, class_="gg-cut")
    dots = el(
        "button",
        "⋯",
        type="button",
        aria_expanded="true" if row.opened else "false",
        aria_label=texts["more_file"].format(file=row.file),
        title=texts["more_file_info"],
        data_fold=row.key,
        data_key=row.key,
        class_="gg-dots",
    )
    tick = tick_box(row.tick, row.file, texts) if row.tick else None
    kind = el("span", row.type, title=row.note or None)
    return el(
        "tr",
        el("th", tick, kind, link, dots if row.key else None, scope="row", class_="gg-c-file"),
        *(_cell(row, name, texts) for name in columns if name != "file"),
    )


def _cell(row: FileRow, name: str, texts: Texts) -> Markup:
    label = None if name == "size" else texts[f"column_{name}"]
    return el("td", *_figure(row, name, texts), class_=f"gg-c-{name} gg-numbers", data_label=label)


def _lines(row: FileRow, texts: Texts, columns: Sequence[str]) -> list[Markup]:
    """A file's line, and one below with what can be done with it if the visitor has opened that."""
    line = _file(row, texts, columns)
    if not (more := row.opened):
        return [line]
    talk = el(
        "button", texts["tab_chat"], type="button", data_chat=row.file, data_key=f"chat {row.key}", class_="gg-button"
    )
    repo = el("a", texts["open_repo"], href=more.repo, target="_blank", rel="noopener", class_="gg-link")
    words = {"copied": texts["chat_copied"], "failed": texts["chat_copy_failed"]}
    copies = [
        el(
            "li",
            el("code", command),
            el(
                "button",
                texts["chat_copy"],
                type="button",
                aria_label=texts["copy_command"].format(program=program),
                data_key=f"copy {program} {row.key}",
                data_copied=words["copied"],
                data_failed=words["failed"],
                class_="gg-link",
            ),
        )
        for program, command in more.commands.items()
    ]
    delete = None
    if more.delete:
        label = texts["delete_model"].format(name=row.file)
        delete = button(texts["delete"], "delete-file", row.job, label=label, file=row.file, confirm=more.delete)
    buttons = el("p", talk if more.chats else None, repo if more.repo else None, delete, class_="gg-line")
    lists = el("ul", *copies, class_="gg-commands") if copies else None
    return [
        line,
        el("tr", el("td", buttons, lists, colspan=len(columns)), class_="gg-file-more", data_key=f"more {row.key}"),
    ]


def _figure(row: FileRow, name: str, texts: Texts) -> list[Markup | str]:
    """What stands in a cell; what was expected of a size to order stands beside what was measured."""
    told: list[Markup | str] = [getattr(row, name)] if getattr(row, name) else []
    if name == "kld" and row.expected:
        told.append(el("span", f"≈ {row.expected}", class_="gg-quiet gg-expected", title=texts["sizes_kld"]))
    return told

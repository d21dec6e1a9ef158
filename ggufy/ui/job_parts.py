"""The column of jobs as HTML: how busy the machine is, then a card for each job (see parts.py for the conventions).

A card is made in pieces, each with a key: the card itself, and what stands in each section that is open. jobs.js puts
them together, so that only the pieces that changed have to be sent. An older card is folded to one line.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from ggufy.core.words import human_size
from ggufy.publish.markup import Markup, el, join
from ggufy.service.machine_load import MachineLoad
from ggufy.system.resources import AUTOMATIC, CPU_PERCENTS
from ggufy.ui.i18n import Texts
from ggufy.ui.parts import bar, button
from ggufy.ui.plot import plot
from ggufy.ui.sizes import panel
from ggufy.ui.views import FileRow, JobCard, StepRow

_FIGURES = ("kld", "ppl_ratio", "same_top", "speed")


Piece = tuple[str, Markup]  # key, and what it looks like


def head(machine: MachineLoad, texts: Texts, *, may_work: bool) -> Markup:
    """The heading, with the machine's figures."""
    figures = _machine(machine, texts, may_work=may_work)
    return el("div", el("h2", texts["jobs"]), figures, class_="gg-line gg-jobs-head")


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


def job(card: JobCard, texts: Texts, *, may_work: bool, folded: bool, opened: Collection[str]) -> list[Piece]:
    """The pieces of a card; `opened` are its open sections. A visitor who may only look gets no buttons."""
    hidden = () if may_work else ("log", "sizes") if card.findable else ("log",)
    shown = [name for name in card.sections if name not in hidden]
    pieces: list[Piece] = [(f"card {card.id}", _card(card, texts, shown, opened, folded=folded, may_work=may_work))]
    if not folded:
        pieces += [
            (f"{name} {card.id}", _body(card, name, texts, may_work=may_work)) for name in shown if name in opened
        ]
    return pieces


def opened_at_first(card: JobCard, *, newest: bool) -> set[str]:
    """The sections that are open until the visitor says otherwise."""
    if not newest:
        return set()
    if card.busy:
        return {"steps"}
    return {"files"} | ({"plot"} if card.measured else set()) | (set() if card.findable else {"sizes"})


def _body(card: JobCard, section: str, texts: Texts, *, may_work: bool) -> Markup:
    match section:
        case "files":
            return _files(card, texts)
        case "plot":
            return _plot(card, texts)
        case "sizes":
            return panel(card.id, card.sizes, card.size_at, texts, may_work=may_work)
        case "steps":
            return _steps(card.steps)
        case _:
            return el("pre", card.log, class_="gg-log", tabindex="0")


def _machine(machine: MachineLoad, texts: Texts, *, may_work: bool) -> Markup:
    """CPU, memory, disk; and the threads and the share of their time, which can be changed."""
    used, memory = human_size(machine.memory_used), human_size(machine.memory)
    if used.split()[-1] == memory.split()[-1]:
        used = used.split()[0]
    facts = [
        el("span", texts["machine_cpu"].format(percent=f"{100 * machine.cpu:.0f}")),
        el("span", texts["machine_memory"].format(used=used, memory=memory)),
        el("span", texts["machine_disk"].format(free=human_size(machine.disk_free))),
    ]
    count = machine.threads
    threads = texts["threads_one" if count == 1 else "threads"].format(count=count)
    share = texts["share_auto"] if machine.percent == AUTOMATIC else f"{machine.percent} %"
    steps = range(1, machine.most_threads + 1)
    facts.append(_stepper("threads", threads, steps, at=count, texts=texts, may_work=may_work))
    facts.append(_stepper("share", share, CPU_PERCENTS, at=machine.percent, texts=texts, may_work=may_work))
    return el("p", *facts, class_="gg-machine gg-quiet gg-numbers")


def _stepper(what: str, shown: str, steps: Sequence[int], *, at: int, texts: Texts, may_work: bool) -> Markup:
    """A value between a button for the step below and one for the step above."""
    value = el("span", shown, class_="gg-stepper-value")
    if not may_work or len(steps) < 2:
        return el("span", value, class_="gg-stepper", title=texts[f"{what}_info"])
    # A value that is no step (a percentage from the environment) goes to the nearest ones.
    place = steps.index(at) if at in steps else sum(step < at for step in steps if step) - 0.5
    buttons = []
    for sign, label, to in (("−", "less", math.ceil(place) - 1), ("+", "more", math.floor(place) + 1)):
        inside = 0 <= to < len(steps)
        buttons.append(
            el(
                "button",
                sign,
                type="button",
                data_action=what,
                data_job=steps[to] if inside else "",
                data_key=f"{what} {sign}",
                aria_label=texts[f"{what}_{label}"],
                disabled=not inside,
                class_="gg-step-button",
            )
        )
    return el("span", buttons[0], value, buttons[1], class_="gg-stepper", title=texts[f"{what}_info"])


def _card(
    card: JobCard,
    texts: Texts,
    sections: Sequence[str],
    opened: Collection[str],
    *,
    folded: bool,
    may_work: bool,
) -> Markup:
    fold = el(
        "button",
        card.name,
        type="button",
        aria_expanded="false" if folded else "true",
        data_fold=card.id,
        data_key=f"fold {card.id}",
        title=card.name,
        class_="gg-fold",
    )
    buttons = [
        button(texts[action], action, card.id, label=texts[f"{action}_job"].format(name=card.name))
        for action in (card.actions if may_work else ())
    ]
    title = el(
        "div",
        el("h3", fold),
        el("span", card.state_text, class_="gg-badge"),
        el("span", card.facts[-1], class_="gg-quiet gg-age") if folded else None,
        el("span", *buttons, class_="gg-right gg-buttons"),
        class_="gg-line gg-title",
    )
    content = [] if folded else _content(card, texts, sections, opened)
    kind = f"gg-job gg-{card.state}{' gg-folded' if folded else ''}"
    return el("article", title, *content, class_=kind, aria_label=card.name, data_job=card.id)


def _content(card: JobCard, texts: Texts, sections: Sequence[str], opened: Collection[str]) -> list[Markup | None]:
    """What an unfolded card has below its title; the sections are filled by pieces of their own."""
    progress = bar(card.percent, label=texts["progress"].format(name=card.name), moving=card.state == "running")
    now = el("p", el("span", card.now), el("span", card.left, class_="gg-quiet"), class_="gg-now gg-numbers")
    sums = {"files": card.files_sum, "steps": card.steps_sum}
    return [
        el("p", *(el("span", word) for word in card.facts), class_="gg-facts gg-quiet"),
        el("p", *(el("span", line) for line in card.writing), class_="gg-facts gg-quiet") if card.writing else None,
        progress if card.state != "done" else None,
        now if card.now else None,
        el("p", card.error, class_=f"gg-message gg-{'needs' if card.state == 'paused' else 'bad'}")
        if card.error
        else None,
        *(_section(name, card.id, texts[name], sums.get(name, ""), opened=name in opened) for name in sections),
    ]


def _section(name: str, job_id: str, title: str, total: str, *, opened: bool) -> Markup:
    key = f"{name} {job_id}"
    summary = el("summary", el("span", title), el("span", total, class_="gg-quiet gg-numbers"), data_key=key)
    return el("details", summary, el("div", data_body=key), data_open=opened, data_details=key)


def _steps(rows: Iterable[StepRow]) -> Markup:
    return el("ol", *(_step(row) for row in rows), class_="gg-steps")


def _step(row: StepRow) -> Markup:
    running = row.state == "running"
    return el(
        "li",
        el("span", class_="gg-dot", role="img", aria_label=row.state_text),
        el("span", row.label, class_="gg-step-label", title=row.label),
        el("span", bar(row.percent, label=row.label, moving=True) if running else None, class_="gg-step-bar"),
        el("span", f"{row.percent} %" if running else row.size, class_="gg-numbers gg-step-size"),
        el("span", row.time, class_="gg-numbers gg-quiet gg-step-time"),
        class_=f"gg-step gg-step-{row.state}",
        data_step=row.label,
    )


def _plot(card: JobCard, texts: Texts) -> Markup:
    note = el("p", texts["kld_info"] if card.measured else texts["not_measured"], class_="gg-quiet gg-where")
    return join(plot(card.points, texts), note)


def _picks(card: JobCard, texts: Texts) -> Markup | None:
    """Which file to take, for any amount of memory."""
    if len(card.picks) < 2:
        return None
    rows = [el("li", el("span", pick.memory, class_="gg-quiet"), el("strong", pick.type)) for pick in card.picks]
    return el(
        "div",
        el("p", texts["pick"], " ", el("span", texts["pick_info"], class_="gg-quiet"), class_="gg-pick-title"),
        el("ul", *rows, class_="gg-picks gg-numbers"),
    )


def _files(card: JobCard, texts: Texts) -> Markup:
    columns = ("file", "size", "bpw", *(_FIGURES if card.measured else ("imatrix", "note")))
    head = el("tr", *(_head(name, texts) for name in columns))
    body = el("tbody", *(_file(row, texts, columns[3:]) for row in card.files))
    where = el("a", card.where, href=card.link, target="_blank", rel="noopener") if card.link else card.where
    return join(
        _picks(card, texts),
        el("div", el("table", el("thead", head), body, class_="gg-files"), class_="gg-scroll", tabindex="0"),
        el("p", texts["where"], " ", where, class_="gg-quiet gg-where"),
    )


def _head(name: str, texts: Texts) -> Markup:
    return el(
        "th", texts[f"column_{name}"], scope="col", class_=f"gg-c-{name}", title=texts.get(f"column_{name}_info")
    )


def _file(row: FileRow, texts: Texts, more: Iterable[str]) -> Markup:
    """One line: what it is with its file below, then the figures; the digest shows when the mouse is on the name."""
    label = texts["download_file"].format(file=row.file)
    told = f"{row.file}\nsha256 {row.sha256}" if row.sha256 else row.file
    link = el("a", row.file, href=row.link, download=row.file, aria_label=label, title=told, class_="gg-cut")
    return el(
        "tr",
        el("th", el("span", row.type, title=row.note), link, scope="row", class_="gg-c-file"),
        el("td", row.size, class_="gg-c-size gg-numbers"),
        el("td", row.bpw, class_="gg-c-bpw gg-numbers", data_label=texts["column_bpw"]),
        *(
            el("td", getattr(row, name), class_=f"gg-c-{name} gg-numbers", data_label=texts[f"column_{name}"])
            for name in more
        ),
    )

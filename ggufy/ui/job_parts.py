"""A job on its model's card as HTML, and above all cards how busy the machine is (see parts.py for the conventions).

What stands in an open section is a piece of its own, with a key: see model_parts.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ggufy.core.words import human_size
from ggufy.publish.markup import Markup, el
from ggufy.service.machine_load import MachineLoad
from ggufy.system.resources import AUTOMATIC, CPU_PERCENTS
from ggufy.ui.i18n import Texts
from ggufy.ui.parts import bar, button
from ggufy.ui.views import JobLine, StepRow

Piece = tuple[str, Markup]  # key, and what it looks like


def head(machine: MachineLoad, texts: Texts, *, may_work: bool) -> Markup:
    """The heading, with the machine's figures."""
    figures = _machine(machine, texts, may_work=may_work)
    return el("div", el("h2", texts["jobs"]), figures, class_="gg-line gg-jobs-head")


def job(line: JobLine, texts: Texts, *, may_work: bool, alone: bool, opened: Collection[str]) -> Markup:
    """Status, what it makes, how far it is, and buttons; `alone`: the card's badge says the status. The bodies of its
    sections are pieces."""
    badge = None if alone else el("span", line.state_text, class_=f"gg-badge gg-{line.state}")
    facts = el("p", *(el("span", word) for word in line.facts), class_="gg-facts gg-quiet gg-numbers")
    title = el("div", badge, facts, buttons(line, texts) if may_work else None, class_="gg-line gg-run-title")
    busy = line.state not in ("done", "cancelled")
    progress = bar(line.percent, label=texts["progress"].format(name=line.name), moving=line.state == "running")
    now = el("p", el("span", line.now), el("span", line.left, class_="gg-quiet"), class_="gg-now gg-numbers")
    error = f"gg-message gg-{'needs' if line.state == 'paused' else 'bad'}"
    return el(
        "div",
        title,
        el("p", *(el("span", text) for text in line.writing), class_="gg-facts gg-quiet") if line.writing else None,
        progress if busy else None,
        now if line.now else None,
        el("p", line.error, class_=error) if line.error else None,
        *(
            section(name, line.id, texts[name], line.steps_sum if name == "steps" else "", opened=name in opened)
            for name in shown_sections(line, may_work=may_work)
        ),
        class_=f"gg-run gg-{line.state}",
        data_job=line.id,
        data_key=f"job {line.id}",
    )


def shown_sections(line: JobLine, *, may_work: bool) -> list[str]:
    """The log is for those who may do something about it."""
    return [name for name in line.sections if may_work or name != "log"]


def bodies(line: JobLine, *, may_work: bool, opened: Collection[str]) -> list[Piece]:
    """What stands in the open sections of a job."""
    made = {"steps": _steps, "log": _log}
    return [
        (f"{name} {line.id}", made[name](line)) for name in shown_sections(line, may_work=may_work) if name in opened
    ]


def buttons(line: JobLine, texts: Texts) -> Markup:
    """What can be done with a job."""
    made = [
        button(texts[action], action, line.id, label=texts[f"{action}_job"].format(name=line.name))
        for action in line.actions
    ]
    if line.delete:
        label = texts["remove_job"].format(name=line.name)
        made.append(button(texts["remove"], "delete-job", line.id, label=label, confirm=line.delete))
    return el("span", *made, class_="gg-right gg-buttons")


def section(name: str, owner: str, title: str, total: str, *, opened: bool) -> Markup:
    """What can be opened, of a job or a model; a piece of that name fills it."""
    key = f"{name} {owner}"
    summary = el("summary", el("span", title), el("span", total, class_="gg-quiet gg-numbers"), data_key=key)
    return el("details", summary, el("div", data_body=key), data_open=opened, data_details=key)


def _log(line: JobLine) -> Markup:
    return el("pre", line.log, class_="gg-log", tabindex="0")


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


def _steps(line: JobLine) -> Markup:
    return el("ol", *(_step(row) for row in line.steps), class_="gg-steps")


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

"""The panel under the source: what was typed is, or what the Hub has of that name; and what a job would cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ggufy.core.errors import GgufyError
from ggufy.core.job import Job
from ggufy.core.words import human_size, human_time
from ggufy.jobs.estimate import Cost
from ggufy.models.names.blinkdl import BLINKDL
from ggufy.publish.markup import Markup, el
from ggufy.sources.format import Report
from ggufy.sources.patterns import is_wild
from ggufy.sources.search import Found
from ggufy.ui.form import short_text
from ggufy.ui.i18n import Texts
from ggufy.ui.messages import told
from ggufy.ui.parts import button, message

MOST_TICKED = 40  # variants that are shown


def hint(text: str, kind: str = "") -> Markup:
    """One quiet line."""
    return el("p", text, class_=f"gg-quiet gg-hint {kind}".strip(), role="status")


def about(source: str, panel: Markup) -> Markup:
    """With the source that it speaks of: Start waits while that is another one than the form's (source.js)."""
    return el("div", panel, data_about=source)


def asked_again(panel: Markup) -> Markup:
    """What says that a hub is away: it is asked again by itself, now and then (source.js)."""
    return el("div", panel, data_again="")


def report(found: Report, texts: Texts) -> Markup:
    """What a source is, in one look; why it cannot work; or the files to choose from."""
    if found.problem and not found.path and len(found.variants) > 1:
        return _variants(found, texts)
    if found.problem:
        other = texts["choose_format"].format(format=found.instead)
        return el(
            "div",
            message(told(found.problem, texts)),
            button(other, "format", found.instead) if found.instead else None,
            data_again="" if found.away else None,
        )
    return el(
        "div",
        el("strong", found.title.replace("checkpoint", texts["checkpoint"]), class_="gg-report-title"),
        el("span", *(el("span", fact) for fact in _facts(found, texts)), class_="gg-facts gg-quiet gg-numbers"),
        class_="gg-report",
        role="status",
    )


def _facts(found: Report, texts: Texts) -> list[str]:
    facts = [texts["fact_becomes"].format(name=found.becomes)] if found.becomes else []
    if found.parameters:
        facts.append(texts["fact_parameters"].format(count=human_count(found.parameters)))
    if found.layers:
        facts.append(texts["fact_layers"].format(count=found.layers))
    if found.width:
        facts.append(texts["fact_width"].format(count=found.width))
    facts += [found.dtype] if found.dtype else []
    facts += [texts["fact_layout"].format(name=found.layout)] if found.layout not in ("", BLINKDL) else []
    facts += [human_size(found.size)] if found.size else []
    facts += [texts["fact_license"].format(name=found.license)] if found.license else []
    facts += [texts["fact_gated"]] if found.gated else []
    return facts


def _variants(found: Report, texts: Texts) -> Markup:
    """Buttons that put one file of the repo into the source, and a tick each to start several, at the commit that was
    looked at; all are ticked where a pattern was typed."""
    ticked = is_wild(found.source.rpartition(":")[2])
    rows = []
    for variant in found.variants[:MOST_TICKED]:
        pinned = f"{found.model_id}@{found.revision}:{variant.name}"
        label = texts["tick"].format(name=variant.name)
        tick = el("input", type="checkbox", value=pinned, checked=ticked, data_key=f"tick {pinned}", aria_label=label)
        choice = _choice(f"{found.model_id}:{variant.name}", variant.name, human_size(variant.size))
        rows.append(el("div", tick, choice, class_="gg-variant"))
    title = el("p", texts["variant"].format(count=len(found.variants)), class_="gg-quiet gg-hint")
    start = el("button", texts["start_ticked"], type="button", data_action="start-ticked", class_="gg-button")
    return el("div", title, el("div", *rows, class_="gg-choices"), start, class_="gg-report")


def ticked(event: Any) -> list[str]:
    """The sources that a browser says were ticked."""
    sources = getattr(event, "sources", None)
    texts = [short_text(source) for source in sources[:MOST_TICKED]] if isinstance(sources, list) else []
    return list(dict.fromkeys(filter(None, texts)))


def started(jobs: Sequence[Job], refused: Mapping[str, GgufyError], texts: Texts) -> Markup:
    """What came of starting several."""
    lines = [message(texts["started"].format(count=len(jobs)), "good")]
    lines += [message(f"{src.rpartition(':')[2]}: {told(why.message, texts)}") for src, why in refused.items()]
    return el("div", *(lines if jobs else lines[1:]))


def local_files(found: Iterable[Path], texts: Texts) -> Markup:
    """The models of a folder on this machine."""
    buttons = [_choice(str(path), path.name, human_size(path.stat().st_size)) for path in found]
    title = el("p", texts["variant"].format(count=len(buttons)), class_="gg-quiet gg-hint")
    return el("div", title, el("div", *buttons, class_="gg-choices"), class_="gg-report")


def suggestions(found: Iterable[Found], texts: Texts) -> Markup:
    """Repos that the Hub has of that name."""
    buttons = [_choice(repo.id, repo.id, texts["fact_gated"] if repo.gated else "") for repo in found]
    if not buttons:
        return hint(texts["search_none"])
    title = el("p", texts["search_found"], class_="gg-quiet gg-hint")
    return el("div", title, el("div", *buttons, class_="gg-choices"), class_="gg-report")


def _choice(value: str, name: str, detail: str) -> Markup:
    return el(
        "button",
        el("span", name, class_="gg-cut"),
        el("span", detail, class_="gg-quiet gg-numbers") if detail else None,
        type="button",
        title=name,
        data_action="choose",
        data_job=value,
        data_key=f"choose {value}",
        class_="gg-choice",
    )


def cost(found: Cost, texts: Texts) -> Markup:
    """What Start would do: bytes, disk, time, and where it goes."""
    needed, free = human_size(found.peak), human_size(found.free)
    if found.peak > found.free:
        return message(texts["cost_too_big"].format(needed=needed, free=free))
    made = "cost_upload" if found.account else "cost_made"
    words = [texts[made].format(size=human_size(found.made)), texts["cost_disk"].format(needed=needed, free=free)]
    words.append(texts["cost_time"].format(time=human_time(found.seconds)))
    if found.account:
        words.append(texts["cost_account"].format(owner=found.account))
    where = texts["cost_where"].format(where=found.where)
    return el(
        "div",
        el("p", *(el("span", word) for word in words), class_="gg-facts"),
        el("p", where, title=found.where, class_="gg-cut gg-cost-where"),
        class_="gg-quiet gg-numbers gg-cost",
        role="status",
    )


def human_count(number: int) -> str:
    """`1.5 B`, `191 M`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)

"""The panel under the source: what was typed is, or what the Hub has of that name; and what a job would cost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ggufy.core.words import human_size, human_time
from ggufy.jobs.estimate import Cost
from ggufy.models.names.blinkdl import BLINKDL
from ggufy.publish.markup import Markup, el
from ggufy.sources.format import Report
from ggufy.sources.search import Found
from ggufy.ui.i18n import Texts
from ggufy.ui.messages import told

_SHOWN_VARIANTS = 40


def hint(text: str, kind: str = "") -> Markup:
    """One quiet line."""
    return el("p", text, class_=f"gg-quiet gg-hint {kind}".strip(), role="status")


def report(found: Report, texts: Texts) -> Markup:
    """What a source is, in one look; why it cannot work; or the files to choose from."""
    if found.problem and len(found.variants) > 1 and not found.path:
        return _variants(found, texts)
    if found.problem:
        return el("p", told(found.problem, texts), class_="gg-message gg-bad", role="alert")
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
    """Buttons that put one file of the repo into the source."""
    buttons = [
        _choice(f"{found.model_id}:{variant.name}", variant.name, human_size(variant.size))
        for variant in found.variants[:_SHOWN_VARIANTS]
    ]
    title = el("p", texts["variant"].format(count=len(found.variants)), class_="gg-quiet gg-hint")
    return el("div", title, el("div", *buttons, class_="gg-choices"), class_="gg-report")


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
        return el(
            "p", texts["cost_too_big"].format(needed=needed, free=free), class_="gg-message gg-bad", role="alert"
        )
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

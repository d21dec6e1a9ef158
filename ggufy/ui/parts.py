"""The parts of the page that are HTML of our own, from the rows of views.py; markup.py escapes every text.

`data-key` names a part that the visitor can open and close, or focus; jobs.js keeps those states while the part is
drawn again. `data-action` and `data-job` are what a button reports.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from ggufy.core.catalog import SMALL, TUTORIAL, QuantType
from ggufy.core.errors import GgufyError
from ggufy.core.metrics import memory_needed
from ggufy.core.outputs import GGUF, names_of_output
from ggufy.core.words import human_size
from ggufy.publish.markup import Markup, el, join
from ggufy.quantize.recipe import Forecast
from ggufy.quantize.search.fallback import Instead
from ggufy.service.preparation import Preparation
from ggufy.ui.i18n import Texts, advice_key
from ggufy.ui.messages import told

logger = logging.getLogger(__name__)
_PRESETS = ("recommended", "small", "tutorial", "all", "none")
_PRESETS_OF_OTHERS = ("recommended", "all", "none")


def header(texts: Texts, *, login: bool = False, name: str = "") -> Markup:
    """The page's name; notifications, theme and language; on a Space, signing in and out."""
    themes = [el("option", texts[f"theme_{name or 'system'}"], value=name) for name in ("", "light", "dark")]
    theme = el("select", *themes, aria_label=texts["theme"], class_="gg-link")
    other = el("button", texts["other_language"], type="button", data_language=texts["other_code"], class_="gg-link")
    notify = el(
        "button",
        texts["notify"],
        type="button",
        hidden=True,
        title=texts["notify_info"],
        data_notify="",
        data_denied=texts["notify_denied"],
        class_="gg-link",
    )
    sign = None
    if login:
        way = ("logout", texts["sign_out"].format(name=name)) if name else ("login/huggingface", texts["sign_in"])
        sign = el("a", way[1], href=way[0], target="_self", class_="gg-link")
    return el(
        "header",
        el("h1", el("span", "gguf", class_="gg-mark"), "y"),
        el("p", texts["tagline"]),
        el("span", sign, notify, theme, other, class_="gg-right gg-header-links"),
        class_="gg-header",
    )


def note(text: str) -> Markup:
    """A quiet line; nothing for no text."""
    return el("p", text, class_="gg-quiet gg-numbers gg-note") if text else Markup("")


def title(texts: Texts, who: str = "") -> Markup:
    """Heading of the form, and who may use it."""
    return join(el("h2", texts["new_job"]), el("p", who, class_="gg-hint gg-who", role="note") if who else None)


def message(text: str, kind: str = "bad") -> Markup:
    """What came of pressing a button; `kind` is bad, good or busy."""
    return el("p", text, class_=f"gg-message gg-{kind}", role="alert" if kind == "bad" else "status")


def failure(error: Exception, texts: Texts, doing: str) -> Markup:
    """What a visitor sees of an error, one sentence; of one that nobody expected the log has the rest."""
    if isinstance(error, GgufyError):
        return message(told(error.message, texts))
    logger.error("%s", doing, exc_info=error)
    return message(texts["unexpected"])


def banner(state: Preparation, texts: Texts, *, may_work: bool, notes: Iterable[str] = ()) -> Markup:
    """What everybody should know: llama.cpp is being prepared, or could not be; and `notes`, a sentence each."""
    parts = [el("div", el("p", note), class_="gg-banner", role="note") for note in notes]
    if state.error:
        again = button(texts["again"], "again") if may_work else None
        text = el("div", el("strong", texts["prepare_failed"]), el("p", told(state.error, texts)))
        parts.append(el("div", text, again, class_="gg-banner gg-bad", role="alert"))
    elif not state.ready:
        parts.append(_preparing(state, texts))
    return join(*parts)


def _preparing(state: Preparation, texts: Texts) -> Markup:
    if state.waiting:  # nothing is being made meanwhile
        waits = el("strong", told(state.waiting, texts))
        wait = el("p", texts["preparing_wait"], class_="gg-quiet")
        return el("div", el("div", waits, class_="gg-line"), wait, class_="gg-banner gg-prepare", role="status")
    title = texts["preparing"]
    step = texts["preparing_step"].format(done=state.done, total=state.total) if state.total else ""
    return el(
        "div",
        el("div", el("strong", title), el("span", step, class_="gg-right gg-numbers"), class_="gg-line"),
        bar(100 * state.done // state.total if state.total else 0, label=title, moving=True),
        el("p", told(state.text, texts), class_="gg-quiet gg-cut") if state.text else None,
        el("p", texts["preparing_wait"], class_="gg-quiet"),
        class_="gg-banner gg-prepare",
    )


# ---- quant types


def types(
    texts: Texts,
    output: str = GGUF,
    sizes: Mapping[str, Forecast] | None = None,
    same_as: Mapping[str, str] | None = None,
    instead: Mapping[str, Instead] | None = None,
) -> Markup:
    """A format's quant types, the recommended ones first, the others folded: one checkbox each, and buttons that check
    many. types.js shows which are chosen.

    `sizes` are the files of the model at hand, `same_as` says which types would be the same file on it, and `instead`
    what types are whose widths do not fit. The presets leave out what another type of theirs makes needless there.
    """
    rows = names_of_output(output).types.values()
    total, presets_there = len(rows), _PRESETS if output == GGUF else _PRESETS_OF_OTHERS
    presets = [
        el(
            "button",
            texts[f"preset_{which}"].format(total=total),
            type="button",
            title=texts[f"preset_{which}_info"],
            data_preset=which,
            class_="gg-chip",
        )
        for which in presets_there
    ]
    shown: tuple[list[Markup], list[Markup]] = ([], [])
    for row in rows:
        shown[row.recommended].append(_type(row, output, texts, sizes or {}, same_as or {}, instead or {}))
    others, recommended = shown
    return el(
        "fieldset",
        el("legend", texts["types"]),
        el("output", class_="gg-quiet gg-numbers", data_text=texts["chosen"], data_none=texts["memory_none"]),
        el("div", *presets, class_="gg-chips"),
        el("div", *recommended, class_="gg-types"),
        el(
            "details",
            el("summary", texts["types_others"].format(count=len(others)), class_="gg-quiet"),
            el("div", *others, class_="gg-types"),
        ),
        class_="gg-fieldset",
        data_format=output,
        data_remove=texts["type_remove"],
    )


def chosen() -> Markup:
    """Where types.js shows what is chosen."""
    return el("div", class_="gg-chips gg-chosen-types", data_chosen="")


def _type(
    row: QuantType,
    output: str,
    texts: Texts,
    sizes: Mapping[str, Forecast],
    same_as: Mapping[str, str],
    instead: Mapping[str, Instead],
) -> Markup:
    name, size, here = row.name, sizes.get(row.name), instead.get(row.name)
    advice, useful = texts[advice_key(output, name)], True
    if name in same_as:
        advice, useful = texts["same_as"].format(other=same_as[name]), here is None
    elif here:
        told = texts["mostly_worse" if here.better else "mostly"]
        advice, useful = told.format(type=here.mostly, other=here.better), not here.better
    needs = el("span", texts["needs_imatrix"], class_="gg-tag") if row.needs_imatrix else None
    return el(
        "label",
        el(
            "input",
            type="checkbox",
            value=name,
            data_recommended=row.recommended and useful,
            data_needs_imatrix=row.needs_imatrix,
            data_ordinary=row.ordinary and useful,
            data_memory=memory_needed(size.size) if size else None,
            data_small=name in SMALL and useful,
            data_tutorial=name in TUTORIAL,
            aria_label=name,
            aria_describedby=f"gg-advice-{name}",
        ),
        el("span", name, class_="gg-type-name"),
        el("span", human_size(size.size) if size else "", class_="gg-type-size gg-numbers"),
        el(
            "span",
            f"{size.bpw if size else row.bits:.2f} bpw",
            title=texts["types_bits"],
            class_="gg-type-bits gg-numbers",
        ),
        el("span", needs, advice, class_="gg-type-advice", id=f"gg-advice-{name}"),
        class_="gg-type",
    )


# ---- for the other parts


def button(text: str, action: str, job: str = "", *, label: str = "", file: str = "", confirm: str = "") -> Markup:
    """What jobs.js reports when it is pressed; what cannot be undone asks first, in the words of `confirm`."""
    return el(
        "button",
        text,
        type="button",
        data_action=action,
        data_job=job or None,
        data_file=file or None,
        data_confirm=confirm or None,
        data_key=f"{action} {job} {file}".strip(),
        aria_label=label or None,
        class_="gg-button",
    )


def bar(percent: int, *, label: str, moving: bool) -> Markup:
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

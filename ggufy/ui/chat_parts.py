"""The conversation as HTML, and the picker of states. What was said is plain text: tags and Markdown show as it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import gradio as gr

from ggufy.publish.markup import Markup, el
from ggufy.ui.i18n import TEXTS, Texts


def log(turns: Iterable[Mapping[str, str]], texts: Texts, *, speeds: tuple[float, float] | None = None) -> Markup:
    """All turns, oldest first, and how fast the last reply was."""
    told = list(turns)
    coming = len(told) - 1 if speeds is None else -1  # the reply that is being made
    shown = [
        _turn(turn["role"], turn["content"], turn.get("thought", ""), texts, coming=number == coming)
        for number, turn in enumerate(told)
    ]
    speed = ""
    if speeds:
        speed = texts["chat_speed"].format(prompt=f"{speeds[0]:.0f}", generation=f"{speeds[1]:.0f}")
    return el(
        "div",
        el("div", *shown, class_="gg-turns", tabindex="0", role="log", aria_label=texts["chat_log"]),
        el("p", speed, class_="gg-quiet gg-numbers gg-note"),
        class_="gg-log-of-chat",
    )


def state_picker(i18n: gr.I18n) -> gr.Dropdown:
    """Which tuned state to begin from; shown where there is any."""
    return gr.Dropdown(
        [(TEXTS["en"]["chat_state_none"], "")],
        value="",
        label=i18n("chat_state"),
        interactive=True,
        visible=False,
        elem_id="gg-chat-state",
    )


def picked(names: Collection[str], chosen: object, texts: Texts) -> gr.Dropdown:
    """The picker with the states that there are now."""
    value = chosen if chosen in names else ""
    return gr.Dropdown(choices=[(texts["chat_state_none"], ""), *names], value=value, visible=bool(names))


def _turn(role: str, content: str, thought: str, texts: Texts, *, coming: bool) -> Markup:
    words = {"copy": texts["chat_copy"], "copied": texts["chat_copied"], "failed": texts["chat_copy_failed"]}
    labels = {f"data_{name}": text for name, text in words.items()}
    copy = el("button", texts["chat_copy"], type="button", aria_live="polite", class_="gg-link gg-copy", **labels)
    return el(
        "div",
        _fold(thought, texts["chat_thinking" if coming and not content else "chat_thought"]) if thought else None,
        el("p", content, class_="gg-said") if content or not thought else None,
        copy if content else None,
        class_=f"gg-turn gg-{'user' if role == 'user' else 'model'}",
        aria_label=texts[f"chat_{'user' if role == 'user' else 'model'}"],
    )


def _fold(thought: str, title: str) -> Markup:
    """What a model thinks before it replies; chat.js keeps it open while more of it comes."""
    return el("details", el("summary", title), el("p", thought), class_="gg-thought")

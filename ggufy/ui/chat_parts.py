"""The conversation as chat.js draws it, turn by turn, and the picker of states.

gradio's Chatbot fetches images from anywhere, has no place for a model's speeds, and makes HTML of replies in the
browser, where no table of ours could test it; what it does beside that is a hundred lines here and in chat.js.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import gradio as gr

from ggufy.publish.markup import Markup, el
from ggufy.ui.i18n import TEXTS, Texts
from ggufy.ui.markdown import markdown

_LABELS = ("copy", "copied", "copy_failed", "log", "send", "cancel", "export", "user", "model")


def log(
    turns: Iterable[Mapping[str, str]],
    texts: Texts,
    *,
    side: str = "",
    title: str = "",
    speeds: tuple[float, float] | None = None,
    used: tuple[int, int] | None = None,
    coming: bool = False,
    plain: bool = False,
) -> dict[str, Any]:
    """All turns, oldest first, as HTML and as what was said, how fast the last reply was, and how much of the context
    is `used`. `coming` is whether a reply is being made; `plain` replies are no Markdown."""
    told, notes = list(turns), []
    if speeds:
        notes.append(texts["chat_speed"].format(prompt=f"{speeds[0]:.0f}", generation=f"{speeds[1]:.0f}"))
    if used:
        notes.append(texts["chat_context" if used[1] else "chat_context_open"].format(used=used[0], limit=used[1]))
    return {
        "side": side,
        "title": title,
        "note": " · ".join(notes),
        "coming": coming,
        "labels": {label: texts[f"chat_{label}"] for label in _LABELS},
        "turns": [
            {
                "html": _turn(turn, texts, last=turn is told[-1], coming=coming, plain=plain),
                "role": turn["role"],
                "text": turn["content"],
            }
            for turn in told
        ],
    }


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
    value = chosen if isinstance(chosen, str) and chosen in names else ""
    return gr.Dropdown(choices=[(texts["chat_state_none"], ""), *names], value=value, visible=bool(names))


def _turn(turn: Mapping[str, str], texts: Texts, *, last: bool, coming: bool, plain: bool) -> Markup:
    role, content, thought = turn["role"], turn["content"], turn.get("thought", "")
    user = role == "user"
    thinks = last and coming and not content
    shown = el("p", content, class_="gg-said") if user or plain else el("div", markdown(content), class_="gg-said")
    buttons = [_button(texts["chat_copy"], "copy")] if content else []
    if user:
        buttons.append(_button(texts["chat_edit"], "edit"))
    if not user or last:  # a message that has no reply can be asked again, too
        buttons.append(_button(texts["chat_again"], "again"))
    return el(
        "div",
        _fold(thought, texts["chat_thinking" if thinks else "chat_thought"]) if thought else None,
        shown if content or not thought else None,
        el("div", *buttons, class_="gg-does"),
        class_=f"gg-turn gg-{'user' if user else 'model'}",
        aria_label=texts[f"chat_{'user' if user else 'model'}"],
    )


def _button(text: str, does: str) -> Markup:
    return el("button", text, type="button", aria_live="polite", class_="gg-link", data_does=does)


def _fold(thought: str, title: str) -> Markup:
    """What a model thinks before it replies; chat.js keeps it open while more of it comes."""
    return el("details", el("summary", title), el("p", thought), class_="gg-thought")

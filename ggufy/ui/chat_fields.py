"""The fields of the chat tab: which quants, the conversations, the box for a message, and how to be answered."""

from __future__ import annotations

from typing import Any, TypeAlias

import gradio as gr

from ggufy.models.chat_format import OFF
from ggufy.service.chat_settings import LIMITS, PENALTY, SAMPLING, THINKING, ChatSettings
from ggufy.service.conversations import SIDES
from ggufy.ui import chat_parts
from ggufy.ui.i18n import TEXTS
from ggufy.ui.wiring import OWN, script

Given: TypeAlias = dict[Any, Any]  # field -> what it holds
NONE = ""
LENGTH, MOST_TOKENS = 256, 2048  # of a reply: as a visitor finds it, and for one with thoughts
# The values that the RWKV authors publish for chatting, and how far a visitor may go from them.
SLIDERS = (
    ("temperature", 1.0, 0.05),
    ("top_p", 0.5, 0.05),
    ("presence", PENALTY, 0.05),
    ("frequency", PENALTY, 0.05),
    ("length", LENGTH, 16),
)
_LOG = """\
<div class="gg-log-of-chat">
<p class="gg-log-head"><strong></strong><button type="button" class="gg-link" data-does="export"></button></p>
<div class="gg-turns" tabindex="0" role="log"></div>
<p class="gg-quiet gg-numbers gg-note"></p>
</div>"""  # chat.js fills it
_KEY = "ggufy"  # of what a browser keeps, for every start of the program: it is no secret


class ChatFields:
    """They are added to the Blocks that is being built."""

    def __init__(self, i18n: gr.I18n):
        self.said = gr.BrowserState(storage_key="ggufy-chat", secret=_KEY)
        self.chosen = gr.BrowserState(storage_key="ggufy-chat-options", secret=_KEY)
        with gr.Column(elem_id="gg-chat"):
            self._models(i18n)
            with gr.Row(elem_id="gg-chat-line"):
                self.hint = gr.HTML(elem_id="gg-chat-hint", **OWN)
                self.clear = gr.Button(i18n("chat_clear"), scale=0, size="sm", min_width=80, elem_id="gg-chat-clear")
            self._logs()
            self._entry(i18n)
            with gr.Accordion(i18n("chat_options"), open=False, elem_id="gg-chat-options"):
                self._options(i18n)
        self.options = [*self.models, self.mode, self.think, self.state, self.system, self.sampling, *self.sliders]

    def _models(self, i18n: gr.I18n) -> None:
        with gr.Row(elem_id="gg-chat-models"):
            self.models = [
                gr.Dropdown(
                    [(TEXTS["en"]["chat_nobody"], NONE)],
                    value=NONE if side != SIDES[0] else None,  # None passes gradio's check, whatever the choices
                    label=i18n(f"chat_model_{side}"),
                    interactive=True,
                    scale=3,
                    min_width=240,
                    elem_id=f"gg-chat-model-{side}",
                )
                for side in SIDES
            ]
            self.mode = gr.Radio(
                [(i18n("chat_mode_chat"), "chat"), (i18n("chat_mode_text"), "text")],
                value="chat",
                label=i18n("chat_mode"),
                scale=2,
                min_width=300,
                elem_id="gg-chat-mode",
            )
        self.think = gr.Radio(
            [(i18n(f"chat_think_{think}"), think) for think in THINKING],
            value=OFF,
            label=i18n("chat_think"),
            visible=False,
            elem_id="gg-chat-think",
        )
        self.state = chat_parts.state_picker(i18n)

    def _logs(self) -> None:
        self.columns, self.logs = [], []
        with gr.Row(equal_height=True, elem_id="gg-chat-logs"):
            for side in SIDES:
                with gr.Column(visible=side == SIDES[0], min_width=300) as column:
                    self.logs.append(
                        gr.HTML(
                            log=chat_parts.log([], TEXTS["en"], side=side),
                            html_template=_LOG,
                            js_on_load=script("chat"),
                            elem_id=f"gg-chat-log-{side}",
                            **OWN,
                        )
                    )
                self.columns.append(column)

    def _entry(self, i18n: gr.I18n) -> None:
        with gr.Row(elem_id="gg-chat-entry"):
            self.message = gr.Textbox(
                label=i18n("chat_message"),
                placeholder=i18n("chat_placeholder"),
                show_label=False,
                lines=1,
                max_lines=6,
                scale=8,
                elem_id="gg-chat-message",
            )
            self.send = gr.Button(i18n("chat_send"), variant="primary", scale=1, min_width=76, elem_id="gg-chat-send")
            self.stop = gr.Button(i18n("chat_stop"), scale=1, min_width=76, elem_id="gg-chat-stop")

    def _options(self, i18n: gr.I18n) -> None:
        self.system = gr.Textbox("", label=i18n("chat_system"), lines=2, max_lines=6, elem_id="gg-chat-system")
        self.sampling = gr.Radio(
            [(i18n(f"chat_sampling_{kind}"), kind) for kind in SAMPLING],
            value=SAMPLING[0],
            label=i18n("chat_sampling"),
            elem_id="gg-chat-sampling",
        )
        with gr.Row():
            self.sliders = [
                gr.Slider(
                    max(step, LIMITS[name][0]) if name in ("top_p", "length") else LIMITS[name][0],
                    min(LIMITS[name][1], MOST_TOKENS),
                    value,
                    step=step,
                    label=i18n(f"chat_{name}"),
                    min_width=190,
                    elem_id=f"gg-chat-{name}",
                )
                for name, value, step in SLIDERS
            ]

    def settings(self, given: Given) -> ChatSettings:
        """Raises UsageError for what no settings are."""
        values = {name: given[slider] for (name, _, _), slider in zip(SLIDERS, self.sliders, strict=True)}
        texts = {name: given[getattr(self, name)] for name in ("mode", "think", "state", "system")}
        return ChatSettings.checked(**texts, **values)

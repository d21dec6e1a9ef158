"""The tab that talks to finished quants: one, or two side by side with the same message.

What a visitor types goes to `Chats` as it is, which makes plain text of it. Replies are shown as plain text too, never
as Markdown or HTML. With two quants the second replies after the first: together they would only slow each other down,
and their speeds could not be compared.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import gradio as gr

from ggufy.core.errors import BusyError, Cancelled, GgufyError
from ggufy.models.chat_format import OFF, ON
from ggufy.service.access import Visitor, check_chat, may_chat
from ggufy.service.chat_settings import LIMITS, THINKING, ChatSettings
from ggufy.service.conversations import SIDES
from ggufy.service.service import Services
from ggufy.ui import chat_parts, parts
from ggufy.ui.i18n import TEXTS, Texts, texts_of
from ggufy.ui.messages import told
from ggufy.ui.turns import Turns
from ggufy.ui.visitors import Profile, visitor_of
from ggufy.ui.wiring import HERE, OWN, QUIET

logger = logging.getLogger(__name__)
# Replies are bounded by the processes behind them (llama/chat/pool.py); models on their way hold up nobody else.
# A new message ends the reply before it, and is not dropped because of it.
_STREAM: dict[str, Any] = QUIET | {"queue": True, "concurrency_limit": 16, "trigger_mode": "multiple"}
_NONE = ""
_DRAW_S = 0.08  # between two looks at a reply that is coming
_PATIENCE_S = 5.0  # with a reply that is ending
_LENGTH, _MOST_TOKENS = 256, 2048  # of a reply: as a visitor finds it, and for one with thoughts
# The values that the RWKV authors publish for chatting, and how far a visitor may go from them.
_SLIDERS = (
    ("temperature", 1.0, 0.05),
    ("top_p", 0.5, 0.05),
    ("presence", 0.4, 0.05),
    ("frequency", 0.4, 0.05),
    ("length", _LENGTH, 16),
)
# What is sent leaves the box at once, before another letter can be typed or Enter be pressed again.
_TAKE = """(...sent) => {
  const box = document.querySelector("#gg-chat-entry textarea");
  box.value = "";
  box.dispatchEvent(new Event("input", { bubbles: true }));
  return sent;
}"""


class ChatTab:
    """The tab's components and events, added to the Blocks that is being built."""

    def __init__(self, services: Services, i18n: gr.I18n, tab: gr.Tab):
        self.services, self.chats, self.tab = services, services.chats, tab
        self.turns = Turns()
        with gr.Column(elem_id="gg-chat"):
            self._models(i18n)
            self.hint = gr.HTML(elem_id="gg-chat-hint", **OWN)
            self._logs()
            self._entry(i18n)
            with gr.Accordion(i18n("chat_options"), open=False, elem_id="gg-chat-options"):
                self._options(i18n)

    def _models(self, i18n: gr.I18n) -> None:
        with gr.Row(elem_id="gg-chat-models"):
            self.models = [
                gr.Dropdown(
                    [(TEXTS["en"]["chat_nobody"], _NONE)],
                    value=_NONE,
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
        script = (HERE / "chat.js").read_text(encoding="utf-8")
        with gr.Row(equal_height=True, elem_id="gg-chat-logs"):
            for side in SIDES:
                with gr.Column(visible=side == SIDES[0], min_width=300) as column:
                    self.logs.append(
                        gr.HTML(
                            chat_parts.log([], TEXTS["en"]),
                            js_on_load=script,
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
        with gr.Row(elem_id="gg-chat-more"):
            self.again = gr.Button(i18n("chat_again"), scale=0, size="sm", min_width=130, elem_id="gg-chat-again")
            self.clear = gr.Button(i18n("chat_clear"), scale=0, size="sm", min_width=90, elem_id="gg-chat-clear")

    def _options(self, i18n: gr.I18n) -> None:
        self.system = gr.Textbox("", label=i18n("chat_system"), lines=2, max_lines=6, elem_id="gg-chat-system")
        with gr.Row():
            self.sliders = [
                gr.Slider(
                    max(step, LIMITS[name][0]) if name in ("top_p", "length") else LIMITS[name][0],
                    min(LIMITS[name][1], _MOST_TOKENS),
                    value,
                    step=step,
                    label=i18n(f"chat_{name}"),
                    min_width=190,
                    elem_id=f"gg-chat-{name}",
                )
                for name, value, step in _SLIDERS
            ]

    def connect(self) -> None:
        chosen = [*self.columns, self.hint, self.think, self.state]
        shown = [*self.models, *chosen, self.send]
        told = [*self.logs, self.hint]
        asked = [*self.models, self.mode, self.think, self.state, self.system, *self.sliders]
        picked = [*self.models, self.state]
        gr.on([self.tab.select], self.look, picked, shown, **QUIET)
        gr.on([model.input for model in self.models], self.choose, picked, chosen, **QUIET)
        self.think.input(self.advise, [self.models[0], self.think], self.sliders, **QUIET)
        sent = [self.message.submit, self.send.click]
        gr.on(sent, self.say, [self.message, *asked], [self.message, *told], js=_TAKE, **_STREAM)
        self.again.click(self.regenerate, asked, [self.message, *told], **_STREAM)
        self.stop.click(self.halt, None, None, **QUIET)
        self.clear.click(self.forget, None, told, **QUIET)

    # ---- handlers

    def look(self, first: Any, second: Any, state: Any, request: gr.Request, profile: Profile) -> list[Any]:
        """The quants that there are now, and whether this visitor may talk to them."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        names, may = self.chats.models(visitor), may_chat(visitor, self.services.settings)
        first = first if first in names else (names[0] if names else _NONE)
        second = second if second in names else _NONE
        none = (texts["chat_nobody"], _NONE)
        choices: list[Any] = [*names] if names else [none]
        models = [gr.Dropdown(choices=choices, value=first), gr.Dropdown(choices=[none, *names], value=second)]
        *columns, hint, think, picker = self.choose(first, second, state, request, profile)
        hint = hint if may else parts.note(texts["chat_closed"])
        return [*models, *columns, hint, think, picker, gr.Button(interactive=may)]

    def choose(self, first: Any, second: Any, state: Any, request: gr.Request, profile: Profile) -> list[Any]:
        """Shows one column or two, what is missing, the switch if one of the models thinks, and the first's states."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        hint = texts["chat_ready"] if first else texts["chat_empty"]
        formats = [self.chats.format_of(model, visitor) for model in (first, second) if isinstance(model, str)]
        think = gr.Radio(visible=any(chat is not None and chat.thinks for chat in formats))
        picker = chat_parts.picked(self.chats.states(first, visitor), state, texts)
        return [gr.Column(visible=True), gr.Column(visible=bool(second)), parts.note(hint), think, picker]

    def advise(self, first: Any, think: Any, request: gr.Request, profile: Profile) -> list[Any]:
        """Puts the options to what the makers of the first model advise for thinking, or for not thinking."""
        visitor = visitor_of(self.services, request, profile)
        chat = self.chats.format_of(first, visitor) if isinstance(first, str) else None
        if chat is None or not chat.thinks:
            return [gr.skip()] * len(_SLIDERS)
        advice = chat.sampling[OFF if think == OFF else ON]
        numbers = [advice[name] for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")]
        return [*numbers, _LENGTH if think == OFF else _MOST_TOKENS]

    # gradio hands request and profile over by position, so every field has a name of its own here
    def say(
        self,
        message: Any,
        first: Any,
        second: Any,
        mode: Any,
        think: Any,
        state: Any,
        system: Any,
        temperature: Any,
        top_p: Any,
        presence: Any,
        frequency: Any,
        length: Any,
        request: gr.Request,
        profile: Profile,
    ) -> Iterator[list[Any]]:
        """Sends the message to the chosen quants in turn, and shows their replies as they come."""
        asked = (first, second, mode, think, state, system, temperature, top_p, presence, frequency, length)
        yield from self._stream(message if isinstance(message, str) else "", asked, request, profile)

    def regenerate(
        self,
        first: Any,
        second: Any,
        mode: Any,
        think: Any,
        state: Any,
        system: Any,
        temperature: Any,
        top_p: Any,
        presence: Any,
        frequency: Any,
        length: Any,
        request: gr.Request,
        profile: Profile,
    ) -> Iterator[list[Any]]:
        """Another reply to the last message."""
        asked = (first, second, mode, think, state, system, temperature, top_p, presence, frequency, length)
        yield from self._stream(None, asked, request, profile)

    def _stream(
        self, message: str | None, asked: tuple[Any, ...], request: gr.Request, profile: Profile
    ) -> Iterator[list[Any]]:
        texts, session = texts_of(request), str(request.session_hash)
        if message is not None and not message.strip():
            yield [gr.skip()] * 4
            return
        box: Any = message  # comes back into the box if it could not be said
        with self.turns.begin(session) as stopped:
            try:
                visitor = visitor_of(self.services, request, profile)
                check_chat(visitor, self.services.settings)
                for hint in self._sides(session, visitor, message, asked, texts, stopped):
                    box = None
                    yield [gr.skip(), *self._shown(session, texts), hint]
                hint = ""
            except Cancelled:  # what came until then stays
                hint = ""
            except GgufyError as error:
                hint = parts.message(told(error.message, texts))
            except Exception:  # one of the three edges: a visitor sees a sentence, the log has the rest
                logger.exception("a reply could not be made")
                hint = parts.message(texts["unexpected"])
            yield [gr.skip() if box is None else box, *self._shown(session, texts), hint]

    def _sides(
        self,
        session: str,
        visitor: Visitor,
        message: str | None,
        asked: tuple[Any, ...],
        texts: Texts,
        stopped: Callable[[], bool],
    ) -> Iterator[str]:
        """Both replies in turn, until `stopped`; yields what is to be said beside them when there is something new."""
        first, second, mode, think, state, system, *numbers = asked
        values = {name: number for (name, _, _), number in zip(_SLIDERS, numbers, strict=True)}
        settings = ChatSettings.checked(mode=mode, think=think, state=state, system=system, **values)
        for side, model in zip(SIDES, (first, second), strict=True):
            if (side != SIDES[0] and not model) or stopped():
                continue
            replies = self._replies(
                session, side, model=model, settings=settings, message=message, who=visitor, stopped=stopped
            )
            with contextlib.closing(replies):
                next(replies)  # the message is among the turns, where it stays whatever comes
                yield ""
                for fraction in self.services.fetch_model(model, visitor, stopped):
                    hint = texts["chat_fetching"].format(model=model, percent=f"{100 * fraction:.0f}")
                    yield parts.message(hint, "busy")
                drawn = 0.0
                for _ in replies:
                    if time.monotonic() >= drawn + _DRAW_S:
                        drawn = time.monotonic()
                        yield ""

    def _replies(self, session: str, side: str, **asked: Any) -> Generator[None]:
        """As `Chats.say`; a reply that is still being made to the same visitor ends first."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            self.chats.stop(session)
            replies = self.chats.say(session, side, **asked)
            try:
                yield next(replies)
                yield from replies
                return
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _shown(self, session: str, texts: Texts) -> list[Any]:
        """Both conversations."""
        chats = self.chats
        return [chat_parts.log(chats.turns(session, s), texts, speeds=chats.speeds(session, s)) for s in SIDES]

    def halt(self, request: gr.Request) -> None:
        """Ends what is being made or fetched, for both sides; what came of it stays."""
        session = str(request.session_hash)
        self.turns.stop(session)
        self.chats.stop(session)

    def forget(self, request: gr.Request) -> list[Any]:
        """Starts anew."""
        session = str(request.session_hash)
        self.turns.stop(session)
        self.chats.clear(session)
        return [*self._shown(session, texts_of(request)), ""]

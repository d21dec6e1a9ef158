"""The tab that talks to finished quants: one, or two side by side with the same message.

What a visitor types goes to `Chats` as it is, which makes plain text of it, and is shown as such. With two quants the
second replies after the first: together they would only slow each other down, and their speeds could not be compared.
What was said and chosen is kept by the visitor's browser, and comes back with it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ggufy.core.errors import BusyError, Cancelled, UsageError
from ggufy.models.chat_format import OFF, RwkvFormat
from ggufy.service.access import Visitor, check_chat, may_chat
from ggufy.service.chat_settings import OWN, SAMPLING, TEXT, sampling
from ggufy.service.conversation import same_question
from ggufy.service.conversations import SIDES
from ggufy.service.service import Services
from ggufy.ui import chat_parts, parts
from ggufy.ui.chat_fields import LENGTH, MOST_TOKENS, NONE, SLIDERS, ChatFields, Given
from ggufy.ui.i18n import Texts, texts_of
from ggufy.ui.turns import Turn, Turns
from ggufy.ui.visitors import Profile, visitor_of
from ggufy.ui.wiring import QUIET

logger = logging.getLogger(__name__)
# Replies are bounded by the processes behind them (llama/chat/pool.py); models on their way hold up nobody else.
# A new message ends the reply before it, and is not dropped because of it.
_STREAM: dict[str, Any] = QUIET | {"queue": True, "concurrency_limit": 16, "trigger_mode": "multiple"}
_EVERY: Mapping[str, int | None] = dict.fromkeys(SIDES)
_DRAW_S = 0.08  # between two looks at a reply that is coming
_PATIENCE_S = 5.0  # with a reply that is ending
# What is sent leaves the box at once, before another letter can be typed or Enter be pressed again.
_TAKE = """(...sent) => {
  const box = document.querySelector("#gg-chat-entry textarea");
  box.value = "";
  box.dispatchEvent(new Event("input", { bubbles: true }));
  return sent;
}"""


class ChatTab(ChatFields):
    """The tab's components and events, added to the Blocks that is being built."""

    def __init__(self, services: Services, i18n: gr.I18n, tab: gr.Tab):
        self.services, self.chats, self.tab = services, services.chats, tab
        self.turns = Turns()
        super().__init__(i18n)

    def connect(self) -> None:
        asked = {*self.options}
        shown = [*self.columns, *self.logs, self.hint, self.think, self.state, *self.sliders]
        told = [self.message, *self.logs, self.hint, self.said]
        looked = [*dict.fromkeys([*self.options, *shown, self.send])]
        self.tab.select(self.look, {*asked, self.said, self.chosen}, looked, **QUIET)
        gr.on([model.input for model in self.models], self.choose, asked, shown, **QUIET)
        self.mode.input(self.switch, asked, shown, **QUIET)
        gr.on([self.think.input, self.sampling.input], self.advise, asked, self.sliders, **QUIET)
        gr.on([one.input for one in self.sliders[:-1]], None, None, self.sampling, js=f"() => '{OWN}'", **QUIET)
        changes = [option.change for option in self.options]
        gr.on(changes, None, self.options, self.chosen, js="(...chosen) => [chosen]", **QUIET)
        gr.on([self.message.submit, self.send.click], self.say, {*asked, self.message}, told, js=_TAKE, **_STREAM)
        for log in self.logs:
            log.edit(self.edit, {*asked, self.message}, told, **_STREAM)
            log.again(self.regenerate, asked, told, **_STREAM)
        self.stop.click(self.halt, None, None, **QUIET)
        self.clear.click(self.forget, asked, [*self.logs, self.hint, self.said], **QUIET)

    # ---- handlers; `given` is what the fields hold

    def look(self, given: Given, request: gr.Request, profile: Profile) -> dict[Any, Any]:
        """The quants that there are now, whether this visitor may talk to them, and what their browser has kept."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        names, may = self.chats.models(visitor), may_chat(visitor, self.services.settings)
        if may:
            self.chats.bring_back(str(request.session_hash), given[self.said])
        given = given | self._kept(given[self.chosen])
        first, second = (given[model] for model in self.models)
        first = first if first in names else (names[0] if names else NONE)
        second = second if second in names else NONE
        given |= dict(zip(self.models, (first, second), strict=True))
        none = (texts["chat_nobody"], NONE)
        choices: list[Any] = [*names] if names else [none]
        shown = {option: given[option] for option in self.options} | self.choose(given, request, profile)
        shown[self.models[0]] = gr.Dropdown(choices=choices, value=first)
        shown[self.models[1]] = gr.Dropdown(choices=[none, *names], value=second)
        if not may:
            shown[self.hint] = parts.note(texts["chat_closed"])
        return shown | {self.send: gr.Button(interactive=may)}

    def _kept(self, chosen: object) -> Given:
        """The options that a browser has kept, if they are such."""
        if not isinstance(chosen, list) or len(chosen) != len(self.options):
            return {}
        kept = dict(zip(self.options, chosen, strict=True))
        try:
            self.settings(kept)
        except UsageError:  # of another version, or written by somebody
            return {}
        return kept if kept[self.sampling] in SAMPLING else {}

    def choose(self, given: Given, request: gr.Request, profile: Profile) -> dict[Any, Any]:
        """Shows one column or two, what is missing, the switch if one of the models thinks, and the first's states."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        first, second = (given[model] for model in self.models)
        formats = [self.chats.format_of(model, visitor) for model in (first, second) if isinstance(model, str)]
        thinks = any(chat is not None and chat.thinks for chat in formats)
        picker = chat_parts.picked(self.chats.states(first, visitor), given[self.state], texts)
        return {
            **dict(zip(self.columns, (gr.Column(visible=True), gr.Column(visible=bool(second))), strict=True)),
            **self._shown(str(request.session_hash), given, texts),
            self.hint: parts.note(texts["chat_ready" if first else "chat_empty"]),
            self.think: gr.Radio(value=given[self.think], visible=thinks),
            self.state: picker,
            **self._sampled(given, visitor),
        }

    def _format(self, given: Given, visitor: Visitor) -> RwkvFormat | None:
        first = given[self.models[0]]
        return self.chats.format_of(first, visitor) if isinstance(first, str) else None

    def _sampled(self, given: Given, visitor: Visitor) -> dict[Any, Any]:
        """The numbers that the choice of sampling means for the first model."""
        numbers = sampling(given[self.sampling], self._format(given, visitor), given[self.think])
        return {one: numbers[name] for (name, _, _), one in zip(SLIDERS, self.sliders, strict=True) if name in numbers}

    def switch(self, given: Given, request: gr.Request, profile: Profile) -> dict[Any, Any]:
        """Shows the conversation of the other mode; this one's stays as it is, and comes back with its mode."""
        self.turns.leave(str(request.session_hash))
        self.chats.stop(str(request.session_hash))
        return self.choose(given, request, profile)

    def advise(self, given: Given, request: gr.Request, profile: Profile) -> dict[Any, Any]:
        """Puts the options to what the sampling means, and gives thoughts room."""
        visitor = visitor_of(self.services, request, profile)
        chat = self._format(given, visitor)
        length = {self.sliders[-1]: LENGTH if given[self.think] == OFF else MOST_TOKENS}
        return (length if chat is not None and chat.thinks else {}) | self._sampled(given, visitor)

    def say(self, given: Given, request: gr.Request, profile: Profile) -> Iterator[dict[Any, Any]]:
        """Sends the message to the chosen quants in turn, and shows their replies as they come."""
        message = given[self.message]
        if isinstance(message, str) and message.strip():
            yield from self._stream(given, request, profile, message)
        else:
            yield {}

    def edit(
        self, given: Given, event: gr.EventData, request: gr.Request, profile: Profile
    ) -> Iterator[dict[Any, Any]]:
        """Goes on from one of the visitor's messages, which another one replaces, on the other side too if it was
        said there."""
        told, session, mode = _Told.of(event), str(request.session_hash), given[self.mode]
        turns = {side: self.chats.turns(session, side, mode) for side in SIDES}
        places = {side: same_question(turns[told.side], told.turn, turns[side]) for side in SIDES}
        yield from self._stream(given, request, profile, told.message, places | {told.side: told.turn})

    def regenerate(
        self, given: Given, event: gr.EventData, request: gr.Request, profile: Profile
    ) -> Iterator[dict[Any, Any]]:
        """Another reply of one side; what was said after it goes."""
        told = _Told.of(event)
        turns = self.chats.turns(str(request.session_hash), told.side, given[self.mode])
        last = told.turn == len(turns) - 1  # also a message that has no reply
        yield from self._stream(given, request, profile, None, {told.side: None if last else told.turn})

    def _stream(
        self,
        given: Given,
        request: gr.Request,
        profile: Profile,
        message: str | None,
        places: Mapping[str, int | None] = _EVERY,
    ) -> Iterator[dict[Any, Any]]:
        """Asks the sides of `places`, each from there on."""
        texts, session = texts_of(request), str(request.session_hash)
        typed = given.get(self.message) or message or ""
        back = typed if message in (None, typed) else f"{typed}\n{message}"
        box: Any = {} if message is None else {self.message: back}  # comes back if it could not be said
        asked = False
        with self.turns.begin(session) as turn:
            try:
                visitor = visitor_of(self.services, request, profile)
                check_chat(visitor, self.services.settings)
                for hint in self._sides(session, visitor, message, given, places, texts, turn):
                    kept = {} if asked else {self.said: self.chats.kept(session)}
                    asked, box = True, {}
                    if turn.left:
                        break
                    yield self._shown(session, given, texts, coming=True) | {self.hint: hint} | kept
                hint = ""
            except Cancelled:  # what came until then stays
                hint = ""
            except Exception as error:  # one of the three edges
                hint = parts.failure(error, texts, "a reply could not be made")
            if turn.left:  # another one is shown by now
                yield box
            else:
                shown = self._shown(session, given, texts) | {self.hint: hint, self.said: self.chats.kept(session)}
                yield shown | box

    def _sides(
        self,
        session: str,
        visitor: Visitor,
        message: str | None,
        given: Given,
        places: Mapping[str, int | None],
        texts: Texts,
        turn: Turn,
    ) -> Iterator[str]:
        """The replies in turn, until a stop; yields what is to be said beside them when there is something new."""
        settings = self.settings(given)
        if not given[self.models[0]]:  # Enter came before the browser had heard of the first choice
            given = given | {self.models[0]: next(iter(self.chats.models(visitor)), NONE)}
        for side, model in zip(SIDES, (given[model] for model in self.models), strict=True):
            if side not in places or (side != SIDES[0] and not model) or turn.stopped():
                continue
            asked = {"settings": settings, "message": message, "who": visitor, "turn": places[side]}
            replies = self._replies(session, side, model=model, stopped=turn.stopped, **asked)
            with contextlib.closing(replies):
                next(replies)  # the message is among the turns, where it stays whatever comes
                yield ""
                for fraction in self.services.fetch_model(model, visitor, turn.stopped):
                    hint = texts["chat_fetching"].format(model=model, percent=f"{100 * fraction:.0f}")
                    yield parts.message(hint, "busy")
                due = 0.0
                for _ in replies:
                    if (began := time.monotonic()) >= due:
                        yield ""
                        due = time.monotonic() + max(_DRAW_S, time.monotonic() - began)  # drawing takes half at most

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

    def _shown(self, session: str, given: Given, texts: Texts, *, coming: bool = False) -> dict[Any, Any]:
        """Both conversations in the mode at hand."""
        mode, shown = given[self.mode], {}
        for side, log, model in zip(SIDES, self.logs, self.models, strict=True):
            turns, speeds = self.chats.turns(session, side, mode), self.chats.speeds(session, side, mode)
            words = {"side": side, "title": str(given[model] or NONE), "plain": mode == TEXT}
            words["used"] = self.chats.used(session, side, mode)
            shown[log] = gr.HTML(log=chat_parts.log(turns, texts, speeds=speeds, coming=coming, **words))
        return shown

    def halt(self, request: gr.Request) -> None:
        """Ends what is being made or fetched, for both sides; what came of it stays."""
        session = str(request.session_hash)
        self.turns.stop(session)
        self.chats.stop(session)

    def forget(self, given: Given, request: gr.Request) -> dict[Any, Any]:
        """Starts anew in the mode at hand."""
        session, mode = str(request.session_hash), given[self.mode]
        self.turns.leave(session)
        self.chats.clear(session, mode)
        return {
            **self._shown(session, given, texts_of(request)),
            self.hint: "",
            self.said: self.chats.kept(session),
        }


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What a button of a turn says, as far as it is such."""

    side: str
    turn: int
    message: str

    @classmethod
    def of(cls, event: gr.EventData) -> _Told:
        told: dict[str, Any] = event._data if isinstance(event._data, dict) else {}
        side, turn, message = told.get("side"), told.get("turn"), told.get("message")
        return cls(
            side=side if side in SIDES else SIDES[0],
            turn=turn if isinstance(turn, int) else -1,
            message=message if isinstance(message, str) else "",
        )

"""What the page's handlers show while something takes long: a turn of a chat, and a look at a source."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pytest

from ggufy.core.errors import Cancelled, UsageError
from ggufy.models.chat_format import FORMATS
from ggufy.service.access import Visitor
from ggufy.ui.chat_tab import ChatTab
from ggufy.ui.i18n import TEXTS
from ggufy.ui.newest import Newest
from ggufy.ui.quantize_tab import QuantizeTab
from ggufy.ui.turns import Turns


class Chats:
    """Stands in for the models: two pieces for each reply, and notes who was asked, and from which turn on."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.places: list[int | None] = []
        self.said: dict[str, list[dict[str, str]]] = {"a": [], "b": []}
        self.back: list[Any] = []
        self.after_piece: Callable[[], None] = lambda: None

    def say(
        self, visitor: str, side: str, *, model: str, stopped: Callable[[], bool], turn: int | None, **_: Any
    ) -> Iterator[None]:
        if model == "gone":
            raise UsageError("this model is not among the finished quants: choose one of the list.")
        self.asked.append(model)
        self.places.append(turn)
        yield
        for _ in range(2):
            if stopped():
                return
            yield
            self.after_piece()

    def stop(self, visitor: str) -> None: ...

    def turns(self, visitor: str, side: str, mode: str) -> list[dict[str, str]]:
        return self.said[side] if mode == "chat" else []

    def kept(self, visitor: str) -> Any:
        return self.said

    def bring_back(self, visitor: str, kept: object) -> None:
        self.back.append(kept)

    def speeds(self, visitor: str, side: str, mode: str) -> None: ...

    def used(self, visitor: str, side: str, mode: str) -> None: ...

    def models(self, visitor: Visitor) -> list[str]:
        return ["a.gguf", "b.gguf"]

    def format_of(self, model: str, visitor: Visitor) -> None: ...

    def states(self, model: str, visitor: Visitor) -> dict[str, Any]:
        return {}


class Services:
    def __init__(self) -> None:
        self.chats = Chats()
        self.fetches = 0
        self.settings: Any = type("Settings", (), {"space_id": None, "open_to_all": True, "chat_for_all": True})

    def fetch_model(self, name: str, visitor: Visitor, stopped: Callable[[], bool]) -> Iterator[float]:
        for done in range(self.fetches):
            if stopped():
                raise Cancelled("stopped while the model was being fetched.")
            yield done / 100


@pytest.fixture
def tab() -> ChatTab:
    services: Any = Services()
    with gr.Blocks(), gr.Tab() as tab:
        return ChatTab(services, gr.I18n(**TEXTS), tab)


REQUEST: Any = gr.Request(headers={}, session_hash="visitor")


def filled(tab: ChatTab, **other: Any) -> dict[Any, Any]:
    """The fields as the page begins with them, with two models."""
    given = {option: option.value for option in tab.options} | dict(zip(tab.models, ("a.gguf", "b.gguf"), strict=True))
    given |= {tab.message: "Hello you", tab.said: None, tab.chosen: None}
    return given | {getattr(tab, name): value for name, value in other.items()}


def put_into_the_box(tab: ChatTab, answers: list[dict[Any, Any]]) -> list[str]:
    return [answer[tab.message] for answer in answers if tab.message in answer]


def coming(tab: ChatTab, answer: dict[Any, Any]) -> list[bool]:
    return [answer[log].props["log"]["coming"] for log in tab.logs if log in answer]


def test_nothing_touches_the_box_while_a_reply_comes(tab: ChatTab) -> None:
    """What was sent has left it in the browser; what is there was typed since."""
    answers = list(tab.say(filled(tab), REQUEST, None))
    assert len(answers) > 4
    assert put_into_the_box(tab, answers) == []
    assert tab.services.chats.asked == ["a.gguf", "b.gguf"]  # type: ignore[attr-defined]
    assert [coming(tab, answer) for answer in answers] == [[True, True]] * (len(answers) - 1) + [[False, False]]
    assert [tab.said in answer for answer in answers] == [True] + [False] * (len(answers) - 2) + [True]


def test_a_message_that_was_not_said_comes_back(tab: ChatTab) -> None:
    answers = list(tab.say(filled(tab) | {tab.models[0]: "gone"}, REQUEST, None))
    assert put_into_the_box(tab, answers) == ["Hello you"]
    assert "not among the finished quants" in answers[-1][tab.hint]


def test_who_is_quicker_than_the_list_talks_to_the_first_model(tab: ChatTab) -> None:
    """What the browser has of the lists then reaches the handler: where gradio refuses it, the message is lost."""
    later = gr.Dropdown(choices=["a.gguf", "b.gguf"])
    begun = [model.value for model in tab.models]
    assert later.preprocess(begun[0]) is None and begun[1] == ""  # which the second list always has
    given = filled(tab) | dict(zip(tab.models, begun, strict=True))
    assert "Hello you" not in put_into_the_box(tab, list(tab.say(given, REQUEST, None)))
    assert tab.services.chats.asked == ["a.gguf"]  # type: ignore[attr-defined]


def test_an_edit_that_was_not_said_comes_behind_what_was_typed(tab: ChatTab) -> None:
    chats: Any = tab.chats
    chats.said["a"] = [{"role": "user", "content": "Hello"}]
    given = filled(tab) | {tab.models[0]: "gone", tab.message: "a draft"}
    answers = list(tab.edit(given, event(side="a", turn=0, message="Hi"), REQUEST, None))
    assert put_into_the_box(tab, answers) == ["a draft\nHi"]


def test_a_stop_ends_both_columns(tab: ChatTab) -> None:
    chats: Any = tab.chats
    chats.after_piece = lambda: tab.halt(REQUEST)
    answers = list(tab.say(filled(tab), REQUEST, None))
    assert chats.asked == ["a.gguf"]
    assert coming(tab, answers[-1]) == [False, False]


def test_a_stop_ends_a_fetch(tab: ChatTab) -> None:
    services: Any = tab.services
    services.fetches = 100
    stream = tab.say(filled(tab), REQUEST, None)
    hints = [next(stream)[tab.hint], next(stream)[tab.hint]]
    assert "Fetching a.gguf" in hints[-1]
    tab.halt(REQUEST)
    rest = list(stream)
    assert len(rest) == 1  # neither a reply nor an error
    assert rest[0][tab.hint] == ""
    assert services.chats.asked == ["a.gguf"]


def test_another_mode_shows_its_own_conversation(tab: ChatTab) -> None:
    """And nothing of the reply that was being made is drawn over it."""
    chats: Any = tab.chats
    chats.said["a"] = [{"role": "user", "content": "Hello"}]
    stream = tab.say(filled(tab), REQUEST, None)
    next(stream)
    shown = tab.switch(filled(tab, mode="text"), REQUEST, None)
    assert [shown[log].props["log"]["turns"] for log in tab.logs] == [[], []]
    assert list(stream) == [{}]
    shown = tab.switch(filled(tab), REQUEST, None)
    assert [turn["text"] for turn in shown[tab.logs[0]].props["log"]["turns"]] == ["Hello"]


def event(**told: Any) -> Any:
    return gr.EventData(None, told)


def test_an_edit_goes_on_from_the_same_message_on_both_sides(tab: ChatTab) -> None:
    chats: Any = tab.chats
    asked = [{"role": "user", "content": text} for text in ("One", "Two", "Three")]
    chats.said = {"a": asked, "b": [asked[1], {"role": "assistant", "content": ""}, asked[2]]}  # b began later
    list(tab.edit(filled(tab), event(side="b", turn=0, message="Zwei"), REQUEST, None))
    assert chats.places == [1, 0]
    list(tab.edit(filled(tab), event(side="a", turn=0, message="Eins"), REQUEST, None))
    assert chats.places[2:] == [0, None]  # b was never asked that


def test_another_reply_is_of_its_side_alone(tab: ChatTab) -> None:
    chats: Any = tab.chats
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant", "user")]
    chats.said["b"] = turns
    list(tab.regenerate(filled(tab), event(side="b", turn=1), REQUEST, None))
    list(tab.regenerate(filled(tab), event(side="b", turn=4), REQUEST, None))
    assert (chats.asked, chats.places) == (["b.gguf", "b.gguf"], [1, None])


@pytest.mark.parametrize("told", [{}, {"side": "x", "turn": "1"}, {"side": "a", "turn": 5, "message": 3}])
def test_what_no_button_says_is_harmless(tab: ChatTab, told: dict[str, Any]) -> None:
    for handler in (tab.edit, tab.regenerate):
        answers = list(handler(filled(tab), event(**told), REQUEST, None))
        assert "nexpected" not in answers[-1][tab.hint]


def test_what_a_browser_has_kept_comes_back(tab: ChatTab) -> None:
    chosen = ["b.gguf", "lost.gguf", "text", "off", "", "Be brief.", "own", 0.3, 0.5, 0.0, 0.0, 32]
    given = filled(tab) | {tab.said: {"chat": 1}, tab.chosen: chosen, tab.models[0]: ""}
    shown = tab.look(given, REQUEST, None)
    chats: Any = tab.chats
    assert chats.back == [{"chat": 1}]
    assert [shown[model].value for model in tab.models] == ["b.gguf", ""]
    assert (shown[tab.mode], shown[tab.system], shown[tab.sliders[0]]) == ("text", "Be brief.", 0.3)
    for broken in ([*chosen[:-1], 10**9], chosen[1:], {"a": 1}, [[]] * len(chosen), "x"):
        shown = tab.look(given | {tab.chosen: broken}, REQUEST, None)
        assert (shown[tab.mode], shown[tab.system]) == ("chat", "")


def test_whoever_may_not_chat_brings_nothing_back(tab: ChatTab) -> None:
    tab.services.settings = type(  # type: ignore[assignment]
        "Settings", (), {"space_id": "x/y", "open_to_all": False, "chat_for_all": False, "owners": frozenset()}
    )
    tab.look(filled(tab), REQUEST, None)
    assert tab.chats.back == []  # type: ignore[attr-defined]


def test_a_new_turn_ends_the_one_before() -> None:
    turns = Turns()
    with turns.begin("x") as first:
        with turns.begin("x") as second:
            assert first.stopped() and first.left
            assert not second.stopped()
            turns.stop("y")
            assert not second.stopped()
            turns.stop("x")
            assert second.stopped() and not second.left
        turns.stop("x")  # nobody is waiting
    assert turns._turns == {}


class Looked:
    """Stands in for the services of the form; a look at `slow` waits for the test."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def is_query(self, text: str, visitor: Visitor) -> bool:
        return " " in text

    def search(self, text: str, visitor: Any) -> list[Any]:
        return []

    def models_in(self, text: str, visitor: Any) -> list[Any]:
        return []

    def inspect(self, text: str, visitor: Any, **_: Any) -> Any:
        if text == "slow":
            self.go.wait(60)
        raise UsageError(f"{text} does not exist: give a .pth file.")

    def cost(self, text: str, visitor: Any, order: Any, wish: Any) -> Any:
        raise UsageError("that is no size to order.")


@pytest.fixture
def form(monkeypatch: pytest.MonkeyPatch) -> QuantizeTab:
    form = object.__new__(QuantizeTab)
    looked: Any = Looked()
    form.services, form.newest, form.priced = looked, Newest(), Newest()
    monkeypatch.setattr(form, "fields", lambda: {name: name for name in FORM})
    monkeypatch.setattr("ggufy.ui.quantize_tab.visitor_of", lambda *_: None)
    return form


FORM = {"source": "", "types": ["Q8_0"], "targets": "", "mode": "standard"}


def look(form: QuantizeTab, source: str) -> Iterator[list[Any]]:
    return form.look(FORM | {"source": source}, REQUEST, None)


def test_a_look_begins_with_a_sign_of_work_and_nothing_of_before(form: QuantizeTab) -> None:
    for source, sign in (("a.pth", "looking"), ("rwkv 7", "searching")):
        panel, table, cost = next(look(form, source))
        assert TEXTS["en"][sign] in panel
        assert "gg-busy" in panel and f'data-about="{source}"' in panel  # Start waits, see source.js
        assert " GB" not in table.props["rows"]
        assert cost == ""


def test_a_late_answer_does_not_cover_a_newer_one(form: QuantizeTab) -> None:
    late = look(form, "slow")
    next(late)
    (_, answer, end) = look(form, "b.pth")
    assert "b.pth does not exist" in answer[0]
    form.services.go.set()  # type: ignore[attr-defined]
    # The last that a handler gives is shown once more when it ends, so this must be nothing.
    assert [end] == list(late) == [[gr.skip()] * 3]


def test_a_late_look_does_not_cover_a_newer_price(form: QuantizeTab) -> None:
    """Its cost is of what was chosen when it began; its panel still counts."""
    late = look(form, "slow")
    next(late)
    price = form.price(FORM | {"source": "slow", "types": [], "targets": "6 apples"}, REQUEST, None)
    assert "is no size to order" in price
    form.services.go.set()  # type: ignore[attr-defined]
    (answer, _) = late
    assert "does not exist" in answer[0]
    assert answer[2] == gr.skip()


def test_a_sampling_is_numbers_of_the_chat_format(tab: ChatTab) -> None:
    chats: Any = tab.chats
    numbers = dict(zip(("temperature", "top_p", "presence", "frequency"), tab.sliders, strict=False))

    def advised(chat: str, **given: str) -> dict[str, float]:
        chats.format_of = lambda model, visitor: FORMATS.get(chat)
        chosen = tab.choose(filled(tab, **given), REQUEST, None)
        told = {name: chosen[slider] for name, slider in numbers.items() if slider in chosen}
        again = tab.advise(filled(tab, **given), REQUEST, None)
        assert told == {name: again[slider] for name, slider in numbers.items() if slider in again}
        return told

    assert advised("world") == {"temperature": 1.0, "top_p": 0.5, "presence": 0.4, "frequency": 0.4}
    assert advised("g1c") == {"temperature": 1.0, "top_p": 0.28, "presence": 0.0, "frequency": 0.0}
    assert advised("g1c", think="on") == {"temperature": 0.96, "top_p": 0.76, "presence": 1.0, "frequency": 0.1}
    assert advised("g1c", sampling="likeliest") == {"temperature": 0, "top_p": 1, "presence": 0, "frequency": 0}
    assert advised("g1c", sampling="own") == {}
    assert advised("another's") == {}


def test_what_another_version_has_kept_is_left(tab: ChatTab) -> None:
    kept = [option.value for option in tab.options]
    place = tab.options.index(tab.sampling)
    assert tab._kept(kept) == dict(zip(tab.options, kept, strict=True))
    for other in (
        kept[:-1],
        kept[:place] + ["elsewhere"] + kept[place + 1 :],
        kept[:place] + [[]] + kept[place + 1 :],
    ):
        assert tab._kept(other) == {}

"""What the page's handlers show while something takes long: a turn of a chat, and a look at a source."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pytest

from ggufy.core.errors import Cancelled, UsageError
from ggufy.service.access import Visitor
from ggufy.ui.chat_tab import ChatTab
from ggufy.ui.i18n import TEXTS
from ggufy.ui.newest import Newest
from ggufy.ui.quantize_tab import QuantizeTab
from ggufy.ui.turns import Turns

ASKED = ("a.gguf", "b.gguf", "chat", "off", "", "", 1.0, 0.5, 0.4, 0.4, 16)


class Chats:
    """Stands in for the models: two pieces for each reply, and notes who was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.after_piece: Callable[[], None] = lambda: None

    def say(self, visitor: str, side: str, *, model: str, stopped: Callable[[], bool], **_: Any) -> Iterator[None]:
        if model == "gone":
            raise UsageError("this model is not among the finished quants: choose one of the list.")
        self.asked.append(model)
        yield
        for _ in range(2):
            if stopped():
                return
            yield
            self.after_piece()

    def stop(self, visitor: str) -> None: ...

    def turns(self, visitor: str, side: str) -> list[dict[str, str]]:
        return []

    def speeds(self, visitor: str, side: str) -> None: ...


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
    tab = object.__new__(ChatTab)
    services: Any = Services()
    tab.services, tab.chats, tab.turns = services, services.chats, Turns()
    return tab


REQUEST: Any = gr.Request(headers={}, session_hash="visitor")


def put_into_the_box(answers: list[list[Any]]) -> list[str]:
    return [answer[0] for answer in answers if isinstance(answer[0], str)]


def test_nothing_touches_the_box_while_a_reply_comes(tab: ChatTab) -> None:
    """What was sent has left it in the browser; what is there was typed since."""
    answers = list(tab.say("Hello you", *ASKED, REQUEST, None))
    assert len(answers) > 4
    assert put_into_the_box(answers) == []
    assert tab.services.chats.asked == ["a.gguf", "b.gguf"]  # type: ignore[attr-defined]


def test_a_message_that_was_not_said_comes_back(tab: ChatTab) -> None:
    answers = list(tab.say("Hello", "gone", *ASKED[1:], REQUEST, None))
    assert put_into_the_box(answers) == ["Hello"]
    assert "not among the finished quants" in answers[-1][-1]


def test_a_stop_ends_both_columns(tab: ChatTab) -> None:
    chats: Any = tab.chats
    chats.after_piece = lambda: tab.halt(REQUEST)
    list(tab.say("Hello", *ASKED, REQUEST, None))
    assert chats.asked == ["a.gguf"]


def test_a_stop_ends_a_fetch(tab: ChatTab) -> None:
    services: Any = tab.services
    services.fetches = 100
    stream = tab.say("Hello", *ASKED, REQUEST, None)
    hints = [next(stream)[-1], next(stream)[-1]]
    assert "Fetching a.gguf" in hints[-1]
    tab.halt(REQUEST)
    rest = list(stream)
    assert len(rest) == 1  # neither a reply nor an error
    assert rest[0][-1] == ""
    assert services.chats.asked == ["a.gguf"]


def test_a_new_turn_ends_the_one_before() -> None:
    turns = Turns()
    with turns.begin("x") as first:
        with turns.begin("x") as second:
            assert first()
            assert not second()
            turns.stop("y")
            assert not second()
        turns.stop("x")  # nobody is waiting
    assert turns._ends == {}


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
    (_, answer) = look(form, "b.pth")
    assert "b.pth does not exist" in answer[0]
    form.services.go.set()  # type: ignore[attr-defined]
    assert list(late) == []


def test_a_late_look_does_not_cover_a_newer_price(form: QuantizeTab) -> None:
    """Its cost is of what was chosen when it began; its panel still counts."""
    late = look(form, "slow")
    next(late)
    price = form.price(FORM | {"source": "slow", "types": [], "targets": "6 apples"}, REQUEST, None)
    assert "is no size to order" in price
    form.services.go.set()  # type: ignore[attr-defined]
    (answer,) = late
    assert "does not exist" in answer[0]
    assert answer[2] == gr.skip()

"""Talking with models that think, through the real llama-cli: what they are given, what is told apart, what stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf import GGUFWriter

from ggufy.core.errors import UsageError
from ggufy.llama.chat.options import Model
from ggufy.llama.install import Llama
from ggufy.models.chat_format import FORMATS, G1H
from ggufy.models.convert import convert
from ggufy.service.chat_settings import CHAT, THINKING, ChatSettings
from ggufy.service.conversations import Chats
from tests import scripted, tiny
from tests.conftest import Prompts

pytestmark = pytest.mark.tools
HMM, HELLO = scripted.THOUGHT, scripted.ANSWER


@pytest.fixture
def chats(llama: Llama) -> Iterator[Callable[..., Chats]]:
    """Makes Chats over one model, and closes them in the end."""
    made: list[Chats] = []

    def make(model: Path, *extra: str) -> Chats:
        made.append(Chats(lambda: llama, lambda who: {"m": model}, lambda: 1, extra=extra))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(chats: Chats, message: str, think: str, length: int = 30) -> list[dict[str, str]]:
    settings = ChatSettings(temperature=0.0, length=length, think=think)
    for _ in chats.say("v", "a", model="m", settings=settings, message=message):
        pass
    return chats.turns("v", "a")


def test_a_thought_is_told_apart_and_never_given_back(chats: Callable[..., Chats], tmp_path: Path) -> None:
    prompts = Prompts(tmp_path / "prompts")
    service = chats(scripted.converted_thinker(tmp_path), *prompts.options)
    assert service.format_of("m") is G1H
    assert ask(service, "One", "on")[-1] == {"role": "assistant", "content": HELLO, "thought": HMM}
    assert prompts.new() == "User✿One✿\nBot✿<think>"
    assert ask(service, "Two\n\nlines", "low")[-1]["thought"] == HMM
    before = f"User✿One✿\nBot✿{HELLO}✿\n"
    assert prompts.new() == f"{before}User✿Two\nlines (think a bit)✿\nBot✿<think>"
    assert ask(service, "Three", "off")[-1] == {"role": "assistant", "content": HELLO}
    before += f"User✿Two\nlines✿\nBot✿{HELLO}✿\n"
    assert prompts.new() == f"{before}User✿Three✿\nBot✿<think></think>"


@pytest.mark.parametrize("name", ["g1", "g1c"])
def test_the_plain_forms(chats: Callable[..., Chats], tmp_path: Path, name: str) -> None:
    prompts = Prompts(tmp_path / "prompts")
    service = chats(scripted.converted_thinker(tmp_path, name), *prompts.options)
    for think in THINKING:
        reply = ask(service, "One", think, length=4)[-1]
        assert (reply["content"][: len(HELLO)], reply.get("thought", "")) in {(HELLO, HMM), (HELLO, "")}
        assert bool(reply.get("thought")) is (think != "off")
        assert prompts.new() == FORMATS[name].prompt([{"role": "user", "content": "One"}], think)
        service.clear("v")


def test_a_stop_ends_a_thought(chats: Callable[..., Chats], tmp_path: Path) -> None:
    source, vocab = scripted.ponderer(tmp_path)
    model = tmp_path / "m.gguf"
    convert(source, model, vocab=vocab, chat_format="g1h")
    service = chats(model)
    settings = ChatSettings(temperature=0.0, length=4000, think="on")
    for _ in service.say("v", "a", model="m", settings=settings, message="Hi"):
        turn = service.turns("v", "a")[-1]
        if turn["role"] == "assistant":
            assert turn["content"] == ""
            service.stop("v")
    reply = service.turns("v", "a")[-1]
    assert reply["thought"].startswith("Hmm.") and reply["content"] == ""
    assert len(reply["thought"]) < 20_000
    prompts_before = service._conversation("v", "a", CHAT).before()
    assert prompts_before == []  # a question that was only thought about is not in the next prompt


def test_a_file_that_others_converted(
    chats: Callable[..., Chats], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a G1k by its name, whose converter wrote a word for a template, and the blank line as the end of a turn."""
    add, add_template = GGUFWriter.add_eot_token_id, GGUFWriter.add_chat_template
    monkeypatch.setattr(GGUFWriter, "add_chat_template", lambda self, _: add_template(self, "rwkv-world"))
    monkeypatch.setattr(GGUFWriter, "add_eot_token_id", lambda self, _: add(self, 261))
    model = tmp_path / f"{scripted.NAME}-F16.gguf"
    convert(scripted.worldly(tmp_path), model)
    assert tiny.fields(model)["tokenizer.chat_template"] == "rwkv-world"
    assert Model.read(model).said == (("tokenizer.ggml.eot_token_id", 10060),)
    prompts = Prompts(tmp_path / "prompts")
    service = chats(model, *prompts.options)
    assert ask(service, "What?", "off")[-1] == {"role": "assistant", "content": "Hi"}
    assert prompts.new() == "User✿What?✿\nBot✿<think></think>"


def test_how_to_think_is_checked() -> None:
    assert ChatSettings.checked(think="high").think == "high"
    for wrong in ("medium", "yes", 1, None, ["on"]):
        with pytest.raises(UsageError, match="thinking is one of off, low, on, high"):
            ChatSettings.checked(think=wrong)

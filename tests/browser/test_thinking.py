"""A G1k in the chat: its thoughts fold, the switch says whether it has any, and a stop ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import scripted
from tests.browser.pages import App, Tab, make_app
from tests.conftest import Ggufy

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def thinking(llama_bin: Path, ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A page with a quant of a model that thinks, and of one that comes to no end with it."""
    folder = tmp_path_factory.mktemp("thinking")
    app = make_app(folder, llama_bin)
    for make in (scripted.ponderer, scripted.thinker):
        source, vocab = make(folder)
        options = ("--vocab", vocab, "--types", "Q8_0", "--imatrix", "none", "--out", app.out)
        done = ggufy("quantize", source, *options)
        assert done.code == 0, done.err
    app.start()
    yield app
    assert app.stop() == 0


def test_thoughts_fold_and_are_switched(
    thinking: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    tab = open_tab(at=thinking)
    page = tab.page
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Quant", exact=True).click()
    page.get_by_role("option", name=f"{scripted.NAME}-Q8_0.gguf").click()
    log, switch = page.locator("#gg-chat-log-a"), page.locator("#gg-chat-think")
    switch.get_by_role("radio", name="On", exact=True).check()
    page.get_by_role("button", name="Options").click()
    expect(page.locator("#gg-chat-length input[type=number]")).to_have_value("2048")
    temperature, sampling = page.locator("#gg-chat-temperature input[type=number]"), page.locator("#gg-chat-sampling")
    expect(temperature).to_have_value("0.96")
    sampling.get_by_role("radio", name="Always the likeliest token").check()
    expect(temperature).to_have_value("0")
    temperature.fill("0.5")
    expect(sampling.get_by_role("radio", name="Own numbers")).to_be_checked()
    sampling.get_by_role("radio", name="As its makers advise").check()
    expect(temperature).to_have_value("0.96")
    page.get_by_placeholder("Say something").fill("Hello")
    page.keyboard.press("Enter")
    reply = log.locator(".gg-model")
    expect(reply.locator(".gg-said")).to_have_text(scripted.ANSWER, timeout=60_000)
    expect(log.locator(".gg-note")).to_contain_text("t/s", timeout=60_000)
    fold = reply.locator("details")
    expect(fold.locator("p")).to_be_hidden()
    fold.get_by_text("What it thought").click()
    expect(fold.locator("p")).to_have_text(scripted.THOUGHT)
    shoot(tab, "thought")
    switch.get_by_role("radio", name="Off", exact=True).check()
    expect(page.locator("#gg-chat-length input[type=number]")).to_have_value("256")
    page.get_by_placeholder("Say something").fill("Again")
    page.keyboard.press("Enter")
    expect(reply).to_have_count(2, timeout=60_000)
    expect(reply.last.locator(".gg-said")).to_have_text(scripted.ANSWER)
    expect(reply.last.locator("details")).to_have_count(0)
    expect(fold.locator("p")).to_be_visible()  # the first one's stays open


def test_an_endless_thought_is_stopped(thinking: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(at=thinking)
    page = tab.page
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Quant", exact=True).click()
    page.get_by_role("option", name="rwkv7-g1j-0.1b-20260831-ctx4096-Q8_0.gguf").click()
    page.locator("#gg-chat-think").get_by_role("radio", name="A bit", exact=True).check()
    page.get_by_placeholder("Say something").fill("Hello")
    page.keyboard.press("Enter")
    fold = page.locator("#gg-chat-log-a .gg-model details")
    fold.locator("summary").click(timeout=60_000)
    expect(fold.locator("p")).to_contain_text("Hmm. Well. Hmm. Well.", timeout=60_000)  # it stays open, and grows
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#gg-chat-log-a .gg-note")).to_contain_text("t/s", timeout=60_000)
    expect(page.locator("#gg-chat-log-a .gg-model .gg-said")).to_have_count(0)
    expect(fold.locator("p")).to_be_visible()

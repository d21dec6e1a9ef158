"""A tuned state beside a quant: it can be picked in the chat tab, and a reply begins from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import scripted, tiny
from tests.browser.pages import App, Tab, make_app, make_quant
from tests.conftest import Ggufy
from tests.test_state import states_of

pytestmark = pytest.mark.browser


@pytest.fixture
def talking(llama_bin: Path, ggufy: Ggufy, tmp_path: Path) -> Iterator[App]:
    """A page with one quant."""
    app = make_app(tmp_path, llama_bin)
    make_quant(ggufy, app, *scripted.checkpoint(tmp_path))
    app.start()
    yield app
    assert app.stop() == 0


def test_a_state_is_picked(talking: App, ggufy: Ggufy, open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    (quant,) = talking.out.glob("*-GGUF/*-Q8_0.gguf")
    tab = open_tab(at=talking)
    page, picker = tab.page, tab.page.locator("#gg-chat-state")
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator("#gg-chat-hint")).to_contain_text("llama.cpp")
    expect(picker).to_have_count(0)  # there is none yet
    state = tiny.save(tmp_path / "poet.pth", states_of("7", layers=1, heads=1))
    done = ggufy("state", state, quant)
    assert done.code == 0, done.err
    page.get_by_role("tab", name="Quantize").click()
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Begin from a tuned state").click()
    page.get_by_role("option", name="poet.state.bin").click()
    page.get_by_placeholder("Say something").fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator("#gg-chat-log-a .gg-model .gg-said")).to_have_text(scripted.REPLY, timeout=60_000)
    quant.with_name("poet.state.bin").write_bytes(b"something else")
    page.get_by_placeholder("Say something").fill("Again")
    page.keyboard.press("Enter")
    expect(page.locator("#gg-chat-hint")).to_contain_text("no state that llama.cpp can begin from", timeout=60_000)
    quant.with_name("poet.state.bin").unlink()
    page.get_by_role("tab", name="Quantize").click()
    page.get_by_role("tab", name="Chat").click()
    expect(picker).to_have_count(0)

"""The chat tab with files of rwkv.cpp, of an RWKV-4 and an RWKV-5.2, which no program of llama.cpp can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests import scripted
from tests.browser.pages import App, Tab, make_app
from tests.conftest import Ggufy

pytestmark = pytest.mark.browser
ENDLESS = [b":", b"a", b"b", b"a"]  # ababab, for ever


@pytest.fixture(scope="module")
def older(llama_bin: Path, ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A page with one of each that replies, and one that comes to no end."""
    folder = tmp_path_factory.mktemp("older")
    app = make_app(folder, llama_bin)
    for name, version, chain in (("four", "4", None), ("five", "5.2", None), ("endless", "4", ENDLESS)):
        source, vocab = scripted.checkpoint(folder, *([chain] if chain else []), name=name, version=version)
        options = ("--vocab", vocab, "--format", "rwkv.cpp", "--types", "Q8_0", "--no-evaluate", "--out", app.out)
        done = ggufy("quantize", source, *options)
        assert done.code == 0, done.err
    app.start()
    yield app
    assert app.stop() == 0


def choose(page: Page, name: str) -> None:
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Quant", exact=True).click()
    page.get_by_role("option", name=f"{name}-Q8_0.bin").click()


@pytest.mark.parametrize("name", ["four", "five"])
def test_it_replies_again_and_goes_on(
    older: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None], name: str
) -> None:
    tab = open_tab(at=older)
    page = tab.page
    choose(page, name)
    page.get_by_role("button", name="Options").click()
    page.locator("#gg-chat-temperature input[type=number]").fill("0")
    page.locator("#gg-chat-temperature input[type=number]").press("Enter")
    for slider in ("presence", "frequency"):
        page.locator(f"#gg-chat-{slider} input[type=number]").fill("0")
        page.locator(f"#gg-chat-{slider} input[type=number]").press("Enter")
    log = page.locator("#gg-chat-log-a")
    reply = log.locator(".gg-model")
    for count in (1, 2):
        page.get_by_placeholder("Say something").fill("Hello")
        page.keyboard.press("Enter")
        expect(reply).to_have_count(count, timeout=60_000)
        expect(reply.last.locator(".gg-said")).to_have_text(scripted.REPLY, timeout=60_000)
        expect(log.locator(".gg-note")).to_contain_text("t/s", timeout=60_000)
    page.get_by_role("button", name="Another reply").last.click()
    expect(log.locator(".gg-note")).to_contain_text("t/s", timeout=60_000)
    expect(reply).to_have_count(2)
    expect(reply.last.locator(".gg-said")).to_have_text(scripted.REPLY)
    shoot(tab, f"rwkvcpp-{name}")


def test_it_streams_until_it_is_stopped(older: App, open_tab: Callable[..., Tab]) -> None:
    page = open_tab(at=older).page
    choose(page, "endless")
    page.get_by_role("button", name="Options").click()
    for slider, value in (("temperature", "0"), ("presence", "0"), ("frequency", "0"), ("length", "2048")):
        page.locator(f"#gg-chat-{slider} input[type=number]").fill(value)
        page.locator(f"#gg-chat-{slider} input[type=number]").press("Enter")
    page.get_by_placeholder("Say something").fill("Hello")
    page.keyboard.press("Enter")
    said = page.locator("#gg-chat-log-a .gg-model .gg-said")
    expect(said).to_contain_text("ababab", timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#gg-chat-log-a .gg-note")).to_contain_text("t/s", timeout=60_000)
    assert len(said.inner_text()) < 2048

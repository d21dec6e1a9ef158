"""A conversation in the browser: Markdown, edits, other replies, two modes; it outlives page and server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import APIResponse, Locator, Page, Route, expect

from tests import scripted
from tests.browser.pages import App, Tab, make_app, make_quant
from tests.conftest import Ggufy

pytestmark = pytest.mark.browser
SAID = "# Title\n\n**bold** ![x](http://evil.example/x.png) <b>no</b>"


@pytest.fixture(scope="module")
def app(llama_bin: Path, ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A page with a quant that says this, whatever it is asked."""
    folder = tmp_path_factory.mktemp("talk")
    app = make_app(folder, llama_bin)
    chain = [b"<think>", b"</think>", b"\n", SAID.encode(), "✿".encode(), b" Bot"]
    make_quant(ggufy, app, *scripted.checkpoint(folder, chain, scripted.NAME))
    app.start()
    yield app
    assert app.stop() == 0


def chat(page: Page) -> Locator:
    """Opens the tab; gives its first conversation."""
    page.get_by_role("tab", name="Chat").click()
    expect(page.locator("#gg-chat-hint")).not_to_be_empty()
    return page.locator("#gg-chat-log-a")


def say(page: Page, text: str) -> None:
    box = page.get_by_placeholder("Say something")
    box.fill(text)
    for _ in range(5):  # on a busy machine gradio does not listen yet when the tab is there; the text stays
        box.press("Enter")
        with contextlib.suppress(AssertionError):
            expect(box).to_have_value("", timeout=10_000)
            return
    raise AssertionError("what was typed was never taken")


def test_a_message_before_the_list_of_models_is_there(open_tab: Callable[..., Tab]) -> None:
    """It is not lost, and the first model replies, which the page shows a moment later."""
    page = open_tab().page
    held: list[tuple[Route, APIResponse]] = []  # the server has answered, and the browser does not know yet
    page.route("**/run/predict*", lambda route: held.append((route, route.fetch())))
    page.get_by_role("tab", name="Chat").click()
    say(page, "Early")
    reply = page.locator("#gg-chat-log-a .gg-model .gg-said strong")
    expect(reply).to_have_text("bold", timeout=60_000)
    for route, answer in held:
        route.fulfill(response=answer)
    page.unroute("**/run/predict*")
    expect(page.get_by_label("Quant", exact=True)).to_have_value(re.compile("Q8_0"), timeout=60_000)


def test_a_conversation(open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]) -> None:
    tab = open_tab()
    page, log = tab.page, chat(tab.page)
    reply, own = log.locator(".gg-model"), log.locator(".gg-user .gg-said")
    for button in ("Stop", "Clear", "Export"):
        expect(page.get_by_role("button", name=button)).to_have_count(0)  # it could do nothing
    say(page, "One <i>")
    expect(reply.locator(".gg-said strong")).to_have_text("bold", timeout=60_000)
    expect(log.locator(".gg-note")).to_contain_text("t/s", timeout=60_000)
    expect(reply.get_by_role("link")).to_have_attribute("href", "http://evil.example/x.png")
    assert log.locator("img, b, i").count() == 0
    expect(log.locator(".gg-note")).to_contain_text(re.compile(r"context \d+ tokens"))
    shoot(tab, "markdown")
    with page.expect_download() as download:
        log.get_by_role("button", name="Export").click()
    assert SAID in Path(download.value.path()).read_text(encoding="utf-8")

    say(page, "Two")
    expect(reply).to_have_count(2, timeout=60_000)
    log.get_by_role("button", name="Edit").first.click()
    log.locator("textarea").fill("Uno")
    page.get_by_placeholder("Say something").fill("not sent yet")
    log.get_by_role("button", name="Send").click()
    expect(own).to_have_text(["Uno"], timeout=60_000)
    expect(reply).to_have_count(1, timeout=60_000)
    expect(page.get_by_placeholder("Say something")).to_have_value("not sent yet")
    log.get_by_role("button", name="Another reply").click()
    expect(log.locator(".gg-note")).to_contain_text("t/s", timeout=60_000)

    page.get_by_role("radio", name="Continue text").check()
    expect(own).to_have_count(0)
    say(page, "Once")
    expect(reply).to_have_count(1, timeout=60_000)
    page.get_by_role("radio", name="Chat", exact=True).check()
    expect(own).to_have_text(["Uno"])
    page.locator("#gg-chat-clear").click()
    expect(own).to_have_count(0)
    page.get_by_role("radio", name="Continue text").check()
    expect(own).to_have_text(["Once"])


def test_it_outlives_page_and_server(app: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    page, log = tab.page, chat(tab.page)
    page.get_by_role("button", name="Options").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Quant", exact=True).click()
    page.get_by_role("option", name=re.compile("F16")).click()
    say(page, "Hello")
    expect(log.locator(".gg-note")).to_contain_text("t/s", timeout=60_000)
    app.stop()
    app.start()
    page.goto(app.url)
    expect(page.locator(".gg-jobs")).to_be_visible(timeout=60_000)
    expect(page.locator("#gg-panel .gg-report")).to_be_visible(timeout=60_000)
    log = chat(page)
    expect(log.locator(".gg-user .gg-said")).to_have_text("Hello")
    expect(log.locator(".gg-model strong")).to_have_text("bold")
    expect(page.get_by_label("Quant", exact=True)).to_have_value(re.compile("F16"))
    page.get_by_role("button", name="Options").click()
    expect(page.get_by_label("System prompt")).to_have_value("Be brief.")
    tab.complaints.clear()  # of the time when nobody answered


def test_on_a_phone_the_entry_is_in_view(open_tab: Callable[..., Tab]) -> None:
    page = open_tab(390, 844, locale="zh-CN").page
    page.get_by_role("tab").nth(1).click()
    expect(page.locator("#gg-chat-hint")).not_to_be_empty()
    expect(page.locator("#gg-chat-send")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

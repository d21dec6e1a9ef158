"""One browser and one running page for all tests of a module; screenshots are left for people to look at."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Playwright, expect, sync_playwright

from tests.browser.pages import CHROMIUM, ROOT, App, Tab, make_app

LEAVING = re.compile("AbortError|Connection errored out")  # gradio's own words when a page is loaded again
NEEDED = "no Chromium on this machine, and the page cannot be tested without: Debian, Ubuntu: apt-get install chromium"


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NEEDED)
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def app(browser: Browser, llama_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = make_app(tmp_path_factory.mktemp("app"), llama_bin)
    app.start()
    yield app
    if app.process is not None:
        app.process.kill()
        app.process.wait()


@pytest.fixture
def open_tab(browser: Browser, app: App) -> Iterator[Callable[..., Tab]]:
    """Opens the page in a fresh browser context; in the end, nothing may have been complained about."""
    tabs = []

    def open_tab(width: int = 1280, height: int = 800, at: App = app, **options: str) -> Tab:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)  # type: ignore[arg-type]
        tab = Tab(context.new_page())
        tab.page.on("console", lambda m: tab.complaints.append(m.text) if m.type == "error" else None)
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        elsewhere = re.compile(rf"(?!{re.escape(at.url)})\w+://")
        tab.page.on("request", lambda r: tab.complaints.append(r.url) if elsewhere.match(r.url) else None)
        tab.page.goto(at.url)
        expect(tab.page.locator(".gg-jobs")).to_be_visible(timeout=60_000)
        expect(tab.page.locator("fieldset output")).not_to_be_empty()
        expect(tab.page.locator("#gg-panel .gg-report")).to_be_visible(timeout=60_000)  # the page has settled
        tabs.append(tab)
        return tab

    yield open_tab
    for tab in tabs:
        tab.page.context.close()
        complaints = [text for text in tab.complaints if not LEAVING.search(text)]
        assert not complaints, "\n".join(complaints)


@pytest.fixture
def shoot() -> Callable[[Tab, str], None]:
    """Leaves a picture of the page in `screenshots/`, for people to look at."""
    folder = ROOT / "screenshots"
    folder.mkdir(exist_ok=True)
    return lambda tab, name: None if tab.page.screenshot(path=folder / f"{name}.png", full_page=True) else None

"""Notifications of the browser: none before a click asks for them, and one for each job that ends unseen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from bench.records import finished_job
from ggufy.core.job import Status
from ggufy.records.store import JobStore
from ggufy.ui.i18n import TEXTS
from tests.browser.pages import App, Tab

pytestmark = pytest.mark.browser
WATCH = """
window.told = [];
window.asked = 0;
const ask = Notification.requestPermission.bind(Notification);
window.Notification = class extends Notification {
  static requestPermission() { window.asked += 1; return ask(); }
  constructor(title, { body }) { super(title, { body }); window.told.push(body); }
};
"""


def end(app: App, name: str, status: Status) -> None:
    """A job of that name ends so."""
    job = finished_job(0, 1)
    JobStore(app.out).save(job.evolve(request=replace(job.request, name=name), status=status, artifacts=()))


def watched(page: Page, app: App) -> Page:
    page.add_init_script(WATCH)
    page.goto(app.url)
    page.evaluate("document.hasFocus = () => false")
    return page


def test_a_job_that_ends_is_told_to_who_asked(app: App, open_tab: Callable[..., Tab]) -> None:
    texts, page = TEXTS["zh"], watched(open_tab(390, 800, locale="zh-CN").page, app)
    button = page.get_by_role("button", name=texts["notify"])
    expect(button).to_have_attribute("aria-pressed", "false")
    page.context.grant_permissions(["notifications"])
    end(app, "unasked", Status.FAILED)
    expect(page.get_by_role("article", name="unasked")).to_be_visible()
    assert page.evaluate("[window.told, window.asked]") == [[], 0]
    button.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "true")
    for name, status in (("good", Status.DONE), ("bad", Status.FAILED), ("still", Status.PAUSED)):
        end(app, name, status)
        expect(page.get_by_role("article", name=name)).to_be_visible()
        page.wait_for_function("(said) => window.told.at(-1) === said", arg=f"{name}: {texts[f'status_{status}']}")
    page.reload()
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    page.evaluate("document.hasFocus = () => false")
    end(app, "later", Status.DONE)
    expect(page.get_by_role("article", name="later")).to_be_visible()
    assert page.evaluate("window.told") == []


def test_a_browser_that_refuses_says_so(app: App, open_tab: Callable[..., Tab]) -> None:
    page = watched(open_tab().page, app)  # without a permission, a headless browser refuses
    page.get_by_role("button", name=TEXTS["en"]["notify"]).click()
    button = page.get_by_role("button", name=TEXTS["en"]["notify_denied"])
    expect(button).to_have_attribute("aria-pressed", "false")
    end(app, "silent", Status.DONE)
    expect(page.get_by_role("article", name="silent")).to_be_visible()
    assert page.evaluate("window.told") == []

"""How the column of jobs takes in what the server sends (ggufy/ui/jobs.js), in a page that has nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

SCRIPT = Path(__file__).parents[2] / "ggufy" / "ui" / "jobs.js"
# As gradio runs a component's js_on_load: with the element, its values, and a way to hear of new ones.
RUN = """
(code) => {
  document.body.innerHTML = '<div id="part"><div class="gg-jobs"></div></div>';
  const props = { value: { shown: "", count: 5 } };
  let changed;
  new Function("element", "props", "trigger", "watch", code)(
    document.getElementById("part"), props, () => {}, (name, call) => (changed = call));
  window.send = (patch) => { props.patch = patch; changed(); };
}
"""
SECTION = (
    '<details data-details="{0} j"><summary data-key="{0} j">{1}</summary><div data-body="{0} j"></div></details>'
)
FILES = SECTION.format("files", "Files")


def steps(total: str) -> str:
    return SECTION.format("steps", total)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context() as context:
        page = context.new_page()
        page.evaluate(RUN, SCRIPT.read_text(encoding="utf-8"))
        yield page


def send(page: Page, *content: str) -> None:
    html = f"<article>{''.join(content)}</article>"
    page.evaluate("(html) => send({ order: [['card j', html]], html: { 'card j': html } })", html)


def test_what_has_the_focus_keeps_it_whatever_appears_or_goes_around_it(page: Page) -> None:
    send(page, "<p>now</p>", steps("1 of 3"))
    page.locator("summary").focus()
    page.evaluate("window.first = document.activeElement")
    for content in (
        (steps("2 of 3"),),
        ("<p>error</p>", "<div>bar</div>", "<p>now</p>", steps("2 of 3")),
        ("<p>now</p>", FILES, steps("3 of 3")),
        ("<div>bar</div>", "text", steps("3 of 3"), FILES),
    ):
        send(page, *content)
        assert page.evaluate("document.activeElement === window.first"), content
        assert page.locator("article").inner_html().replace(' open=""', "") == "".join(content)

"""The scripts of ggufy/ui in a page that has nothing else: what happens while something is drawn anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
SCRIPTS = Path(__file__).parents[2] / "ggufy" / "ui"
# As gradio runs a component's js_on_load: with the element, its values, and a way to hear of new ones.
RUN = """
([code, inside, value]) => {
  document.body.innerHTML = `<div id="part">${inside}</div>`;
  const props = { value };
  let changed;
  window.ggufy ??= { kept: {}, chosen: () => {} };
  new Function("element", "props", "trigger", "watch", code)(
    document.getElementById("part"), props, () => {}, (name, call) => (changed = call));
  window.props = props;
  window.changed = () => changed();
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
        yield context.new_page()


def run(page: Page, script: str, inside: str, value: object) -> None:
    page.evaluate(RUN, [(SCRIPTS / script).read_text(encoding="utf-8"), inside, value])


def send(page: Page, *content: str) -> None:
    html = f"<article>{''.join(content)}</article>"
    page.evaluate("(html) => send({ order: [['card j', html]], html: { 'card j': html } })", html)


def test_what_has_the_focus_keeps_it_whatever_appears_or_goes_around_it(page: Page) -> None:
    run(page, "jobs.js", '<div class="gg-jobs"></div>', {"shown": "", "count": 5})
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


def test_the_end_of_a_job_is_spoken_and_stands_in_the_title_until_somebody_looks(page: Page) -> None:
    run(page, "jobs.js", '<div class="gg-jobs"></div><p class="gg-spoken"></p>', {"shown": "", "count": 5})

    def tell(ended: dict[str, str], percent: str) -> tuple[str, str]:
        html = f"<p hidden data-news='{json.dumps(ended)}' data-percent='{percent}'></p>"
        page.evaluate("(html) => send({ order: [['news', html]], html: { news: html } })", html)
        return page.title(), page.locator(".gg-spoken").inner_text()

    assert tell({"a": "A: done"}, "7") == ("7 % · ggufy", "")  # it was over before this tab came
    page.evaluate("document.hasFocus = () => false")
    assert tell({"a": "A: done", "b": "B: failed"}, "") == ("B: failed · ggufy", "B: failed")
    assert tell({"a": "A: done"}, "3") == ("B: failed · ggufy", "B: failed")  # it was tried again
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    assert page.title() == "3 % · ggufy"
    page.evaluate("document.hasFocus = () => true")
    assert tell({"a": "A: done", "b": "B: done"}, "") == ("ggufy", "B: done")


def test_a_box_that_is_drawn_anew_while_it_is_held_gets_its_click(page: Page) -> None:
    rows = "".join(f'<label><input type="checkbox" value="{name}">{name}</label>' for name in ("Q8_0", "Q4_K_M"))
    run(page, "types.js", rows, ["Q8_0"])
    box = page.locator("input[value=Q4_K_M]")
    for count, redrawn in ((2, False), (1, False), (2, True), (1, True)):
        box.hover()
        page.mouse.down()
        if redrawn:
            page.evaluate("(rows) => { document.getElementById('part').innerHTML = rows; changed(); }", rows)
        page.mouse.up()
        assert page.evaluate("props.value.length") == count, (count, redrawn)
        assert box.is_checked() == (count == 2)

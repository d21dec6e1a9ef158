"""The page's themes: what is chosen counts at once, after a reload, and from the first picture on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from ggufy.ui.i18n import TEXTS
from tests.browser.pages import Tab

pytestmark = pytest.mark.browser
# How bright what is painted behind everything is, in every frame since the page began to load.
WATCH = """
window.seen = [];
const note = () => {
  for (const part of document.querySelectorAll("body, gradio-app, .gradio-container")) {
    const [r, g, b, alpha = 1] = getComputedStyle(part).backgroundColor.match(/[\\d.]+/g).map(Number);
    if (alpha) window.seen.push(r + g + b > 380 ? "light" : "dark");
  }
  requestAnimationFrame(note);
};
requestAnimationFrame(note);
"""


@pytest.mark.parametrize(("language", "system", "other"), [("en", "light", "dark"), ("zh-CN", "dark", "light")])
def test_a_theme_is_chosen_by_keyboard_and_kept_without_a_flash(
    language: str, system: str, other: str, open_tab: Callable[..., Tab]
) -> None:
    texts, page = TEXTS[language[:2]], open_tab(390, 800, locale=language, color_scheme=system).page
    root, choice = page.locator("html"), page.get_by_role("combobox", name=texts["theme"])
    expect(root).to_have_css("color-scheme", "dark" if system == "dark" else "normal")
    expect(choice.locator("option")).to_have_text([texts[f"theme_{name}"] for name in ("system", "light", "dark")])
    choice.focus()
    for _ in range(1 + ("light", "dark").index(other)):
        page.keyboard.press("ArrowDown")
    expect(choice).to_have_value(other)
    dark = page.locator("body.dark")
    expect(dark).to_have_count(1 if other == "dark" else 0)
    page.add_init_script(WATCH)
    page.reload()
    expect(page.locator("#gg-panel .gg-report")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("combobox", name=texts["theme"])).to_have_value(other)
    assert {*page.evaluate("window.seen")} == {other}
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("combobox", name=texts["theme"]).select_option("")
    expect(dark).to_have_count(1 if system == "dark" else 0)
    page.emulate_media(color_scheme=other)  # type: ignore[arg-type]
    expect(dark).to_have_count(1 if other == "dark" else 0)

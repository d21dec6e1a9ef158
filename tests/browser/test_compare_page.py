"""Files of several models side by side on the page: chosen by search and on cards, by mouse and keyboard, compared in
a window, and taken along as CSV and PNG."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, expect

from ggufy.ui.i18n import TEXTS
from tests import measured
from tests.browser.pages import App, Tab, make_app

pytestmark = pytest.mark.browser
EN, ZH = TEXTS["en"], TEXTS["zh"]
FIRST, SECOND, BARE = "Large-Model", "Small-Model", "not-measured"


@pytest.fixture(scope="module")
def library(llama_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A page with three models, of which two were measured."""
    app = make_app(tmp_path_factory.mktemp("compare"), llama_bin)
    measured.measured_model(app.out, FIRST)
    measured.measured_model(app.out, SECOND, factor=1.7, threads=4)
    measured.write_model(app.out, measured.request(BARE), {})
    app.start()
    yield app
    assert app.stop() == 0


def tick(place: Locator, file: str, texts: dict[str, str] = EN) -> Locator:
    return place.get_by_role("checkbox", name=texts["compare_file"].format(file=file), exact=True)


def cells(row: Locator) -> list[str]:
    return [" ".join(text.split()) for text in row.locator("td").all_inner_texts()]


def test_files_are_chosen_and_compared_and_taken_along(
    library: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    tab = open_tab(at=library)
    page, window = tab.page, tab.page.locator("dialog")
    tab.card(SECOND).locator("summary", has_text=EN["files"]).click()
    tick(tab.card(SECOND), f"{SECOND}-Q4_K_M.gguf").check()
    tick(tab.card(BARE), f"{BARE}-Q8_0.gguf").check()
    bar = page.locator("[data-comparing]")
    expect(bar).to_contain_text("2 chosen")
    bar.get_by_role("button", name=EN["compare"]).click()
    expect(window.locator("tbody tr")).to_have_count(2)
    page.get_by_placeholder(EN["compare_search"]).fill("LARGE q")
    expect(window.locator(".gg-matches li")).to_have_count(3)
    window.get_by_role("button", name=EN["compare_all"].format(count=3)).click()
    expect(window.locator("tbody tr")).to_have_count(5)
    expect(window.locator("h3")).to_have_count(3)
    own = window.locator("h3", has_text=f"Against {FIRST}-F16.gguf, over 4,080 tokens of held-out.txt")
    expect(own).to_have_count(1)
    row = window.locator("tbody tr", has_text=f"{FIRST}-Q4_K_M.gguf")
    assert cells(row) == ["110 MB", "4.40", "0.0123", "12.049", "1.0041", "97.8 %", "210 ± 3", "57.3 ± 0.2", "371 MB"]
    expect(window).to_contain_text(EN["compare_apart"].format(reasons=EN["apart_base"]))
    expect(window).to_contain_text(EN["compare_threads"].format(counts="2, 4"))
    shown = window.locator(".gg-plot:visible")  # of two: one is for phones
    expect(shown.locator("circle, polygon")).to_have_count(4)
    table, plot = window.locator(".gg-files").first.bounding_box(), shown.bounding_box()
    assert table and plot and plot["x"] >= table["x"] + table["width"], "side by side"
    shoot(tab, "compare")

    with page.expect_download() as saved:
        window.get_by_role("link", name="CSV").click()
    told = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text(encoding="utf-8"))))
    links = window.locator("tbody a").evaluate_all("(links) => links.map((link) => link.download)")
    assert [line["file"] for line in told] == links
    figures = next(line for line in told if line["file"] == f"{FIRST}-Q4_K_M.gguf")
    assert (float(figures["kld"]), int(figures["size"]), figures["threads"]) == (0.0123, 110_000_000, "2")
    with page.expect_download() as saved:
        window.get_by_role("link", name="PNG").click()
    with Image.open(saved.value.path()) as image:
        assert image.format == "PNG" and image.width > 1000

    tick(row, f"{FIRST}-Q4_K_M.gguf").click()  # and the row goes, with the box that `uncheck` would look at again
    expect(window.locator("tbody tr")).to_have_count(4)
    page.keyboard.press("Escape")
    expect(window).to_have_count(0)
    expect(bar.get_by_role("button", name=EN["compare"])).to_be_focused()
    expect(bar).to_contain_text("4 chosen")
    bar.get_by_role("button", name=EN["compare_clear"]).click()
    expect(tick(tab.card(SECOND), f"{SECOND}-Q4_K_M.gguf")).not_to_be_checked()


def test_by_keyboard_alone(library: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(at=library)
    page, window = tab.page, tab.page.locator("dialog")
    page.get_by_role("button", name=EN["compare"]).focus()
    page.keyboard.press("Enter")
    search = page.get_by_placeholder(EN["compare_search"])
    expect(search).to_be_visible()
    expect(window).to_contain_text(EN["compare_none"])
    while not search.evaluate("(box) => box === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.type("small q2")
    found = tick(window.locator(".gg-matches"), f"{SECOND}-Q2_K.gguf")
    expect(window.locator(".gg-matches li")).to_have_count(1)
    page.keyboard.press("Tab")
    expect(found).to_be_focused()
    page.keyboard.press("Space")
    expect(window.locator("tbody tr")).to_have_count(1)
    expect(found).to_be_focused()  # also when the window was drawn again
    expect(search).to_have_value("small q2")
    page.keyboard.press("Escape")
    expect(window).to_have_count(0)


def test_it_fits_a_phone_in_chinese_and_dark(
    library: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    tab = open_tab(390, 800, at=library, locale="zh-CN", color_scheme="dark")
    page, window = tab.page, tab.page.locator("dialog")
    page.get_by_role("button", name=ZH["compare"]).click()
    page.get_by_placeholder(ZH["compare_search"]).fill("q")
    window.get_by_role("button", name=ZH["compare_all"].format(count=9)).click()
    expect(window.locator("tbody tr")).to_have_count(9)
    expect(window.locator("h3").first).to_contain_text("4,080 个词元")
    expect(window).to_contain_text(ZH["compare_apart"].format(reasons=ZH["apart_base"]))
    assert window.evaluate("(box) => box.scrollWidth <= box.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    window.get_by_role("link", name="PNG").scroll_into_view_if_needed()
    shown = window.locator(".gg-plot:visible")
    height = shown.locator("text").first.evaluate("(text) => text.getBoundingClientRect().height")
    assert height > 10, "as large as on a desktop"
    for part in (shown, window.get_by_role("link", name="CSV"), window.locator("h3").last):
        box = part.bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    shoot(tab, "compare-phone")
    page.get_by_placeholder(ZH["compare_search"]).fill("")
    expect(window.locator(".gg-matches li")).to_have_count(0)
    shoot(tab, "compare-phone-top")
    window.get_by_role("button", name=ZH["close"]).click()
    expect(window).to_have_count(0)

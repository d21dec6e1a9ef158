"""axe-core finds nothing serious on any view of the page, whatever its theme and width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, expect

from bench.records import write_records
from ggufy.llama.install import installed_folder
from ggufy.system.locks import lock
from ggufy.ui.i18n import TEXTS
from tests import measured, scripted
from tests.browser.pages import App, Tab, make_app, make_quant, open_more, unfold, write_results
from tests.conftest import Ggufy

pytestmark = pytest.mark.browser
EN = TEXTS["en"]
STILL = "* { transition: none !important; animation: none !important; }"  # a colour on its way is no fault


@pytest.fixture(scope="module")
def library(llama_bin: Path, ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A page with finished models, one of which can be talked with."""
    folder = tmp_path_factory.mktemp("axe")
    app = make_app(folder, llama_bin)
    write_records(app.out, 7)
    measured.measured_model(app.out, "Large")
    measured.measured_model(app.out, "Small", factor=1.7, threads=4)
    make_quant(ggufy, app, *scripted.thinker(folder))
    app.start()
    yield app
    assert app.stop() == 0


def found(tab: Tab, within: str = "body") -> list[str]:
    """What axe says of the page as it is now, or of a part of it, in both themes, on a screen and on a phone."""
    faults = set()
    tab.page.add_style_tag(content=STILL)
    for theme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        expect(tab.page.locator("body.dark")).to_have_count(int(theme == "dark"))
        for width, height in ((1280, 800), (390, 844)):
            tab.page.set_viewport_size({"width": width, "height": height})
            told = Axe().run(tab.page, context=within).response
            assert told["passes"], "it has looked at nothing"
            for fault in told["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    faults |= {
                        f"{theme} {width} {fault['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
                        for node in fault["nodes"]
                    }
    return sorted(faults)


def test_make_and_library(library: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(at=library)
    unfold(tab)
    open_more(tab)
    expect(tab.page.locator("#gg-cost")).to_contain_text("free", timeout=60_000)
    card, measured = tab.card(scripted.NAME), tab.card("RWKV-x070-Model-006")
    for one in (card, measured):
        while (closed := one.locator("details:not([open]) > summary")).count():
            closed.first.click()
    card.get_by_role("button", name="What to do with").last.click()
    expect(card.locator(".gg-file-more")).to_be_visible()
    expect(measured.get_by_role("slider")).to_be_visible()
    assert found(tab) == []


def test_a_conversation(library: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(at=library)
    tab.page.get_by_role("tab", name="Chat").click()
    model = tab.page.get_by_label("Quant", exact=True)
    expect(tab.page.locator("#gg-chat-hint")).not_to_be_empty()
    expect(model).not_to_have_value("")
    model.click()
    tab.page.get_by_role("option", name=f"{scripted.NAME}-Q8_0.gguf").click()
    tab.page.get_by_role("radio", name="On", exact=True).check()
    tab.page.get_by_placeholder("Say something").fill("Hello")
    tab.page.get_by_role("button", name="Send").click()
    log = tab.page.locator("#gg-chat-log-a")
    expect(log.locator(".gg-note")).to_contain_text("t/s", timeout=60_000)
    log.get_by_text("What it thought").click()
    tab.page.get_by_role("button", name="Options").click()
    expect(tab.page.get_by_label("System prompt")).to_be_visible()
    log.get_by_role("button", name="Edit").click()
    assert found(tab) == []


def test_comparing(library: App, open_tab: Callable[..., Tab]) -> None:
    """The bar above the cards, and the window: empty, while something is searched for, with tables alone, and with a
    plot of two and three files that were measured."""
    tab = open_tab(at=library)
    window, bar = tab.page.locator("dialog"), tab.page.locator("[data-comparing]")
    tab.card("Small").locator("summary", has_text=EN["files"]).click()
    tick(tab.card("Small"), "Small-Q2_K.gguf").check()
    expect(bar).to_contain_text("1 chosen")
    assert found(tab) == []
    bar.get_by_role("button", name=EN["compare_clear"]).click()
    bar.get_by_role("button", name=EN["compare"]).click()
    expect(window).to_contain_text(EN["compare_none"])
    assert found(tab, "dialog") == []
    search = tab.page.get_by_placeholder(EN["compare_search"])
    search.fill("nothing is called so")
    expect(window).to_contain_text(EN["compare_nothing"])
    assert found(tab, "dialog") == []
    files = ("Large-F16.gguf", "Large-Q4_K_M.gguf", "Small-Q4_K_M.gguf", "Small-Q2_K.gguf")
    for count, file in enumerate(files, start=1):
        search.fill(file)
        expect(window.locator(".gg-matches li")).to_have_count(1)
        tick(window.locator(".gg-matches"), file).check()
        expect(window.locator("tbody tr")).to_have_count(count)
        assert found(tab, "dialog") == [], f"with {count} files"
    expect(window.locator(".gg-plot:visible")).to_have_count(1)
    expect(window.locator("h3")).to_have_count(2)
    assert found(tab) == []


def tick(place: Locator, file: str) -> Locator:
    return place.get_by_role("checkbox", name=EN["compare_file"].format(file=file), exact=True)


def test_setting_up(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    """The page while llama.cpp is being made, here by somebody else who takes his time."""
    app = make_app(tmp_path, tmp_path, GGUFY_LLAMA_DIR="")
    folder = installed_folder(tmp_path / "cache")
    with lock(folder.with_name(folder.name + ".lock")):
        app.start()
        tab = open_tab(at=app)
        expect(tab.page.get_by_role("progressbar", name="Preparing llama.cpp")).to_be_visible()
        assert found(tab) == []
        tab.page.goto("about:blank")
        app.stop()


def test_a_visitor_of_a_space(open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    app = make_app(tmp_path, tmp_path, SPACE_ID="somebody/ggufy", SYSTEM="spaces")
    write_results(app.out, 2)
    app.start()
    tab = open_tab(at=app)
    expect(tab.page.get_by_text("which has no llama-quantize")).to_be_visible()
    expect(tab.page.get_by_role("article")).to_have_count(2)
    expect(tab.page.get_by_role("button", name="Duplicate this Space")).to_be_visible()
    assert found(tab) == []
    tab.page.goto("about:blank")
    assert app.stop() == 0

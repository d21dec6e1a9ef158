"""The form of the page: what is looked at, which types are chosen and how, what Start waits for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Request as Sent
from playwright.sync_api import Route, expect

from ggufy.core.catalog import QUANT_TYPES
from ggufy.records.store import JobStore
from ggufy.ui.i18n import TEXTS
from tests.browser.pages import WORK_MS, App, Tab, open_more, unfold

pytestmark = pytest.mark.browser
EN = TEXTS["en"]


def test_an_edit_is_one_look(app: App, open_tab: Callable[..., Tab]) -> None:
    """Letters in a row are looked at once, Enter looks, a tick keeps the sizes; nothing is started."""
    tab = open_tab()
    size = tab.page.locator(".gg-type-size").first
    expect(size).to_contain_text("MB", timeout=WORK_MS)
    config = json.loads(app.get("config")[1])
    ids = {component["id"]: component["props"].get("elem_id") for component in config["components"]}
    events = {
        event["id"]: {(ids.get(block), name) for block, name in event["targets"]} for event in config["dependencies"]
    }
    asked: list[set[tuple[str | None, str]]] = []

    def note(request: Sent) -> None:
        if request.method == "POST" and (request.post_data_json or {}).get("fn_index") is not None:
            asked.append(events[request.post_data_json["fn_index"]])

    tab.page.on("request", note)
    jobs = len(JobStore(app.out).jobs())
    source = tab.page.get_by_label("Source")
    source.fill("")
    expect(tab.page.locator("#gg-panel")).to_contain_text("Pick a model")
    asked.clear()
    source.press_sequentially("/nowhere/letters.pth", delay=20)
    expect(tab.page.locator("#gg-panel").get_by_role("alert")).to_contain_text("/nowhere/letters.pth")
    looks = [targets for targets in asked if ("gg-panel", "look") in targets]
    assert 1 <= len(looks) <= 3, asked  # a neighbour may hold up the letters for as long as a pause
    source.fill("demo")
    source.press("Enter")
    expect(size).to_contain_text("MB", timeout=WORK_MS)
    asked.clear()
    unfold(tab)
    tab.page.get_by_role("checkbox", name="Q2_K", exact=True).check()
    expect(tab.page.locator("fieldset output")).to_contain_text("8 of 29")
    expect(size).to_contain_text("MB")
    assert not [targets for targets in asked if ("gg-panel", "look") in targets]
    assert len(JobStore(app.out).jobs()) == jobs


def test_start_waits_for_what_is_looked_at(app: App, open_tab: Callable[..., Tab]) -> None:
    """What stands there of the source before is stale at once, and nothing is started of either."""
    tab = open_tab()
    jobs = len(JobStore(app.out).jobs())
    start, form = tab.page.get_by_role("button", name="Start"), tab.page.locator("#gg-form")
    source, panel = tab.page.get_by_label("Source"), tab.page.locator("#gg-panel")
    expect(start).to_be_enabled()
    held: list[Route] = []
    tab.page.route("**/queue/join*", lambda route: held.append(route))
    with tab.page.expect_request("**/queue/join*"):
        source.fill("/nowhere/held.pth")
        expect(start).to_be_disabled()
        expect(form).to_have_class(re.compile("gg-stale"))
        expect(panel).to_contain_text("RWKV-7 checkpoint")
    start.click(force=True)
    start.press("Enter")
    for route in held:
        route.continue_()
    tab.page.unroute("**/queue/join*")
    expect(panel.get_by_role("alert")).to_contain_text("/nowhere/held.pth", timeout=60_000)
    expect(start).to_be_enabled()
    expect(form).not_to_have_class(re.compile("gg-stale"))
    expect(tab.page.locator("#gg-message")).to_have_text("")
    start.click()
    expect(tab.page.locator("#gg-message").get_by_role("alert")).to_contain_text("/nowhere/held.pth")
    assert len(JobStore(app.out).jobs()) == jobs


def test_what_stays_under_way_is_asked_for_again(open_tab: Callable[..., Tab]) -> None:
    """As when an older answer came after the last one."""
    tab = open_tab()
    start, panel = tab.page.get_by_role("button", name="Start"), tab.page.locator("#gg-panel")
    expect(start).to_be_enabled()
    panel.locator("[data-about]").evaluate("(part) => { part.innerHTML = '<p class=gg-busy></p>'; }")
    expect(start).to_be_disabled()
    expect(panel).to_contain_text("RWKV-7 checkpoint", timeout=90_000)
    expect(start).to_be_enabled()


def test_types_that_need_an_imatrix_go_with_it(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    chosen = tab.page.locator("fieldset output")
    expect(chosen).to_have_text("7 of 29 chosen")
    unfold(tab)
    open_more(tab)
    tab.page.get_by_role("radio", name="none").check()
    expect(tab.page.get_by_role("checkbox", name="IQ2_XS", exact=True)).to_be_disabled()
    tab.page.get_by_role("button", name="All 29").click()
    needing = sum(row.needs_imatrix for row in QUANT_TYPES)
    expect(chosen).to_have_text(f"{29 - needing} of 29 chosen")
    tab.page.get_by_role("radio", name="bundled text").check()
    expect(chosen).to_have_text("29 of 29 chosen")
    tab.page.get_by_role("checkbox", name="Q8_0", exact=True).press("Space")
    expect(chosen).to_have_text("28 of 29 chosen")
    tab.page.get_by_role("button", name="Tutorial").click()
    expect(chosen).to_have_text("2 of 29 chosen")
    expect(tab.page.get_by_label("Calibration text or imatrix file")).to_be_hidden()
    tab.page.get_by_role("radio", name="own text").check()
    expect(tab.page.get_by_label("Calibration text or imatrix file")).to_be_visible()


def test_how_much_is_read_shows_in_the_cost(open_tab: Callable[..., Tab]) -> None:
    """And is asked for only where something is read."""
    tab = open_tab()
    cost = tab.page.locator("#gg-cost")
    expect(cost).to_contain_text("free", timeout=WORK_MS)
    open_more(tab)
    read, measured = (tab.page.get_by_label(name, exact=True) for name in (EN["chunks"], EN["evaluation_chunks"]))
    expect(read).to_have_value("40")
    expect(measured).to_have_value("16")
    for box, many in ((read, "4000"), (measured, "9000")):
        before = cost.inner_text()
        box.fill(many)
        expect(cost).not_to_have_text(before)
    measured.fill("-1")
    tab.page.get_by_role("button", name="Start").click()
    expect(tab.page.locator("#gg-message").get_by_role("alert")).to_contain_text("must be a whole number")
    tab.page.get_by_role("checkbox", name=EN["evaluate"]).uncheck()
    expect(measured).to_be_hidden()
    tab.page.get_by_role("radio", name="none").check()
    expect(read).to_be_hidden()
    tab.page.get_by_role("radio", name="bundled text").check()
    expect(read).to_be_visible()
    expect(tab.page.get_by_label(EN["lora_init"])).to_have_value("")


def test_what_is_chosen_is_seen_with_the_others_folded(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    chips, row = tab.page.locator("#gg-chosen button"), tab.page.get_by_role("checkbox", name="Q2_K", exact=True)
    presets = tab.page.locator("#gg-types button[aria-pressed=true]")
    recommended = [row.name for row in QUANT_TYPES if row.recommended]
    expect(chips).to_have_text(recommended)
    expect(presets).to_have_text(["Recommended"])
    expect(row).to_be_hidden()
    tab.page.get_by_role("button", name="Leave out Q3_K_M").click()
    expect(chips).to_have_text([name for name in recommended if name != "Q3_K_M"])
    expect(presets).to_have_count(0)
    unfold(tab)
    row.check()
    expect(chips.last).to_have_text("Q2_K")
    tab.page.get_by_role("button", name="All 29").click()
    expect(tab.page.locator("#gg-chosen")).to_contain_text("+ 17")
    expect(row).to_be_visible()


def test_the_types_are_one_stop_of_the_tab_key(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    expect(tab.page.locator(".gg-type-size").first).to_contain_text("MB", timeout=WORK_MS)  # not drawn anew any more
    boxes = tab.page.locator("#gg-types input[type=checkbox]")
    stops = tab.page.locator("#gg-types input[tabindex='0']")
    expect(stops).to_have_count(1)
    tab.page.get_by_role("button", name="Clear", exact=True).first.focus()
    tab.page.keyboard.press("Tab")
    expect(boxes.first).to_be_focused()
    for key, name in (("ArrowDown", "Q6_K"), ("ArrowUp", "Q8_0"), ("ArrowUp", "Q8_0"), ("End", "IQ3_XXS")):
        tab.page.keyboard.press(key)
        expect(tab.page.get_by_role("checkbox", name=name, exact=True)).to_be_focused()
    expect(stops).to_have_attribute("value", "IQ3_XXS")
    tab.page.keyboard.press("Tab")
    expect(tab.page.locator("#gg-types summary")).to_be_focused()
    tab.page.keyboard.press("Shift+Tab")
    expect(tab.page.get_by_role("checkbox", name="IQ3_XXS", exact=True)).to_be_focused()


def test_the_largest_type_for_some_memory(open_tab: Callable[..., Tab]) -> None:
    """A file of some MB takes a quarter of a GB to run."""
    tab = open_tab()
    expect(tab.page.locator(".gg-type-size").first).to_contain_text("MB", timeout=WORK_MS)
    chips, memory = tab.page.locator("#gg-chosen button"), tab.page.get_by_label("Memory, in GB")
    for typed, chosen in (("0.256", ["Q4_K_M"]), ("0,1", []), ("8", ["Q8_0"])):
        memory.fill(typed)
        expect(chips).to_have_text(chosen)
        if not chosen:
            expect(tab.page.locator("fieldset output")).to_have_text("No type fits into that")
    tab.page.get_by_role("checkbox", name="Q6_K", exact=True).check()
    expect(chips).to_have_text(["Q8_0", "Q6_K"])


def test_sizes_are_those_of_the_files(app: App, open_tab: Callable[..., Tab]) -> None:
    """What the table says before Start is what the demo's files have; as llama-quantize makes them, some are equal."""
    tab = open_tab()
    shown = tab.page.locator(".gg-type", has=tab.page.get_by_role("checkbox", name="Q4_K_M", exact=True))
    expect(shown).to_contain_text(re.compile(r"5\.4\sMB\s*5\.83 bpw"), timeout=60_000)
    unfold(tab)
    open_more(tab)
    tab.page.get_by_role("radio", name="stock").check()
    expect(shown).to_contain_text(re.compile(r"5\.4\sMB\s*5\.84 bpw"), timeout=60_000)
    same = tab.page.locator(".gg-type", has=tab.page.get_by_role("checkbox", name="Q4_K_S", exact=True))
    expect(same).to_contain_text("Same tensors as Q4_K_M")


def test_the_form_outlives_a_restart_of_the_server(app: App, open_tab: Callable[..., Tab]) -> None:
    """And any reload of its tab; another tab begins anew."""
    tab = open_tab()
    page, source = tab.page, tab.page.get_by_label("Source")
    source.fill("/nowhere/kept.pth")
    page.get_by_label("Sizes to order").fill("5.5MB")
    page.get_by_role("button", name="Clear", exact=True).first.click()
    page.get_by_role("checkbox", name="Q6_K", exact=True).check()
    open_more(tab)
    page.locator("#gg-name input").fill("大 模型")
    page.get_by_role("checkbox", name="Measure the quants").check()
    page.get_by_role("radio", name="f32").check()
    expect(page.locator("#gg-panel").get_by_role("alert")).to_contain_text("/nowhere/kept.pth")

    def as_it_was() -> None:
        expect(source).to_have_value("/nowhere/kept.pth", timeout=60_000)
        expect(page.locator("#gg-panel").get_by_role("alert")).to_contain_text("/nowhere/kept.pth", timeout=60_000)
        expect(page.get_by_label("Sizes to order")).to_have_value("5.5MB")
        expect(page.locator("[data-chosen]")).to_have_text("Q6_K")
        open_more(tab)
        expect(page.locator("#gg-name input")).to_have_value("大 模型")
        expect(page.get_by_role("checkbox", name="Measure the quants")).to_be_checked()
        expect(page.get_by_role("radio", name="f32")).to_be_checked()

    with page.expect_event("load", timeout=120_000):  # gradio loads the page again when the server is back
        app.stop()
        app.start()
    tab.complaints.clear()  # that nobody answered
    as_it_was()
    page.reload()
    as_it_was()
    assert open_tab().page.get_by_label("Source").input_value() == "demo"

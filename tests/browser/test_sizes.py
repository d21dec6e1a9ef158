"""Another size, from a finished job's card: found, chosen with a slider that stays where it is, and made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from ggufy.core.job import Status
from ggufy.records.store import JobStore
from ggufy.system.settings import Settings
from ggufy.ui.i18n import TEXTS
from tests import tiny
from tests.browser.pages import WORK_MS, App, Tab, open_more
from tests.test_sizes_to_order import POINTS

pytestmark = pytest.mark.browser
NAME = "tiny-v7"


def jobs(card: Locator) -> Locator:
    """The lines of its jobs: the newest, and those before in a section that is closed."""
    return card.locator("> [data-job]")


def test_from_a_finished_job_to_a_file_of_another_size(
    app: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None], tmp_path: Path
) -> None:
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=256, layers=1, ffn=256)
    texts = Path(app.environment["GGUFY_CACHE"]) / "texts"
    if not texts.exists():
        texts.parent.mkdir(exist_ok=True)
        texts.symlink_to(Settings.from_env().cache / "texts")
    tab = open_tab()
    tab.page.get_by_label("Source").fill(str(checkpoint))
    tab.page.get_by_role("button", name="Clear", exact=True).first.click()
    open_more(tab)
    tab.page.locator("#gg-vocab input").fill(str(vocab))
    tab.page.get_by_role("radio", name="none", exact=True).check()
    tab.page.get_by_role("checkbox", name="Measure the quants").uncheck()
    tab.page.get_by_label("Sizes to order").fill("6.0 apples")
    expect(tab.page.locator("#gg-cost")).to_contain_text("is no size to order", timeout=60_000)
    tab.page.get_by_label("Sizes to order").fill("6bpw")
    tab.page.get_by_role("radio", name="fast", exact=True).check()
    expect(tab.page.locator("#gg-cost")).to_contain_text("in all", timeout=60_000)
    tab.page.get_by_role("button", name="Start").click()
    found = tab.card(NAME)
    expect(found).to_have_class(re.compile("gg-done"), timeout=WORK_MS)
    expect(found.locator("tbody tr").last).to_contain_text("6bpw")
    expect(tab.page.get_by_role("slider")).to_have_count(0)

    found.locator("summary", has_text="Another size").click()
    found.get_by_role("button", name="Find sizes between").click()
    expect(tab.page.get_by_role("button", name="Find sizes between")).to_have_count(0)  # they are being found
    expect(found.locator("summary", has_text="Earlier jobs")).to_contain_text("1")
    expect(found).to_have_class(re.compile("gg-done"), timeout=WORK_MS)
    expect(found).to_have_count(1)  # one model, one card
    expect(jobs(found)).to_contain_text("which sizes there are")
    slider = found.get_by_role("slider", name="Size of the file")
    expect(slider).to_be_visible()
    size, kld = found.locator("output[data-figure=text]"), found.locator("output[data-figure=kld]")
    expect(size).to_contain_text(re.compile(r"\d [kM]B"))

    # The keyboard moves it, and it stays there while the page draws the card anew.
    start = size.inner_text()
    slider.focus()
    tab.page.keyboard.press("Home")
    expect(size).not_to_have_text(start)
    smallest, worst = size.inner_text(), float(kld.inner_text())
    for _ in range(3):
        tab.page.keyboard.press("ArrowRight")
    place, chosen = slider.input_value(), size.inner_text()
    assert (place, chosen == smallest, float(kld.inner_text()) < worst) == ("3", False, True)
    tab.page.get_by_role("button", name=re.compile("Use less of")).click()  # draws it
    expect(tab.page.locator(".gg-stepper-value").last).to_have_text("75 %")
    slider.focus()
    expect(size).to_have_text(chosen)
    assert slider.input_value() == place
    assert chosen in str(slider.get_attribute("aria-valuetext"))

    # So does the mouse, also while the card is drawn anew below it.
    box = slider.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    tab.page.mouse.move(box["x"] + box["width"] / 2, middle)
    tab.page.mouse.down()
    tab.page.evaluate(
        "(() => { const old = document.querySelector('.gg-sizes input'); old.replaceWith(old.cloneNode()); })()"
    )
    tab.page.mouse.move(box["x"] + box["width"] - 2, middle, steps=4)
    tab.page.mouse.up()
    expect(slider).to_have_value(str(slider.get_attribute("max")))
    shoot(tab, "sizes")

    slider.focus()
    tab.page.keyboard.press("Home")
    tab.page.keyboard.press("ArrowRight")
    wanted = size.inner_text().replace(" ", "")
    found.get_by_role("button", name="Make this size").click()
    expect(jobs(found)).to_contain_text(wanted)
    expect(found.locator("summary", has_text="Earlier jobs")).to_contain_text("2")
    expect(slider).to_be_visible()  # it stays where it is while the file is made
    expect(found).to_have_class(re.compile("gg-done"), timeout=WORK_MS)
    expect(found.locator("tbody tr", has_text=wanted)).to_contain_text("≈ 0.")
    expect(found.locator("tbody tr", has_text="6bpw")).to_have_count(1)  # all files in one table
    assert slider.input_value() == "1"
    (file,) = (app.out / f"{NAME}-GGUF").glob(f"{NAME}-{wanted}-*_FIT.gguf")
    (job,) = [job for job in JobStore(app.out).jobs() if any(wanted in t for t in job.request.targets)]
    limit = [point.size for point in job.frontier][1]
    assert 0.995 * limit <= file.stat().st_size <= limit * 1.001


def test_it_fits_a_phone_and_speaks_chinese(
    app: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    """The card as the newest finished job left it, with made-up points."""
    store = JobStore(app.out)
    job = [job for job in store.jobs() if job.status is Status.DONE][-1]
    store.save(job.evolve(frontier=POINTS))
    tab = open_tab(390, 800, locale="zh-CN", color_scheme="dark")
    details = tab.page.locator(f"[data-details={json.dumps('sizes ' + job.request.folder)}]")
    if details.get_attribute("open") is None:
        details.locator("summary").click()
    slider = details.get_by_role("slider", name=TEXTS["zh"]["sizes_slider"])
    slider.scroll_into_view_if_needed()
    slider.focus()
    tab.page.keyboard.press("End")
    expect(details.locator("output[data-figure=text]")).to_have_text("7.937 MB")
    button = details.get_by_role("button", name=TEXTS["zh"]["make_size"])
    box = button.bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    shoot(tab, "sizes-phone")

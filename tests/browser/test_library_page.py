"""The models that are there: a file's line with chat, commands and deletion, and a model that goes as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, expect

from bench.records import write_records
from ggufy.core.job import Status
from ggufy.records.store import JobStore
from ggufy.ui.i18n import TEXTS
from tests.browser.pages import App, Tab, make_app

pytestmark = pytest.mark.browser
NAME = "RWKV-x070-Model-002"  # the newest


@pytest.fixture(scope="module")
def library(llama_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A page with three finished models, and with a second job of the newest."""
    app = make_app(tmp_path_factory.mktemp("library"), llama_bin)
    newest = write_records(app.out, 3)[-1]
    request = replace(newest.request, quant_types=("Q8_0",), mode="")
    JobStore(app.out).put(newest.evolve(request=request, status=Status.CANCELLED, frontier=()))
    app.start()
    yield app
    assert app.stop() == 0


def test_a_file_is_chatted_with_copied_and_deleted(
    library: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    tab = open_tab(at=library)
    page, card, file = tab.page, tab.card(NAME), f"{NAME}-Q8_0.gguf"
    row, path = card.locator("tbody tr", has_text=file).first, library.out / f"{NAME}-GGUF" / file
    expect(card.locator("tbody tr")).to_have_count(31)  # both jobs have a Q8_0
    row.get_by_role("button", name=f"What to do with {file}").click()
    more = card.locator(".gg-file-more")
    expect(more.locator("code")).to_have_text(
        [
            re.compile(rf"llama-cli -m {re.escape(str(path))}"),
            re.compile(rf"llama-server -m {re.escape(str(path))}"),
            re.compile(r"python -m ggufy ollama .+ && ollama run rwkv-x070-model-002-q8_0"),
        ]
    )
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    more.get_by_role("button", name="Copy the line for llama-cli").click()
    expect(more.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == more.locator("code").first.inner_text()
    shoot(tab, "library")
    more.get_by_role("button", name="Chat").click()
    expect(page.get_by_role("tab", name="Chat", selected=True)).to_be_visible()
    expect(page.get_by_label("Quant", exact=True)).to_have_value(file)
    expect(page.locator("#gg-chat-hint")).not_to_be_empty()
    expect(page.get_by_label("Quant", exact=True)).to_have_value(file)

    page.get_by_role("tab", name="Quantize").click()
    asked: list[str] = []

    def answer(dialog: Dialog, *, yes: bool) -> None:
        asked.append(dialog.message)
        (dialog.accept if yes else dialog.dismiss)()

    page.once("dialog", lambda dialog: answer(dialog, yes=False))
    more.get_by_role("button", name=f"Delete {file}").click()
    assert re.fullmatch(rf"Delete {re.escape(file)} \(\S+ \S+\) from this machine\? There is no other.+", asked[0])
    assert path.exists()
    page.once("dialog", lambda dialog: answer(dialog, yes=True))
    more.get_by_role("button", name=f"Delete {file}").click()
    expect(row).to_have_count(0)
    assert not path.exists()


def test_a_job_is_removed_and_then_the_model(library: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(at=library)
    page, card = tab.page, tab.card(NAME)
    page.on("dialog", lambda dialog: dialog.accept())
    cancelled = next(job.id for job in JobStore(library.out).jobs() if job.status is Status.CANCELLED)
    line = card.locator(f"[data-job='{cancelled}'].gg-run")
    if line.count() == 0:
        card.locator("summary", has_text="Earlier jobs").click()
    line.get_by_role("button", name=f"Remove this job of {NAME} from the list").click()
    expect(line).to_have_count(0)
    expect(card.locator("tbody tr")).to_have_count(30)
    card.get_by_role("button", name=f"Delete {NAME}", exact=True).click()
    expect(card).to_have_count(0)
    assert not (library.out / f"{NAME}-GGUF").exists()
    expect(page.get_by_role("article")).to_have_count(2)


def test_it_fits_a_phone_and_speaks_chinese(
    library: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    texts, name = TEXTS["zh"], "RWKV-x070-Model-001"
    tab = open_tab(390, 800, at=library, locale="zh-CN", color_scheme="dark")
    card, file = tab.card(name), f"{name}-Q6_K.gguf"
    if card.locator("tbody tr").count() == 0:
        card.locator("summary", has_text=texts["files"]).click()
    card.get_by_role("button", name=texts["more_file"].format(file=file)).click()
    more = card.locator(".gg-file-more")
    for button in (texts["tab_chat"], texts["delete_model"].format(name=file)):
        box = more.get_by_role("button", name=button).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    shoot(tab, "library-phone")

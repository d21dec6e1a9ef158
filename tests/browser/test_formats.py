"""Files of rwkv.cpp from the page: offered where no GGUF can be made, chosen, made, downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

from ggufy.formats.rwkvcpp import read_head
from tests import tiny
from tests.browser.pages import App, Tab, finished

pytestmark = pytest.mark.browser


def test_an_rwkv_4_becomes_files_of_rwkvcpp(app: App, open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    model = tmp_path / "older.pth"
    torch.save(tiny.weights("4"), model)
    tab = open_tab()
    panel, types = tab.page.locator("#gg-panel"), tab.page.locator("#gg-types")
    tab.page.get_by_label("Source").fill(str(model))
    expect(panel).to_contain_text("This is RWKV-4, which llama.cpp cannot run", timeout=60_000)
    panel.get_by_role("button", name="Make files of rwkv.cpp").click()
    expect(tab.page.get_by_role("radio", name="rwkv.cpp")).to_be_checked()
    expect(panel).to_contain_text("RWKV-4 checkpoint", timeout=60_000)
    checked = types.locator("input:checked")
    expect(checked).to_have_count(3)
    assert checked.evaluate_all("boxes => boxes.map((box) => box.value)") == ["Q5_1", "Q8_0", "FP16"]
    expect(types.locator("label", has_text="Q5_1").first).to_contain_text(re.compile(r"\d+ kB"), timeout=60_000)
    expect(types.get_by_role("checkbox", name="Q4_K_M")).to_have_count(0)
    expect(tab.page.locator("#gg-cost")).to_contain_text("older-rwkv.cpp", timeout=60_000)
    tab.page.get_by_role("button", name="Start").click()
    card = finished(tab, "older")
    names = card.locator("tbody tr th span")
    expect(names).to_have_text(["base", "Q5_1", "Q8_0", "FP16"])
    with tab.page.expect_download() as download:
        card.locator("tbody tr").filter(has_text="Q5_1").get_by_role("link").click()
    assert download.value.suggested_filename == "older-Q5_1.bin"
    assert read_head(Path(download.value.path())).type == "Q5_1"
    expect(card.get_by_text("Find sizes")).to_have_count(0)

    tab.page.get_by_role("radio", name="GGUF").check()
    expect(types.get_by_role("checkbox", name="Q4_K_M")).to_have_count(1)

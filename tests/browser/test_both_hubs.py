"""A G1k from the Hub and from ModelScope, on the page: to quants on both, their cards, Ollama's files, and a chat."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_fixture import ALICE, LocalHub, running_hub
from playwright.sync_api import expect

from tests import scripted
from tests.browser.pages import WORK_MS, App, Tab, finished, make_app, open_more
from tests.modelscope_fixture import MS_ALICE, LocalModelScope, running_modelscope
from tests.test_publish import get

pytestmark = pytest.mark.browser
FROM_HUB = f"BlinkDL/rwkv7-g1:{scripted.NAME}.pth"
ON_MODELSCOPE = scripted.NAME.replace("0.1b", "0.4b")  # another of that generation
FROM_MODELSCOPE = f"ms:Blink_DL/rwkv7-g1:{ON_MODELSCOPE}.pth"


@pytest.fixture(scope="module")
def hubs() -> Iterator[tuple[LocalHub, LocalModelScope]]:
    with running_hub() as hub, running_modelscope() as site:
        yield hub, site


@pytest.fixture(scope="module")
def published(
    hubs: tuple[LocalHub, LocalModelScope], llama_bin: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[App, Path]]:
    """A page that publishes to both, and the vocabulary of the models that lie there."""
    (hub, site), folder = hubs, tmp_path_factory.mktemp("both")
    checkpoint, vocab = scripted.thinker(folder)
    hub.put("BlinkDL/rwkv7-g1", f"{scripted.NAME}.pth", checkpoint.read_bytes(), lfs=1)
    site.put("Blink_DL/rwkv7-g1", f"{ON_MODELSCOPE}.pth", checkpoint.read_bytes())
    environment = {k: v for k, v in hub.environment(folder).items() if k.startswith("HF_")}
    environment |= {"MODELSCOPE_ENDPOINT": site.endpoint, "MODELSCOPE_API_TOKEN": MS_ALICE, "HF_TOKEN": ALICE}
    app = make_app(folder, llama_bin, **environment, GGUFY_HUB="hf,modelscope", GGUFY_COMMITS="100000")
    app.start()
    yield app, vocab
    assert app.stop() == 0


def made(tab: Tab, source: str, vocab: Path, name: str) -> None:
    page = tab.page
    page.locator("#gg-source input").fill(source)
    page.locator("#gg-vocab input").fill(str(vocab))
    expect(page.locator("#gg-panel")).to_contain_text("RWKV-7 checkpoint", timeout=60_000)
    page.get_by_role("radio", name="none").check()
    page.get_by_role("button", name="Clear", exact=True).first.click()
    page.get_by_role("checkbox", name="Q8_0", exact=True).check()
    page.get_by_role("button", name="Start").click()
    finished(tab, name)


def text_of(site: LocalModelScope, name: str, file: str) -> str:
    address = f"{site.endpoint}/models/alice/{name}-GGUF/resolve/master/{file}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        return str(answer.read().decode())


def test_a_g1k_goes_from_both_hubs_to_both_and_thinks(
    hubs: tuple[LocalHub, LocalModelScope], published: tuple[App, Path], open_tab: Callable[..., Tab]
) -> None:
    (hub, site), (app, vocab) = hubs, published
    tab = open_tab(at=app)
    open_more(tab)
    for source, name in ((FROM_HUB, scripted.NAME), (FROM_MODELSCOPE, ON_MODELSCOPE)):
        made(tab, source, vocab, name)
        repo = f"alice/{name}-GGUF"
        there = {file: get(hub, f"/{repo}/resolve/main/{file}") for file in ("README.md", "template", "params")}
        here = {file: text_of(site, name, file) for file in there}
        for card in (there["README.md"], here["README.md"]):
            assert "User✿" in card and "Bot✿<think></think>" in card, card
        for files in (there, here):
            assert "Bot✿<think>" in files["template"] and ".Thinking" in files["template"] and "✿" in files["params"]

        page = tab.page
        page.get_by_role("tab", name="Chat").click()
        page.get_by_label("Quant", exact=True).click()
        page.get_by_role("option", name=f"{name}-Q8_0.gguf").click()
        log, switch = page.locator("#gg-chat-log-a"), page.locator("#gg-chat-think")
        for think, folds in (("On", 1), ("Off", 0)):
            switch.get_by_role("radio", name=think, exact=True).check()
            page.get_by_placeholder("Say something").fill("Hello")
            page.keyboard.press("Enter")
            expect(log.locator(".gg-note")).to_contain_text("t/s", timeout=WORK_MS)
            expect(log.locator(".gg-model .gg-said")).to_have_text(scripted.ANSWER)  # it stops at its ✿
            expect(log.locator(".gg-model details")).to_have_count(folds)
            page.locator("#gg-chat-clear").click()
            expect(log.locator(".gg-model")).to_have_count(0)
        page.get_by_role("tab", name="Quantize").click()

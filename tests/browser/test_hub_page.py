"""The page with the Hub behind it: search, choose a file, publish, and chat with a quant that is only there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_fixture import ALICE, LocalHub, running_hub
from playwright.sync_api import expect

from tests import tiny
from tests.browser.pages import WORK_MS, App, Tab, finished, make_app, open_more

pytestmark = pytest.mark.browser
REPO = "BlinkDL/rwkv-7-small"


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def vocab(hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Puts two checkpoints into a repo of the Hub; the vocabulary stays here."""
    folder = tmp_path_factory.mktemp("model")
    checkpoint, vocab = tiny.checkpoint(folder, "7", width=256, layers=2)
    for name in ("rwkv7-a.pth", "rwkv7-b.pth"):
        hub.put(REPO, name, checkpoint.read_bytes(), lfs=1)
    return vocab


@pytest.fixture(scope="module")
def published(hub: LocalHub, llama_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """A page that publishes as alice."""
    folder = tmp_path_factory.mktemp("published")
    environment = {k: v for k, v in hub.environment(folder).items() if k.startswith("HF_")}
    app = make_app(folder, llama_bin, **environment, HF_TOKEN=ALICE, GGUFY_HUB="hf", GGUFY_COMMITS="100000")
    app.start()
    yield app
    assert app.stop() == 0


def test_from_a_search_to_a_repo_and_a_chat(
    hub: LocalHub, vocab: Path, published: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    tab = open_tab(at=published)
    page, panel = tab.page, tab.page.locator("#gg-panel")
    page.get_by_label("Source").fill("")
    expect(panel).to_contain_text("Pick a model")
    page.get_by_label("Source").press_sequentially("rwkv-7", delay=30)
    expect(panel.get_by_role("button", name=REPO)).to_be_visible(timeout=30_000)
    assert len(hub.log("/api/models?")) <= 3  # six letters
    panel.get_by_role("button", name=REPO).click()
    expect(panel).to_contain_text("2 files: choose one")
    shoot(tab, "variants")
    panel.get_by_role("button", name="rwkv7-b.pth").click()
    expect(page.get_by_label("Source")).to_have_value(f"{REPO}:rwkv7-b.pth")
    expect(panel.get_by_role("alert")).to_contain_text("“Own vocabulary”")
    open_more(tab)
    page.get_by_label("Own vocabulary").fill(str(vocab))
    expect(panel).to_contain_text("RWKV-7 checkpoint")
    assert sum(line.get("bytes", 0) for line in hub.log("rwkv7-b.pth")) < 1_000_000
    page.get_by_role("radio", name="none").check()
    page.get_by_role("button", name="Clear", exact=True).first.click()
    page.get_by_role("checkbox", name="Q8_0", exact=True).check()
    expect(page.locator("#gg-cost")).to_contain_text("to upload", timeout=30_000)
    expect(page.locator("#gg-cost")).to_contain_text("into alice/rwkv7-b-GGUF")
    page.get_by_role("button", name="Start").click()

    card = finished(tab, "rwkv7-b")
    expect(card.get_by_role("link", name="alice/rwkv7-b-GGUF")).to_have_attribute(
        "href", "https://huggingface.co/alice/rwkv7-b-GGUF"
    )
    link = card.get_by_role("link", name="Download rwkv7-b-Q8_0.gguf")
    expect(link).to_have_attribute("href", re.compile(r"/alice/rwkv7-b-GGUF/resolve/main/rwkv7-b-Q8_0\.gguf$"))

    (published.out / "rwkv7-b-GGUF" / "rwkv7-b-Q8_0.gguf").unlink()  # as when a small disk had to make room
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Quant", exact=True).click()
    page.get_by_role("option", name="rwkv7-b-Q8_0.gguf").click()
    page.get_by_placeholder("Say something").fill("Hello")
    page.keyboard.press("Enter")
    expect(page.locator("#gg-chat-log-a .gg-note")).to_contain_text("t/s", timeout=WORK_MS)


def test_ticked_models_become_jobs_and_a_repo_is_followed(
    hub: LocalHub, vocab: Path, published: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    repo = "BlinkDL/rwkv-7-three"
    weights = tiny.checkpoint(vocab.parent, "7", width=256, layers=2)[0].read_bytes()
    for name in ("three-a.pth", "three-b.pth", "three-c.pth"):
        hub.put(repo, name, weights, lfs=1)
    tab = open_tab(at=published)
    page, panel = tab.page, tab.page.locator("#gg-panel")
    page.get_by_label("Source").fill(repo)
    expect(panel).to_contain_text("3 files: choose one, or tick several")
    panel.get_by_label("Tick three-a.pth").check()
    panel.get_by_label("Tick three-c.pth").focus()
    page.keyboard.press("Space")
    open_more(tab)
    page.get_by_label("Own vocabulary").fill(str(vocab))  # which has the panel drawn again
    page.get_by_role("radio", name="none").check()
    page.get_by_role("button", name="Clear", exact=True).first.click()
    page.get_by_role("checkbox", name="Q8_0", exact=True).check()
    expect(panel.locator("input:checked")).to_have_count(2)
    shoot(tab, "ticked")
    panel.get_by_role("button", name="Start the ticked").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#gg-message")).to_contain_text("2 jobs were added")
    for name in ("three-a", "three-c"):
        expect(tab.card(name)).to_be_visible()
    expect(tab.card("three-b")).to_have_count(0)

    page.locator("#gg-source").get_by_role("textbox").fill(f"{repo}:three-[bc].pth")
    expect(panel.get_by_label("Tick three-b.pth")).to_be_checked()
    expect(panel.get_by_label("Tick three-a.pth")).to_have_count(0)

    page.get_by_role("button", name="Follow repos").click()
    followed = page.locator("#gg-followed")
    expect(followed).to_contain_text("No repo is followed")
    page.locator("#gg-follow-source").get_by_role("textbox").fill(f"{repo}:*.pth")
    page.locator("#gg-follow-add").click()
    expect(followed).to_contain_text(f"{repo}:*.pth")
    expect(followed).to_contain_text("looked just now · next look in")
    shoot(tab, "followed")
    followed.get_by_role("button", name="Follow BlinkDL/rwkv-7-three:*.pth no longer").click()
    expect(followed).to_contain_text("No repo is followed")


def test_what_the_hub_does_not_have(published: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(at=published)
    panel = tab.page.locator("#gg-panel")
    tab.page.get_by_label("Source").fill("nobody/nothing")
    expect(panel.get_by_role("alert")).to_contain_text("nobody/nothing")
    tab.page.get_by_label("Source").fill("zzzzzz")
    expect(panel).to_contain_text("Nothing on the Hub is called that")

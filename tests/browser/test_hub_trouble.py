"""The page while the Hub is slow, is away from the start, or goes while a job is at work: every click shows its effect
at once, the page says what is waited for, and all goes on by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_fixture import ALICE, LocalHub, running_hub
from playwright.sync_api import Locator, expect

from tests import tiny
from tests.browser.pages import DEMO, WORK_MS, App, Tab, finished, make_app, open_more, start
from tests.hub_outage import BUSY
from tests.test_publish import digests, get

pytestmark = pytest.mark.browser
REPO, NAME = "BlinkDL/rwkv-7-slow", "rwkv7-slow"
SLOW_S = 2
SILENT_S = 30  # longer than the browser waits for an effect: what is seen before does not come of the Hub's answer
AWAY_S = 3600
AWAY = re.compile("tried again later|try again later")


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def app(hub: LocalHub, llama_bin: Path, tmp_path: Path) -> Iterator[App]:
    """A page that publishes as alice, not started yet."""
    environment = {k: v for k, v in hub.environment(tmp_path).items() if k.startswith("HF_")}
    app = make_app(tmp_path, llama_bin, **environment, HF_TOKEN=ALICE, GGUFY_HUB="hf", GGUFY_COMMITS="100000")
    yield app
    if app.process is not None and app.process.poll() is None:
        app.process.kill()
        app.process.wait()


def all_answers_take(hub: LocalHub, seconds: float) -> None:
    hub.mend()
    hub.fault(".", times=10**9, delay=seconds)


def state(card: Locator, *names: str, timeout: float = 5000) -> None:
    expect(card).to_have_class(re.compile("|".join(f"gg-{name}\\b" for name in names)), timeout=timeout)


def make_little(tab: Tab) -> None:
    """Without imatrix and figures, which take their time and ask no Hub."""
    open_more(tab)
    tab.page.get_by_role("radio", name="none").check()
    tab.page.get_by_role("checkbox", name="Measure the quants").uncheck()


def press(card: Locator, what: str) -> None:
    card.get_by_role("button", name=re.compile(f"^{what}")).first.click()


def test_a_slow_hub_holds_up_no_click(hub: LocalHub, app: App, open_tab: Callable[..., Tab], tmp_path: Path) -> None:
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=256, layers=2)
    hub.put(REPO, f"{NAME}.pth", checkpoint.read_bytes(), lfs=1)
    app.start()
    tab = open_tab(at=app)
    page, panel = tab.page, tab.page.locator("#gg-panel")
    source = page.locator("#gg-source").get_by_role("textbox")
    expect(page.locator("#gg-banner")).to_be_empty(timeout=60_000)  # the lease is ours
    all_answers_take(hub, SLOW_S)
    make_little(tab)
    page.get_by_label("Own vocabulary").fill(str(vocab))
    page.get_by_role("button", name="Clear", exact=True).first.click()
    page.get_by_role("checkbox", name="Q8_0", exact=True).check()
    source.fill(f"{REPO}:{NAME}.pth")
    expect(panel).to_contain_text("Looking at the source")
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    expect(panel).to_contain_text("RWKV-7 checkpoint", timeout=60_000)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#gg-message")).to_contain_text("Looking at the source")
    expect(page.locator("#gg-message")).to_contain_text("was added", timeout=60_000)
    card = tab.card(NAME)
    state(card, "queued", "running")

    for what, at_once, rests in (
        ("Pause", ("pausing", "paused"), ("paused",)),
        ("Resume", ("queued", "running"), ("queued", "running")),
        ("Cancel", ("cancelling", "cancelled"), ("cancelled",)),
    ):
        all_answers_take(hub, SILENT_S)
        press(card, what)
        state(card, *at_once)
        all_answers_take(hub, SLOW_S)
        state(card, *rests, timeout=60_000 + 1000 * SILENT_S)
    hub.mend()
    press(card, "Retry")
    finished(tab, NAME)
    leave(tab, app)
    assert {Path(name).stem.rpartition("-")[2] for name in digests(hub, f"alice/{NAME}-GGUF")} == {"F16", "Q8_0"}


def test_a_hub_that_is_away_from_the_start(hub: LocalHub, app: App, open_tab: Callable[..., Tab]) -> None:
    """Whoever has never been here is told to wait, with whoever has been the job waits; it needs no click to go on."""
    hub.put(REPO, f"{NAME}.pth", b"no model")
    hub.outage(".", how=BUSY, seconds=AWAY_S)
    app.start()
    tab = open_tab(at=app)
    page, banner, panel = tab.page, tab.page.locator("#gg-banner"), tab.page.locator("#gg-panel")
    source = page.locator("#gg-source").get_by_role("textbox")
    expect(banner).to_contain_text(AWAY, timeout=60_000)
    start(tab, "Q8_0")
    expect(page.locator("#gg-message").get_by_role("alert")).to_contain_text("wait until it answers")
    source.fill(f"{REPO}:{NAME}.pth")
    expect(panel.get_by_role("alert")).to_contain_text("try again later", timeout=60_000)
    source.fill("rwkv-7")
    expect(panel.get_by_role("alert")).to_be_visible(timeout=60_000)
    hub.back()
    expect(banner).to_be_empty(timeout=90_000)
    expect(panel.get_by_role("button", name=REPO)).to_be_visible(timeout=90_000)  # asked again by itself
    source.fill(f"{REPO}:{NAME}.pth")
    expect(panel.get_by_role("alert")).to_contain_text("checkpoint", timeout=60_000)  # and not what was known before

    leave(tab, app)
    hub.outage(".", how=BUSY, seconds=AWAY_S)
    app.start()
    page.goto(app.url)
    expect(banner).to_contain_text(AWAY, timeout=60_000)
    make_little(tab)
    start(tab, "Q8_0")
    card = tab.card(DEMO)
    state(card, "queued", timeout=60_000)  # the texts are made first
    hub.back()
    finished(tab, DEMO)
    leave(tab, app)


def test_a_hub_that_goes_while_a_job_is_at_work(hub: LocalHub, app: App, open_tab: Callable[..., Tab]) -> None:
    app.start()
    tab = open_tab(at=app)
    expect(tab.page.locator("#gg-banner")).to_be_empty(timeout=60_000)
    hub.outage("POST /api/models/alice/.*/preupload/", how=BUSY, seconds=AWAY_S)
    make_little(tab)
    start(tab, "Q8_0")
    card = tab.card(DEMO)
    expect(card).to_contain_text(AWAY, timeout=WORK_MS)
    state(card, "running")
    hub.back()
    finished(tab, DEMO)
    expect(card).not_to_contain_text(AWAY)
    leave(tab, app)
    names = {Path(name).stem.rpartition("-")[2] for name in digests(hub, f"alice/{DEMO}-GGUF")}
    assert names == {"F16", "Q8_0"}
    (job,) = [path for path in records(hub) if "Demo" in path]
    assert json.loads(get(hub, f"/datasets/alice/ggufy-state/resolve/main/{job}"))["status"] == "done"


def leave(tab: Tab, app: App) -> None:
    """Before the page ends, which the browser would complain of."""
    tab.page.goto("about:blank")
    assert app.stop() == 0


def records(hub: LocalHub) -> list[str]:
    told = json.loads(get(hub, "/api/datasets/alice/ggufy-state"))
    return [file["rfilename"] for file in told["siblings"] if file["rfilename"].startswith("jobs/")]

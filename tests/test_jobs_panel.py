"""What a tab is sent of the jobs: only what is new to it, however many there are."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from bench.records import write_records
from ggufy.core.job import Status
from ggufy.records.store import STATE_REPO, JobStore
from ggufy.service.service import Services
from ggufy.system.settings import Settings
from ggufy.ui.comparing import MOST
from ggufy.ui.i18n import TEXTS
from ggufy.ui.jobs_panel import PAGE, UNFOLDED, JobsPanel, WantedView, patch_of

RECORDS = 500
EN = TEXTS["en"]
_opens: list[str] = []
_watched: list[str] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(_watched[0]):
        _opens.append(str(arguments[0]))


sys.addaudithook(_note)


class Tab:
    """A browser tab, as jobs.js keeps it: the pieces that it shows, and what its visitor has opened."""

    def __init__(self, panel: JobsPanel):
        self.panel = panel
        self.shown = ""
        self.opened: dict[str, bool] = {}
        self.count = PAGE
        self.window: dict[str, Any] = {}  # what it says while files are compared
        self.seen: Any = None
        self.pieces: dict[str, str] = {}

    def poll(self) -> int:
        """One look; returns the bytes that go to and fro."""
        value = {"shown": self.shown, "opened": self.opened, "count": self.count} | self.window
        request: Any = gr.Request(headers={}, session_hash="tab")
        banner, head, jobs, seen = self.panel.look(json.loads(json.dumps(value)), self.seen, request, None)
        patch = jobs.props["patch"] if isinstance(jobs, gr.HTML) else {}
        self.seen = seen if isinstance(seen, list) else self.seen
        if patch:
            self.pieces = {key: patch["html"].get(key) or self.pieces[key] for key, _ in patch["order"]}
            self.shown = " ".join(digest for _, digest in patch["order"])
        texts = [text for text in (banner, head) if isinstance(text, str)]
        return len(json.dumps([value, texts, patch]).encode())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "out"
    write_records(folder, RECORDS)
    for results in folder.glob("*-GGUF"):
        os.utime(results, (0, 0))  # one that has just changed would be looked at again
    return folder


@pytest.fixture(scope="module")
def services(out: Path) -> Iterator[Services]:
    home = str(out.parent)
    services = Services(Settings.from_env({"GGUFY_OUT": str(out), "GGUFY_CACHE": home, "HOME": home}))
    services._views(whole=True)
    yield services
    services.shutdown()


def in_loop(services: Services) -> Tab:
    """Outside of a loop gradio makes its own, and leaves it open."""

    async def built() -> Tab:
        with gr.Blocks():
            return Tab(JobsPanel(services))

    return asyncio.run(built())


@pytest.fixture
def tab(services: Services) -> Iterator[Tab]:
    yield in_loop(services)
    _watched.clear()


def polled(tab: Tab) -> int:
    """A look that may not be answered from what was known a moment ago."""
    tab.panel.services._views._taken = -1e9
    return tab.poll()


def test_an_idle_tab_of_many_jobs_costs_next_to_nothing(services: Services, tab: Tab, out: Path) -> None:
    """Not one record is read, and no folder listed, while nothing changes; the answers are tiny."""
    tab.poll()
    while polled(tab) > 20_000:  # heads of files are read in turns
        pass
    assert len(tab.pieces) < 40
    views = services.views()
    _watched.append(str(out))
    _opens.clear()
    sizes = [polled(tab) for _ in range(5)]
    assert max(sizes) < 20_000
    assert min(sizes) < 1000
    assert set(_opens) <= {str(out / STATE_REPO / "jobs")}  # which records there are
    assert services.views() is views


def test_only_the_card_that_changed_is_sent(services: Services, tab: Tab, out: Path) -> None:
    polled(tab)
    while polled(tab) > 20_000:
        pass
    before = dict(tab.pieces)
    job = services.views()[2].job
    JobStore(out).save(job.evolve(status=Status.FAILED, error="the disk is full."))
    services._views.look_again()
    tab.poll()
    changed = {key for key in tab.pieces if tab.pieces[key] != before.get(key)}
    assert changed == {f"card {job.request.folder}", "news"}
    assert f"{job.request.name}: failed" in tab.pieces["news"]
    assert "the disk is full." in tab.pieces[f"card {job.request.folder}"]
    JobStore(out).save(job)


def test_details_are_sent_when_they_are_opened(tab: Tab, services: Services) -> None:
    polled(tab)
    second, folded = (services.views()[n].job.request.folder for n in (1, UNFOLDED))
    assert f"files {second}" not in tab.pieces
    tab.opened = {f"files {second}": True, f"card {folded}": True, f"files {folded}": True}
    polled(tab)
    assert "Q4_K_M" in tab.pieces[f"files {second}"]
    assert "Q4_K_M" in tab.pieces[f"files {folded}"]
    tab.opened = {f"files {second}": False}
    polled(tab)
    assert {f"files {second}", f"files {folded}"}.isdisjoint(tab.pieces)


def test_how_long_finding_sizes_takes_follows_the_threads(tab: Tab, services: Services, out: Path) -> None:
    """Also on a card on which nothing else changes."""
    first = services.views()[0].job
    asked = replace(first.request, name="No-sizes", mode="", source=replace(first.request.source, size=10**9))
    job = first.evolve(request=asked, frontier=())
    JobStore(out).put(job)
    services._views.look_again()
    tab.opened = {f"card {job.request.folder}": True, f"sizes {job.request.folder}": True}
    told = []
    for threads in (1, 4, 1):
        services.limit.most = 4
        services.limit.set(threads)
        polled(tab)
        told.append(tab.pieces[f"sizes {job.request.folder}"])
    JobStore(out).remove(job.id)
    services._views.look_again()
    assert all("find-sizes" in text for text in told)
    assert told[0] == told[2] != told[1]


def test_every_job_can_be_reached(tab: Tab, services: Services) -> None:
    polled(tab)
    assert f"{RECORDS - PAGE} older" in tab.pieces["more"]
    cards = [key for key in tab.pieces if key.startswith("card ")]
    assert len(cards) == PAGE
    tab.count = RECORDS - 1
    polled(tab)
    assert "1 older" in tab.pieces["more"]
    tab.count = RECORDS
    polled(tab)
    assert "more" not in tab.pieces
    assert polled(tab) < 20_000


def test_a_job_that_works_is_shown_however_old(tab: Tab, services: Services, out: Path) -> None:
    oldest = services.views()[-1].job
    JobStore(out).save(oldest.evolve(status=Status.RUNNING))
    services._views.look_again()
    polled(tab)
    card = f"card {oldest.request.folder}"
    assert next(key for key in tab.pieces if key.startswith("card ")) == card  # above all
    assert "gg-running" in tab.pieces[card]
    assert "gg-folded" not in tab.pieces[card]
    JobStore(out).save(oldest)


def test_files_of_any_models_are_found_and_compared(tab: Tab, services: Services) -> None:
    """Of all models, also those that are not listed; what is no file is nothing, and an idle tab stays cheap."""
    polled(tab)
    assert "comparing" in tab.pieces and "compare" not in tab.pieces
    first, last = (services.views()[n].job.request for n in (0, -1))
    tab.window = {"compared": [], "find": f"{last.name.upper()} q4_K"}
    polled(tab)
    found = tab.pieces["matches compare"]
    assert f"{last.name}-Q4_K_M.gguf" in found and first.name not in found and "Q8_0" not in found
    ticks = [f"{one.folder}/{one.name}-Q4_K_M.gguf" for one in (first, last)]
    tab.window = {"compared": [*ticks, "../x", f"{first.folder}/nothing.gguf"], "find": ""}
    polled(tab)
    table = tab.pieces["compared compare"]
    assert table.count("<tr>") == 4 and table.count("<h3>") == 2 and EN["apart_base"] in table
    assert "matches compare" not in tab.pieces
    assert polled(tab) < 20_000
    tab.window = {"compared": [], "find": "nothing is called so"}
    polled(tab)
    assert EN["compare_nothing"] in tab.pieces["matches compare"]
    tab.window = {"compared": ["x"] * 10_000, "find": "q" * 10_000}
    assert len(WantedView.of(tab.window).compared or ()) == MOST and len(WantedView.of(tab.window).find) == 200
    tab.window = {}
    polled(tab)
    assert "compare" not in tab.pieces


def test_a_page_without_models_compares_nothing(tmp_path: Path) -> None:
    home = str(tmp_path)
    services = Services(Settings.from_env({"GGUFY_OUT": str(tmp_path / "out"), "GGUFY_CACHE": home, "HOME": home}))
    tab = in_loop(services)
    tab.window = {"compared": ["x/y.gguf"], "find": "y"}
    tab.poll()
    assert list(tab.pieces) == ["nothing"]
    services.shutdown()


def test_what_a_stranger_s_browser_sends_may_be_anything() -> None:
    for value in (
        None,
        5,
        "x",
        [],
        {"shown": 3, "opened": [1], "count": "many"},
        {"count": -5},
        {"compared": 3, "find": []},
    ):
        wanted = WantedView.of(value)
        assert isinstance(wanted.shown, str)
        assert PAGE <= wanted.count <= 10_000
        assert wanted.opens("card x", otherwise=True)


def test_a_patch_is_the_order_and_what_is_new() -> None:
    pieces: Any = [("card a", "one"), ("files a", "two")]
    first = patch_of(pieces, "")
    assert first["html"] == dict(pieces)
    shown = " ".join(digest for _, digest in first["order"])
    assert patch_of(pieces, shown) == {}
    moved: Any = [("card b", "new"), *pieces]
    assert patch_of(moved, shown)["html"] == {"card b": "new"}
    assert [key for key, _ in patch_of(moved, shown)["order"]] == ["card b", "card a", "files a"]
    assert patch_of(pieces[:1], shown)["html"] == {}

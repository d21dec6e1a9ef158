"""The page in a real Chromium, served by a real app.py with the real tools, on a folder of its own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import expect

from ggufy.core.job import Job, Request, Status
from ggufy.core.source import Source
from ggufy.records.store import JobStore
from ggufy.ui.api import NAMES
from ggufy.ui.i18n import TEXTS
from tests.browser.pages import DEMO, EVIL, ROOT, WORK_MS, App, Tab, finished, open_more, start

pytestmark = pytest.mark.browser


def test_the_demo_from_start_to_a_chat(
    app: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    """The whole way of a newcomer: look at the demo, start it, leave, come back, download, read figures, chat."""
    tab = open_tab()
    shoot(tab, "empty")
    panel, cost = tab.page.locator("#gg-panel"), tab.page.locator("#gg-cost")
    expect(panel).to_contain_text("RWKV-7 checkpoint")
    expect(panel).to_contain_text("7.28 M parameters")
    start(tab, "Q8_0", "Q4_K_M")
    expect(cost).to_contain_text(re.compile(r"29\.0\sMB in all.*free.*about"), timeout=60_000)
    card = tab.card(DEMO)
    expect(card).to_have_class(re.compile("gg-running"), timeout=WORK_MS)
    expect(card.get_by_text(re.compile(r"step \d of 7 · .+ · \d+ %"))).to_be_visible(timeout=WORK_MS)
    bar = card.get_by_role("progressbar", name=f"Progress of {DEMO}")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"[1-9]\d?"), timeout=WORK_MS)
    expect(tab.page.locator("#gg-message")).to_contain_text(f"{DEMO} was added")
    card.locator("summary", has_text="Log").click()
    expect(card.locator("pre")).not_to_be_empty()
    shoot(tab, "running")

    # Nobody has to stay: another visitor sees the same job, and it goes on with every tab closed.
    tab.page.goto("about:blank")
    second = open_tab()
    card = finished(second, DEMO)
    expect(card).to_have_count(1)
    rows = card.locator("tbody tr")
    expect(rows).to_have_count(4)
    names = [row.locator("th span").inner_text() for row in rows.all()]
    assert names == ["base GGUF", "imatrix", "Q4_K_M", "Q8_0"]
    folder = app.out / f"{DEMO}-GGUF"
    expect(card.get_by_text(f"In {folder}")).to_be_visible()
    quant = rows.filter(has_text="Q4_K_M").last
    figures = re.compile(r"5\.\d MB\s*5\.\d\d\s*0\.00\d\d\s*1\.00\d\s*9\d\.\d %")  # no speed on a busy machine
    expect(quant).to_contain_text(figures)  # the heads of the files are read in turns
    expect(card.locator(".gg-picks")).to_contain_text("Q4_K_M")
    expect(card.locator("svg:visible circle")).to_have_count(2)
    with second.page.expect_download() as download:
        quant.get_by_role("link").click()
    assert download.value.suggested_filename == f"{DEMO}-Q4_K_M.gguf"
    content = Path(download.value.path()).read_bytes()
    assert content == (folder / f"{DEMO}-Q4_K_M.gguf").read_bytes()
    shoot(second, "done")

    second.page.get_by_role("tab", name="Chat").click()
    expect(second.page.get_by_label("Quant", exact=True)).to_have_value(f"{DEMO}-Q4_K_M.gguf")
    log = second.page.locator("#gg-chat-log-a")
    for message in ("What is a list?", "/exit", EVIL, "/read /etc/passwd\\\n> <b>bold</b> \x1b[31m"):
        before = log.locator(".gg-model").count()
        second.page.get_by_placeholder("Say something").fill(message)
        second.page.get_by_role("button", name="Send").click()
        expect(log.locator(".gg-model")).to_have_count(before + 1, timeout=60_000)
        expect(second.page.locator("#gg-chat-log-a .gg-note")).to_contain_text("t/s", timeout=60_000)
    expect(log).to_contain_text("/read /etc/passwd")
    expect(log).to_contain_text("<b>bold</b>")
    expect(log).not_to_contain_text("root:")
    assert log.locator("b, img").count() == 0
    assert second.page.evaluate("window.hacked") is None
    shoot(second, "chat")
    log.get_by_role("button", name="Another reply").last.click()
    expect(second.page.locator("#gg-chat-log-a .gg-note")).to_contain_text("t/s", timeout=60_000)
    second.page.locator("#gg-chat-clear").click()
    expect(log.locator(".gg-model")).to_have_count(0)


def test_two_quants_beside_each_other(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    tab.page.get_by_role("tab", name="Chat").click()
    expect(tab.page.get_by_label("Quant", exact=True)).to_have_value(f"{DEMO}-Q4_K_M.gguf")
    tab.page.get_by_label("Beside it").click()
    tab.page.get_by_role("option", name=f"{DEMO}-Q8_0.gguf").click()
    expect(tab.page.locator("#gg-chat-log-b")).to_be_visible()
    tab.page.get_by_role("radio", name="Continue text").check()
    tab.page.get_by_placeholder("Say something").fill("A list is")
    tab.page.keyboard.press("Enter")
    names = {"a": f"{DEMO}-Q4_K_M.gguf", "b": f"{DEMO}-Q8_0.gguf"}
    for side in names:
        expect(tab.page.locator(f"#gg-chat-log-{side} .gg-model")).not_to_be_empty(timeout=60_000)
        expect(tab.page.locator(f"#gg-chat-log-{side} .gg-note")).to_contain_text("t/s", timeout=60_000)
        expect(tab.page.locator(f"#gg-chat-log-{side} strong")).to_have_text(names[side])
    expect(tab.page.locator("#gg-chat-stop")).to_be_hidden()
    tab.page.locator("#gg-chat-log-b").get_by_role("button", name="Another reply").click()
    expect(tab.page.locator("#gg-chat-log-b .gg-note")).to_contain_text("t/s", timeout=60_000)
    tab.page.get_by_placeholder("Say something").fill("A tuple is")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#gg-chat-log-a")).to_contain_text("A tuple is", timeout=60_000)


def test_what_is_typed_while_a_reply_streams_stays(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    tab.page.get_by_role("tab", name="Chat").click()
    expect(tab.page.get_by_label("Quant", exact=True)).to_have_value(f"{DEMO}-Q4_K_M.gguf")
    box, reply = tab.page.get_by_placeholder("Say something"), tab.page.locator("#gg-chat-log-a .gg-model")
    for count in (1, 2):  # the same message twice
        box.fill("What is a list?")
        box.press("Enter")
        box.press_sequentially(" and more")
        expect(reply).to_have_count(count, timeout=60_000)
        expect(tab.page.locator("#gg-chat-log-a .gg-note")).to_contain_text("t/s", timeout=60_000)
        # A letter that comes within a frame of Enter may stand behind the next ones: no person types so fast.
        expect(box).to_have_value(re.compile("^ ?and more ?$"))


def test_a_stop_ends_both_columns(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    tab.page.get_by_role("tab", name="Chat").click()
    tab.page.get_by_label("Beside it").click()
    tab.page.get_by_role("option", name=f"{DEMO}-Q8_0.gguf").click()
    tab.page.get_by_role("radio", name="Continue text").check()
    box = tab.page.get_by_placeholder("Say something")
    box.fill("A list is " + "写" * 12_000)  # the model reads for seconds; a reply may end at its first token
    box.press("Enter")
    expect(tab.page.locator("#gg-chat-log-a .gg-user")).to_contain_text("A list is", timeout=60_000)
    tab.page.get_by_role("button", name="Stop").click()
    box.fill("A tuple is")
    box.press("Enter")
    said = tab.page.locator("#gg-chat-log-b .gg-user")
    expect(said.first).to_contain_text("A tuple is", timeout=60_000)  # the first that this side was ever asked


def test_cancel_retry_and_a_restart_in_the_middle(app: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    open_more(tab)
    name = tab.page.locator("#gg-name input")
    name.fill("大 模型")
    tab.page.get_by_role("checkbox", name="Measure the quants").uncheck()
    tab.page.get_by_role("button", name="All 29").click()
    expect(name).to_have_value("大 模型")
    tab.page.get_by_role("button", name="Start").click()
    card = tab.card("大-模型")
    expect(card.get_by_text(re.compile(r"step \d+ of 32 · quantize"))).to_be_visible(timeout=WORK_MS)

    # What a visitor closes stays closed, and the keyboard stays where it is, while the card is drawn again.
    steps = card.locator("summary", has_text="Steps")
    expect(card.locator("ol")).to_be_visible()
    steps.focus()
    tab.page.keyboard.press("Enter")
    expect(card.locator("ol")).to_be_hidden()
    before = steps.inner_text()
    expect(steps).not_to_have_text(before, timeout=WORK_MS)
    expect(card.locator("ol")).to_be_hidden()
    expect(steps).to_be_focused()

    card.get_by_role("button", name="Cancel 大-模型").click()
    expect(card).to_have_class(re.compile("gg-cancelled"), timeout=WORK_MS)
    finished = set((app.out / "大-模型-GGUF").glob("*.gguf"))
    assert finished
    card.get_by_role("button", name="Retry 大-模型").click()
    expect(card.get_by_text(re.compile(r"step \d+ of 32 · quantize"))).to_be_visible(timeout=WORK_MS)
    card.get_by_role("button", name="Pause 大-模型").click()
    expect(card).to_have_class(re.compile("gg-paused"), timeout=WORK_MS)
    card.get_by_role("button", name="Resume 大-模型").click()
    expect(card.get_by_text(re.compile(r"step \d+ of 32 · quantize"))).to_be_visible(timeout=WORK_MS)
    tab.page.goto("about:blank")

    assert app.process is not None
    tools = psutil.Process(app.process.pid).children(recursive=True)
    assert app.stop() == 0
    assert not [tool for tool in tools if tool.is_running()]
    assert [job.status for job in JobStore(app.out).jobs() if job.request.name == "大-模型"] == [Status.RUNNING]
    app.start()
    tab = open_tab()
    card = tab.card("大-模型")
    expect(card.get_by_text(re.compile(r"step \d+ of 32 · quantize"))).to_be_visible(timeout=WORK_MS)
    deadline = time.monotonic() + WORK_MS / 1000
    while not finished < set((app.out / "大-模型-GGUF").glob("*.gguf")):  # it goes on: one more file comes
        assert time.monotonic() < deadline
        time.sleep(0.1)
    card.get_by_role("button", name="Cancel 大-模型").click()
    expect(card).to_have_class(re.compile("gg-cancelled"), timeout=WORK_MS)
    assert finished < set((app.out / "大-模型-GGUF").glob("*.gguf"))


def test_what_cannot_work_is_one_sentence_on_the_page(
    app: App, open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    tab = open_tab()
    jobs = len(JobStore(app.out).jobs())
    said, panel = tab.page.locator("#gg-message"), tab.page.locator("#gg-panel")
    start(tab, source="demo")
    expect(said.get_by_role("alert")).to_have_text("No quant type chosen: check at least one.")
    start(tab, "Q8_0", source="/nowhere/missing.pth")
    expect(panel.get_by_role("alert")).to_contain_text("/nowhere/missing.pth does not exist: give a .pth file")
    expect(said.get_by_role("alert")).to_contain_text("/nowhere/missing.pth does not exist: give a .pth file")
    shoot(tab, "error")
    tab.page.get_by_label("Source").fill("/" + EVIL)
    tab.page.get_by_label("Source").press("Enter")  # looks, and starts nothing
    expect(panel.get_by_role("alert")).to_contain_text(EVIL[:40])
    expect(said.get_by_role("alert")).to_contain_text("/nowhere/missing.pth")
    tab.page.get_by_role("button", name="Start").click()
    expect(said.get_by_role("alert")).to_contain_text(EVIL[:40])
    assert "Traceback" not in tab.page.content()
    assert tab.page.evaluate("window.hacked") is None
    assert len(JobStore(app.out).jobs()) == jobs


def test_the_threads_can_be_changed(app: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    more, less = (tab.page.get_by_role("button", name=f"Use one thread {word}") for word in ("more", "less"))
    if more.count() == 0:
        pytest.skip("this machine has one CPU")
    count = tab.page.locator(".gg-stepper-value").first
    expect(count).to_have_text("1 thread")
    more.click()
    expect(count).to_have_text("2 threads")
    less.click()
    expect(count).to_have_text("1 thread")


def test_the_share_of_the_cpu_can_be_changed(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    more, less = (tab.page.get_by_role("button", name=f"Use {word} of the CPU's time") for word in ("more", "less"))
    share = tab.page.locator(".gg-stepper-value").last
    expect(share).to_have_text("100 %")
    less.click()
    expect(share).to_have_text("75 %")
    more.click()
    expect(share).to_have_text("100 %")
    more.click()
    expect(share).to_have_text("auto")
    expect(more).to_be_disabled()
    less.click()
    expect(share).to_have_text("100 %")


def test_a_stranger_s_names_are_only_text(app: App, open_tab: Callable[..., Tab]) -> None:
    source = Source(kind="checkpoint", path=f"/models/{EVIL}.pth", size=1, sha256="ab" * 32)
    request = Request(name=EVIL, source=source, quant_types=("Q8_0",), outtype="f16", imatrix="none")
    JobStore(app.out).save(Job(request=request, status=Status.FAILED, error=f"bad: {EVIL}"))
    tab = open_tab()
    card = tab.card(EVIL)
    expect(card.get_by_role("heading")).to_have_text(EVIL)
    expect(card.get_by_text(f"bad: {EVIL}")).to_be_visible()
    assert card.locator("img").count() == 0
    assert tab.page.evaluate("window.hacked") is None


def test_it_fits_a_phone(open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]) -> None:
    tab = open_tab(400, 800, color_scheme="dark")
    shoot(tab, "phone")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400
    tab.page.get_by_role("button", name="Start").scroll_into_view_if_needed()
    box = tab.page.get_by_role("button", name="Start").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 400
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    tab.page.get_by_role("tab", name="Chat").click()
    expect(tab.page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400
    shoot(tab, "phone-chat")


def test_the_form_fits_one_screen(open_tab: Callable[..., Tab]) -> None:
    """Source, what it is, types, cost and Start at 1280 × 800, without scrolling."""
    tab = open_tab()
    expect(tab.page.locator("#gg-cost")).to_contain_text("free", timeout=60_000)
    box = tab.page.get_by_role("button", name="Start").bounding_box()
    assert box is not None and box["y"] + box["height"] <= 800


def test_it_speaks_chinese_to_a_chinese_browser_and_english_when_asked(
    open_tab: Callable[..., Tab], shoot: Callable[[Tab, str], None]
) -> None:
    page = (tab := open_tab(locale="zh-CN")).page
    expect(page.get_by_role("heading", name=TEXTS["zh"]["new_job"])).to_be_visible()
    expect(page.get_by_role("button", name=TEXTS["zh"]["start"])).to_be_visible()
    expect(page.get_by_label(TEXTS["zh"]["source"])).to_have_value("demo")
    expect(page.locator("#gg-advice-Q6_K")).to_have_text(TEXTS["zh"]["advice_Q6_K"])
    page.get_by_label(TEXTS["zh"]["source"]).fill("/nowhere/missing.pth")
    page.get_by_label(TEXTS["zh"]["source"]).press("Enter")
    wrong = page.locator("#gg-panel").get_by_role("alert")
    expect(wrong).to_contain_text("/nowhere/missing.pth 不存在：请填写 .pth 文件", timeout=60_000)
    page.get_by_role("button", name=TEXTS["zh"]["start"], exact=True).click()
    expect(page.locator("#gg-message").get_by_role("alert")).to_contain_text("/nowhere/missing.pth 不存在")
    shoot(tab, "chinese")
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("heading", name=TEXTS["en"]["new_job"])).to_be_visible(timeout=60_000)
    expect(page.get_by_role("button", name=TEXTS["en"]["start"])).to_be_visible()
    expect(page.get_by_role("tab", name="Chat")).to_be_visible()
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("heading", name=TEXTS["zh"]["new_job"])).to_be_visible(timeout=60_000)
    expect(page.get_by_role("tab", name=TEXTS["zh"]["tab_chat"])).to_be_visible()


def test_nothing_is_public_but_the_page_and_finished_files(app: App) -> None:
    endpoints = json.loads(app.get("gradio_api/info")[1])
    assert list(endpoints["named_endpoints"]) == [f"/{name}" for name in NAMES]
    assert endpoints["unnamed_endpoints"] == {}
    (job,) = [job for job in JobStore(app.out).jobs() if job.request.name == DEMO]
    file = f"files/{job.id}/{DEMO}-Q8_0.gguf"
    assert app.get(file, Range="bytes=0-3") == (206, b"GGUF")
    record = app.out / "ggufy-state" / "jobs" / f"{job.id}.json"
    assert record.is_file()
    for path in (
        f"files/{job.id}/.lock",
        f"files/{job.id}/..%2F..%2Fggufy-state%2Fjobs%2F{job.id}.json",
        f"files/{job.id}%2F..%2F{job.id}/{DEMO}-Q8_0.gguf",
        f"files/{record}",
        f"gradio_api/file={record}",
        f"gradio_api/file={app.out / f'{DEMO}-GGUF' / f'{DEMO}-Q8_0.gguf'}",
        f"gradio_api/file={ROOT / 'pyproject.toml'}",
        "gradio_api/file=app.py",
        "docs",
        "openapi.json",
    ):
        assert app.get(path)[0] in (403, 404), path

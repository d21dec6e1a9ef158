"""The page in a real Chromium, served by a real app.py with the real tools, on a folder of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, Playwright, expect, sync_playwright

from ggufy.catalog import QUANT_TYPES
from ggufy.hub.state import JobStore
from ggufy.job import Job, Request, Source, Status
from ggufy.ui.i18n import TEXTS

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WORK_MS = 180_000  # for what the tools do; everything else is quick
EVIL = "<img src=x onerror='window.hacked=1'>${window.hacked=2}{{evil}}"


@dataclass
class App:
    """A running app.py."""

    port: int
    out: Path
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=self.environment, stderr=log)
        deadline = time.monotonic() + 120
        while self.get("")[0] != 200:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers)) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except urllib.error.URLError:
            return 0, b""


@dataclass
class Tab:
    """One browser window of a visitor, and what went wrong in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def card(self, name: str) -> Locator:
        return self.page.get_by_role("article", name=name, exact=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def make_app(folder: Path, llama_bin: Path, **more: str) -> App:
    port = free_port()
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ} | {
        "HOME": str(folder),
        "GGUFY_OUT": str(folder / "out"),
        "GGUFY_CACHE": str(folder / "cache"),
        "GGUFY_LLAMA_DIR": str(llama_bin),
        "GRADIO_SERVER_PORT": str(port),
    }
    return App(port, folder / "out", environment | more, folder / "log")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian, Ubuntu: apt-get install chromium)")
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def app(browser: Browser, llama_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = make_app(tmp_path_factory.mktemp("app"), llama_bin)
    app.start()
    yield app
    if app.process is not None:
        app.process.kill()
        app.process.wait()


@pytest.fixture
def open_tab(browser: Browser, app: App) -> Iterator[Callable[..., Tab]]:
    """Opens the page in a fresh browser context; in the end, nothing may have been complained about."""
    tabs = []

    def open_tab(width: int = 1280, height: int = 900, at: App = app, **options: str) -> Tab:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)  # type: ignore[arg-type]
        tab = Tab(context.new_page())
        tab.page.on("console", lambda m: tab.complaints.append(m.text) if m.type == "error" else None)
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        elsewhere = re.compile(rf"(?!{re.escape(at.url)})\w+://")
        tab.page.on("request", lambda r: tab.complaints.append(r.url) if elsewhere.match(r.url) else None)
        tab.page.goto(at.url)
        expect(tab.page.locator(".gg-jobs")).to_be_visible(timeout=60_000)
        expect(tab.page.locator("fieldset output")).not_to_be_empty()
        tabs.append(tab)
        return tab

    yield open_tab
    for tab in tabs:
        tab.page.context.close()
        assert tab.complaints == []


def start(tab: Tab, *types: str, source: str = "demo") -> None:
    """Fills the form as a visitor would, and presses Start."""
    tab.page.get_by_label("Source").fill(source)
    tab.page.get_by_role("button", name="None").click()
    for kind in types:
        tab.page.get_by_role("checkbox", name=kind, exact=True).check()
    tab.page.get_by_role("button", name="Start").click()


def test_the_demo_from_start_to_its_files(app: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    start(tab, "Q8_0", "Q4_K_M")
    card = tab.card("RWKV-x070-Demo-7M")
    expect(card).to_have_class(re.compile("gg-running"), timeout=WORK_MS)
    expect(card.get_by_text(re.compile(r"step \d of 4 · .+ · \d+ %"))).to_be_visible(timeout=WORK_MS)
    bar = card.get_by_role("progressbar", name="Progress of RWKV-x070-Demo-7M")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"[1-9]\d?"), timeout=WORK_MS)
    expect(tab.page.locator("#gg-message")).to_contain_text("RWKV-x070-Demo-7M was added")

    # Nobody has to stay: another visitor sees the same job, and it goes on with every tab closed.
    tab.page.goto("about:blank")
    second = open_tab()
    card = second.card("RWKV-x070-Demo-7M")
    expect(card).to_have_class(re.compile("gg-done"), timeout=WORK_MS)
    expect(card).to_have_count(1)
    rows = card.locator("tbody tr")
    expect(rows).to_have_count(4)
    assert [row.locator("th").inner_text() for row in rows.all()] == ["base GGUF", "imatrix", "Q4_K_M", "Q8_0"]
    folder = app.out / "RWKV-x070-Demo-7M-GGUF"
    expect(card.get_by_text(f"In {folder}")).to_be_visible()
    quant = rows.filter(has_text="Q4_K_M").last
    assert re.search(r"5\.\d MB\s+5\.\d\d\s+no", quant.inner_text())
    with second.page.expect_download() as download:
        quant.get_by_role("link").click()
    assert download.value.suggested_filename == "RWKV-x070-Demo-7M-Q4_K_M.gguf"
    content = Path(download.value.path()).read_bytes()
    assert content == (folder / "RWKV-x070-Demo-7M-Q4_K_M.gguf").read_bytes()
    assert quant.locator("code").text_content() == hashlib.sha256(content).hexdigest()


def test_cancel_retry_and_a_restart_in_the_middle(app: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    tab.page.get_by_role("button", name="More options").click()
    tab.page.get_by_label("Name").fill("大 模型")
    tab.page.get_by_role("button", name="All 29").click()
    tab.page.get_by_role("button", name="Start").click()
    card = tab.card("大-模型")
    expect(card.get_by_text(re.compile(r"step \d+ of 31 · quantize"))).to_be_visible(timeout=WORK_MS)

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
    expect(card.get_by_text(re.compile(r"step \d+ of 31 · quantize"))).to_be_visible(timeout=WORK_MS)
    tab.page.goto("about:blank")

    assert app.process is not None
    tools = psutil.Process(app.process.pid).children(recursive=True)
    assert app.stop() == 0
    assert not [tool for tool in tools if tool.is_running()]
    assert [job.status for job in JobStore(app.out).jobs() if job.request.name == "大-模型"] == [Status.RUNNING]
    app.start()
    tab = open_tab()
    card = tab.card("大-模型")
    expect(card.get_by_text(re.compile(r"step \d+ of 31 · quantize"))).to_be_visible(timeout=WORK_MS)
    deadline = time.monotonic() + WORK_MS / 1000
    while not finished < set((app.out / "大-模型-GGUF").glob("*.gguf")):  # it goes on: one more file comes
        assert time.monotonic() < deadline
        time.sleep(0.1)
    card.get_by_role("button", name="Cancel 大-模型").click()
    expect(card).to_have_class(re.compile("gg-cancelled"), timeout=WORK_MS)
    assert finished < set((app.out / "大-模型-GGUF").glob("*.gguf"))


def test_what_cannot_work_is_one_sentence_on_the_page(app: App, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    jobs = len(JobStore(app.out).jobs())
    said = tab.page.locator("#gg-message")
    start(tab, source="demo")
    expect(said.get_by_role("alert")).to_have_text("no quant type chosen: check at least one.")
    start(tab, "Q8_0", source="/nowhere/missing.pth")
    expect(said.get_by_role("alert")).to_contain_text("/nowhere/missing.pth does not exist: give a .pth file")
    tab.page.get_by_label("Source").fill(EVIL)
    tab.page.get_by_label("Source").press("Enter")
    expect(said.get_by_role("alert")).to_contain_text(EVIL[:40])
    assert "Traceback" not in tab.page.content()
    assert tab.page.evaluate("window.hacked") is None
    assert len(JobStore(app.out).jobs()) == jobs


def test_types_that_need_an_imatrix_go_with_it(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    chosen = tab.page.locator("fieldset output")
    expect(chosen).to_have_text("7 of 29 chosen")
    tab.page.get_by_role("checkbox", name="Importance matrix (imatrix)").uncheck()
    expect(tab.page.get_by_role("checkbox", name="IQ2_XS", exact=True)).to_be_disabled()
    tab.page.get_by_role("button", name="All 29").click()
    needing = sum(row.needs_imatrix for row in QUANT_TYPES)
    expect(chosen).to_have_text(f"{29 - needing} of 29 chosen")
    tab.page.get_by_role("checkbox", name="Importance matrix (imatrix)").check()
    expect(chosen).to_have_text("29 of 29 chosen")
    tab.page.get_by_role("checkbox", name="Q8_0", exact=True).focus()
    tab.page.keyboard.press("Space")
    expect(chosen).to_have_text("28 of 29 chosen")


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


def test_it_fits_a_phone(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(400, 800, color_scheme="dark")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400
    tab.page.get_by_role("button", name="Start").scroll_into_view_if_needed()
    box = tab.page.get_by_role("button", name="Start").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 400
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_it_speaks_chinese_to_a_chinese_browser(open_tab: Callable[..., Tab]) -> None:
    page = open_tab(locale="zh-CN").page
    expect(page.get_by_role("heading", name=TEXTS["zh"]["new_job"])).to_be_visible()
    expect(page.get_by_role("button", name=TEXTS["zh"]["start"])).to_be_visible()
    expect(page.get_by_label(TEXTS["zh"]["source"])).to_have_value("demo")
    expect(page.locator("#gg-advice-Q6_K")).to_have_text(TEXTS["zh"]["advice_Q6_K"])


def test_nothing_is_public_but_the_page_and_finished_files(app: App) -> None:
    assert json.loads(app.get("gradio_api/info")[1]) == {"named_endpoints": {}, "unnamed_endpoints": {}}
    (job,) = [job for job in JobStore(app.out).jobs() if job.request.name == "RWKV-x070-Demo-7M"]
    file = f"files/{job.id}/RWKV-x070-Demo-7M-Q8_0.gguf"
    assert app.get(file, Range="bytes=0-3") == (206, b"GGUF")
    record = app.out / "ggufy-state" / "jobs" / f"{job.id}.json"
    assert record.is_file()
    for path in (
        f"files/{job.id}/.lock",
        f"files/{job.id}/..%2F..%2Fggufy-state%2Fjobs%2F{job.id}.json",
        f"files/{job.id}%2F..%2F{job.id}/RWKV-x070-Demo-7M-Q8_0.gguf",
        f"files/{record}",
        f"gradio_api/file={record}",
        f"gradio_api/file={app.out / 'RWKV-x070-Demo-7M-GGUF' / 'RWKV-x070-Demo-7M-Q8_0.gguf'}",
        f"gradio_api/file={ROOT / 'pyproject.toml'}",
        "gradio_api/file=app.py",
        "docs",
        "openapi.json",
    ):
        assert app.get(path)[0] in (403, 404), path


def test_on_a_space_visitors_only_look(
    browser: Browser, llama_bin: Path, tmp_path: Path, open_tab: Callable[..., Tab]
) -> None:
    """The check is the server's: the same request as the form's, sent by hand, is refused too."""
    space = make_app(
        tmp_path, tmp_path, SPACE_ID="somebody/ggufy", SYSTEM="spaces"
    )  # and with no llama.cpp where it should be
    space.start()
    try:
        tab = open_tab(at=space)
        expect(tab.page.get_by_text("This Space is for looking only")).to_be_visible()
        expect(tab.page.get_by_text("which has no llama-quantize")).to_be_visible()
        expect(tab.page.get_by_role("button", name="Start")).to_be_disabled()
        expect(tab.page.get_by_role("button", name="Try again")).to_have_count(0)
        config = json.loads(space.get("config")[1])
        (begin,) = [d["id"] for d in config["dependencies"] if len(d["inputs"]) == 6]
        call = {"data": ["demo", ["Q8_0"], True, "auto", "", ""], "fn_index": begin, "session_hash": "byhand"}
        post = urllib.request.Request(
            f"{space.url}gradio_api/queue/join",
            data=json.dumps(call).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(post).close()
        answer = space.get("gradio_api/queue/data?session_hash=byhand")[1].decode()
        assert "this Space is for looking only" in answer
        assert JobStore(space.out).jobs() == []
        tab.page.goto("about:blank")
    finally:
        assert space.stop() == 0

"""A running app.py and a browser window, for the tests of the page."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from bench.records import write_records
from ggufy.records.store import JobStore
from tests.conftest import Ggufy
from tests.processes import free_port

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WORK_MS = 240_000  # for what the tools do; everything else is quick
EVIL = "<img src=x onerror='window.hacked=1'>${window.hacked=2}{{evil}}"
DEMO = "RWKV-x070-Demo-7M"


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


def make_quant(ggufy: Ggufy, app: App, source: Path, vocab: Path) -> None:
    """Leaves a Q8_0 of a checkpoint where the page finds it."""
    done = ggufy("quantize", source, "--vocab", vocab, "--types", "Q8_0", "--imatrix", "none", "--out", app.out)
    assert done.code == 0, done.err


def write_results(out: Path, count: int) -> None:
    """Finished models that every visitor of a Space may see."""
    for job in write_records(out, count):
        source = replace(job.request.source, public=True)
        JobStore(out).put(job.evolve(request=replace(job.request, source=source)))


def start(tab: Tab, *types: str, source: str = "demo") -> None:
    """Fills the form as a visitor would, and presses Start."""
    tab.page.locator("#gg-source").get_by_role("textbox").fill(source)
    tab.page.get_by_role("button", name="Clear", exact=True).first.click()
    for kind in types:
        tab.page.get_by_role("checkbox", name=kind, exact=True).check()
    tab.page.get_by_role("button", name="Start").click()


def unfold(tab: Tab) -> None:
    """Opens the types that are not recommended."""
    tab.page.locator("#gg-types summary").click()
    expect(tab.page.locator("#gg-types details")).to_have_attribute("open", "")


def open_more(tab: Tab) -> None:
    """Opens what is folded away, and waits until gradio has made it and given it its values."""
    tab.page.get_by_role("button", name="More options").click()
    for choice in ("imatrix", "outtype", "mix", "mode"):
        expect(tab.page.locator(f"#gg-{choice} input:checked")).to_have_count(1)
    expect(tab.page.locator("#gg-name input, #gg-name textarea")).to_be_editable()


def finished(tab: Tab, name: str) -> Locator:
    """The card of a job, once it is done."""
    card = tab.card(name)
    expect(card).to_have_class(re.compile("gg-done"), timeout=WORK_MS)
    return card

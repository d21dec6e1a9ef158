"""How the page answers while a job uses every thread that it may, what an idle tab costs with many finished jobs, and
how long a chat takes to begin from cold."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
from gradio_client import Client
from playwright.sync_api import Browser, BrowserType, Page, Response, sync_playwright

from bench.records import write_records
from ggufy import demo
from ggufy.llama.install import Llama
from ggufy.service.chat_settings import ChatSettings
from ggufy.service.conversations import Chats
from ggufy.system import resources
from tests.processes import free_port

LIMIT_ANSWER_S, LIMIT_PROGRESS_S, LIMIT_TOKEN_S, LIMIT_LOAD_S = 1.0, 2.0, 3.0, 2.0
_ROOT = Path(__file__).parent.parent
_REQUESTS = 200
_RECORDS, _IDLE_S, _SETTLE_S = 500, 30.0, 15.0
LIMIT_IDLE_BYTES, LIMIT_IDLE_PERCENT = 20_000, 3.0
# Notes when each step is first shown as done.
_WATCH = """() => {
  window.seen = {};
  const look = () => document.querySelectorAll(".gg-step-done").forEach((step) => {
    window.seen[step.dataset.step] ??= Date.now() / 1000;
  });
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, attributes: true });
  look();
}"""


def bench(folder: Path, llama: Llama) -> list[str]:
    """Lines for the report."""
    with _page(folder / "page", llama) as (url, _):
        loads, elsewhere, delays, answers = _measure(url, folder / "page")
    idle = idle_lines(folder / "many", llama)
    tokens = _first_tokens(folder / "page" / f"{demo.MODEL}-GGUF" / f"{demo.MODEL}-Q4_K_M.gguf", llama)
    p99 = sorted(answers)[int(0.99 * len(answers))]
    return [
        f"the page while a job runs on every thread ({_REQUESTS} requests)",
        f"  GET /: median {1000 * statistics.median(answers):.0f} ms, p99 {1000 * p99:.0f} ms "
        f"(bar: under {LIMIT_ANSWER_S:.0f} s)",
        f"  a finished step is on the page after {statistics.median(delays):.1f} s, at most {max(delays):.1f} s "
        f"(bar: {LIMIT_PROGRESS_S:.0f} s; {len(delays)} steps)",
        f"  page load until the jobs show: {statistics.median(loads):.1f} s (bar: {LIMIT_LOAD_S:.0f} s), "
        f"{elsewhere} requests to other hosts",
        *idle,
        f"chat with the demo's Q4_K_M: first token after {statistics.median(tokens):.2f} s from cold, at most "
        f"{max(tokens):.2f} s (bar: {LIMIT_TOKEN_S:.0f} s)",
    ]


def idle_lines(out: Path, llama: Llama) -> list[str]:
    """What one tab costs that nobody touches, while nothing runs and many jobs are done."""
    write_records(out, _RECORDS)
    with _page(out, llama) as (url, process), sync_playwright() as playwright:
        browser = _browser(playwright.chromium)
        page = browser.new_page()
        load = _load(page, url, [])
        page.wait_for_timeout(1000 * _SETTLE_S)
        polls: list[tuple[int, float]] = []
        page.on("response", lambda response: polls.append(_poll(response)) if _is_poll(response) else None)
        began, before = time.perf_counter(), _cpu_seconds(process)
        page.wait_for_timeout(1000 * _IDLE_S)
        share = (_cpu_seconds(process) - before) / (time.perf_counter() - began)
        browser.close()
    sizes, times = [size for size, _ in polls], [seconds for _, seconds in polls]
    return [
        f"an idle tab with {_RECORDS} finished jobs of 29 types ({len(polls)} polls)",
        f"  {statistics.mean(sizes):.0f} bytes a poll to and fro, at most {max(sizes)} (bar: {LIMIT_IDLE_BYTES}); "
        f"{100 * share:.1f} % of a core (bar: {LIMIT_IDLE_PERCENT:.0f} %)",
        f"  answers: median {1000 * statistics.median(times):.0f} ms, at most {1000 * max(times):.0f} ms; "
        f"page load until the jobs show: {load:.1f} s",
    ]


def _is_poll(response: Response) -> bool:
    return "/run/predict" in response.url


def _poll(response: Response) -> tuple[int, float]:
    """(bytes of request and answer, seconds until it had come)."""
    response.finished()
    sizes = cast(dict[str, int], response.request.sizes())
    return sum(sizes.values()), response.request.timing["responseEnd"] / 1000


def _cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Of the page and everything that it has started."""
    page = psutil.Process(process.pid)
    times = [one.cpu_times() for one in (page, *page.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def _browser(chromium: BrowserType) -> Browser:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "no Chromium on this machine"
    return chromium.launch(executable_path=path, args=["--no-sandbox"])


@contextmanager
def _page(out: Path, llama: Llama) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    settings = {
        "GGUFY_OUT": str(out),
        "GGUFY_LLAMA_DIR": str(llama.bin),
        "GGUFY_THREADS": str(max(1, int(resources.allowed_cpus()))),
        "GRADIO_SERVER_PORT": str(port),
    }
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=_ROOT, env={**os.environ, **settings}, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        _until(lambda: _answers(url))
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _measure(url: str, out: Path) -> tuple[list[float], int, list[float], list[float]]:
    client = Client(url, verbose=False)
    job = client.predict("demo", "all", evaluate=False, api_name="/start_job")["job_id"]
    elsewhere: list[str] = []
    with sync_playwright() as playwright:
        browser = _browser(playwright.chromium)
        loads = []
        for _ in range(5):
            page = browser.new_page()
            loads.append(_load(page, url, elsewhere))
            page.close()
        page = browser.new_page()
        _load(page, url, elsewhere)
        page.evaluate(_WATCH)
        answers = []
        for _ in range(_REQUESTS):
            began = time.perf_counter()
            with urllib.request.urlopen(url) as answer:
                answer.read()
            answers.append(time.perf_counter() - began)
            page.wait_for_timeout(100)
        while client.predict(job, api_name="/job_status")["status"] == "running":
            page.wait_for_timeout(500)
        page.wait_for_timeout(2000)
        seen: dict[str, float] = page.evaluate("window.seen")
        browser.close()
    folder = out / f"{demo.MODEL}-GGUF"
    made = {f"quantize {path.stem.rpartition('-')[2]}": path.stat().st_ctime for path in folder.glob("*.gguf")}
    opened = min(seen.values())  # what was done before the page was opened says nothing
    delays = [seen[step] - made[step] for step in seen if step in made and made[step] > opened]
    return loads, len(elsewhere), delays, answers


def _load(page: Page, url: str, elsewhere: list[str]) -> float:
    page.on("request", lambda r: elsewhere.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
    began = time.perf_counter()
    page.goto(url)
    page.locator(".gg-job").first.wait_for()
    return time.perf_counter() - began


def _first_tokens(model: Path, llama: Llama) -> list[float]:
    """Seconds from a message to the reply's first text, each time with a new process."""
    found = []
    for _ in range(5):
        chats = Chats(lambda: llama, lambda who: {model.name: model}, lambda: 1)
        began = time.perf_counter()
        for _ in chats.say("bench", "a", model=model.name, settings=ChatSettings(), message="What is a list?"):
            if len(chats.turns("bench", "a")) > 1:
                break
        found.append(time.perf_counter() - began)
        chats.close()
    return found


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url):
            return True
    except OSError:
        return False


def _until(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline, "the page did not start"
        time.sleep(0.1)

"""How the page answers and ends while every commit to the Hub takes long: the test Hub behind the real page."""

from __future__ import annotations

import functools
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradio_client import Client

from ggufy.llama.install import Llama
from ggufy.system.settings import Settings
from tests.hub_fixture import ALICE, LocalHub, running_hub
from tests.hub_outage import SILENT
from tests.page_client import PageClient
from tests.processes import free_port

LIMIT_ANSWER_S, LIMIT_CLICK_S, LIMIT_END_S = 0.5, 0.2, 3.0
COMMIT_S = 8.0
_ROOT = Path(__file__).parent.parent
_ROUNDS = 5  # of clicks, in each state
_POLL_S = 0.25
_IDLE_S = 10.0
Times = dict[str, list[float]]  # seconds by kind


@dataclass(frozen=True, kw_only=True)
class Running:
    """A page, and a tab of it."""

    process: subprocess.Popen[bytes]
    tab: PageClient
    client: Client


def bench(folder: Path, llama: Llama) -> list[str]:
    """Lines for the report."""
    slow: Times = defaultdict(list)
    silent: Times = defaultdict(list)
    idle: list[float] = []
    with running_hub() as hub:
        start = functools.partial(_page, folder / "clicks", hub, llama)
        with start() as page:
            _poll(page, idle, _IDLE_S)
            hub.fault("POST .*/commit/", delay=COMMIT_S, times=1 << 30)
            _click(page, "slow", slow)
            hub.mend()
            hub.outage("/api/", how=SILENT, seconds=3600)
            _click(page, "silent", silent)
            hub.back()
        ends = list(_ends(start, hub))
    return [
        f"the page while nothing happens: polls {_slowest(idle)}",
        f"while each commit to the Hub takes {COMMIT_S:.0f} s: {_told(slow)}",
        f"while the Hub gives no answer: {_told(silent)}",
        f"bars: {LIMIT_ANSWER_S:g} s for polls, {LIMIT_CLICK_S:g} s for clicks",
        f"SIGTERM to end: {', '.join(f'{kind} {took:.2f} s' for kind, took in ends)} (bar: {LIMIT_END_S:g} s)",
    ]


def _told(times: Times) -> str:
    return ", ".join(f"{kind} {_slowest(seconds)}" for kind, seconds in times.items())


def _click(page: Running, name: str, times: Times) -> None:
    """A person who cannot decide."""
    for number in range(_ROUNDS):
        job = _timed(times["start"], functools.partial(_start, page, f"{name}-{number}"))
        for action in ("pause", "resume", "cancel", "retry"):
            _poll(page, times["polls"], 1.0)
            _timed(times[action], functools.partial(page.tab.act, action, job))
        _poll(page, times["polls"], COMMIT_S / 2)
        page.tab.act("cancel", job)


def _start(page: Running, name: str) -> str:
    started = page.client.predict("demo", "recommended", evaluate=False, name=name, api_name="/start_job")
    return str(started["job_id"])


def _poll(page: Running, seconds: list[float], for_s: float) -> None:
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        _timed(seconds, page.tab.look)
        time.sleep(_POLL_S)


def _ends(start: Callable[[], Any], hub: LocalHub) -> Iterator[tuple[str, float]]:
    """Seconds from SIGTERM to the end, in each state."""
    with start() as page:
        yield "idle", _end(page)
    with start() as page:
        job = _start(page, "ends")
        while page.client.predict(job, api_name="/job_status")["status"] != "running":
            time.sleep(0.1)
        url = f"{page.tab.url}gradio_api/heartbeat/bench"
        with urllib.request.urlopen(url) as tab:  # a tab leaves a request open as long as it is there
            tab.read(1)
            yield "with a job and a tab", _end(page)
    with start() as page:
        hub.outage("/api/", how=SILENT, seconds=3600)
        while not hub.away()["asked"]:
            time.sleep(0.1)
        yield "with a silent Hub", _end(page)
    hub.back()


def _end(page: Running) -> float:
    began = time.perf_counter()
    page.process.send_signal(signal.SIGTERM)
    page.process.wait()
    return time.perf_counter() - began


@contextmanager
def _page(out: Path, hub: LocalHub, llama: Llama) -> Iterator[Running]:
    out.mkdir(exist_ok=True)
    port = free_port()
    environment = hub.environment(out) | {
        "HF_TOKEN": ALICE,
        "GGUFY_HUB": "hf",
        "GGUFY_COMMITS": "100000",
        "GGUFY_LEASE": "60",
        "GGUFY_OUT": str(out),
        "GGUFY_CACHE": str(Settings.from_env().cache),
        "GGUFY_LLAMA_DIR": str(llama.bin),
        "GRADIO_SERVER_PORT": str(port),
        "PYTHONPATH": str(_ROOT),
    }
    process = subprocess.Popen([sys.executable, "app.py"], cwd=_ROOT, env=environment, stderr=(out / "err").open("ab"))
    try:
        url = f"http://127.0.0.1:{port}/"
        while not _answers(url):
            assert process.poll() is None, "the page did not start"
            time.sleep(0.1)
        page = Running(process=process, tab=PageClient(url), client=Client(url, verbose=False))
        while "gg-prepare" in page.tab.look():
            time.sleep(0.1)
        yield page
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url):
            return True
    except OSError:
        return False


def _timed(seconds: list[float], call: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - began)
    return result


def _slowest(seconds: list[float]) -> str:
    return f"{max(seconds):.2f} s (median {statistics.median(seconds):.2f})"

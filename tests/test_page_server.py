"""The page's server notices when it is late, which the automatic share of the CPU follows."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import threading
import time
import urllib.request
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from ggufy.ui.server import PageServer
from tests.processes import free_port


def test_a_stream_to_an_open_tab_does_not_hold_up_the_end() -> None:
    """As gradio's heartbeat: it would never end by itself. The bound of the test is that of a hang."""
    app = FastAPI()

    @app.get("/beat")
    async def beat() -> StreamingResponse:
        async def for_ever() -> AsyncIterator[bytes]:
            while True:
                yield b"beat"
                await asyncio.sleep(0.01)

        return StreamingResponse(for_ever())

    @app.get("/held")
    def held() -> str:
        stuck.set()
        go.wait(60)
        return "done"

    stuck, go = threading.Event(), threading.Event()
    server = PageServer(app, "127.0.0.1", free_port())
    server.start()
    asked = threading.Thread(target=_ask, args=(f"{server.url}held",), daemon=True)
    asked.start()
    stuck.wait(60)
    with urllib.request.urlopen(f"{server.url}beat", timeout=30) as stream:
        assert stream.read(4) == b"beat"
        server.close(0.1)  # returns: that is the test
    go.set()
    asked.join(60)


def _ask(url: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()


def test_a_loop_that_is_held_up_is_told_as_late() -> None:
    app = FastAPI()

    @app.get("/busy")
    async def busy() -> str:
        time.sleep(2.5)  # noqa: ASYNC251 - it is to hold the loop up
        return "done"

    port = free_port()
    told: list[float] = []
    server = PageServer(app, "127.0.0.1", port, late=told.append)
    server.start()
    try:
        with urllib.request.urlopen(f"{server.url}busy", timeout=30) as answer:
            assert answer.read() == b'"done"'
        deadline = time.monotonic() + 30
        while not told and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        server.close()
    assert max(told) > 1.0

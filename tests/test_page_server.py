"""The page's server notices when it is late, which the automatic share of the CPU follows."""

from __future__ import annotations

import socket
import time
import urllib.request

from fastapi import FastAPI

from ggufy.ui.server import PageServer


def test_a_loop_that_is_held_up_is_told_as_late() -> None:
    app = FastAPI()

    @app.get("/busy")
    async def busy() -> str:
        time.sleep(2.5)  # noqa: ASYNC251 - it is to hold the loop up
        return "done"

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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

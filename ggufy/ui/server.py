"""The web server: gradio's page, our routes, and uvicorn in a thread.

Not gradio's own `launch`: on a Space it starts a reloader for developers, and it leaves no way to end in good order.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from ggufy.core.errors import UsageError

_START_S = 60.0
_LOOK_S = 1.0
_END_S = 1  # for requests that are under way; streams to open tabs never end by themselves


class PageServer:
    """Serves an app from `start` to `close`. `late` gets, once a second, how many seconds late the server is."""

    def __init__(self, app: FastAPI, host: str, port: int, *, late: Callable[[float], None] = lambda seconds: None):
        self.host, self.port = host, port
        self._late = late
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_END_S)
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._run, name="ggufy-page", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{'localhost' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}/"

    def start(self) -> None:
        """Returns when the page can be asked for. Raises UsageError for a port in use."""
        self._socket = _listen(self.host, self.port)
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise UsageError("the page at {url} did not start: the log says why.", url=self.url)
            time.sleep(0.02)

    def close(self, wait_s: float = _END_S) -> None:
        """Ends what is under way: what does not end by itself within `wait_s`, as the streams to open tabs, by force.
        Returns soon after that, whatever is still held up: its thread does not keep the process."""
        self._server.config.timeout_graceful_shutdown = wait_s  # type: ignore[assignment] # goes to asyncio.wait_for
        self._server.should_exit = True
        self._thread.join(wait_s + 0.5)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        watch = asyncio.create_task(self._watch())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        """What is to happen in the server's loop now happens as late as an answer begins."""
        while True:
            due = time.monotonic() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            self._late(time.monotonic() - due)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        raise UsageError(
            "the page cannot be served on {host}:{port}: stop what uses that port, or set GRADIO_SERVER_PORT to "
            "another.",
            host=host,
            port=port,
        ) from error
    return listener

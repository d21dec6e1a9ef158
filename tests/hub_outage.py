"""Lets the test Hub (hub_server.py) be away as a whole: from a chosen request on, every request of everybody.

    POST /__outage {match, holds, skip, how, seconds}
    DELETE /__outage  it is over (if it refuses connections, it hears that only by itself)
    GET /__outage  {began, over, asked}: `asked` is how many requests it has met

It begins with a request that `match` finds in "METHOD /path" and `holds` in the body, after `skip` of these, and ends
`seconds` later. `how` is one of HOW: what those who ask meet meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import re
import socket
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

BUSY, REFUSES, SILENT = "busy", "refuses", "silent"
HOW = (BUSY, REFUSES, SILENT)  # status 503; no connection, and open ones are cut; no answer, not even afterwards


class Outage:
    """An ASGI application around another, and the listening sockets of its server."""

    def __init__(self, app: Any):
        self.app = app
        self.server: uvicorn.Server | None = None
        self.planned: dict[str, Any] | None = None  # not begun yet
        self.how = ""  # while it is away
        self.began, self.asked = False, 0
        self._end: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"].startswith(("/__fault", "/__log", "/__put")):
            await self.app(scope, receive, send)
        elif scope["path"] == "/__outage":
            await (await self.control(Request(scope, receive)))(scope, receive, send)
        else:
            receive = await self.look(scope, receive)
            await self.meet(scope, receive, send)

    async def meet(self, scope: Any, receive: Any, send: Any) -> None:
        """What this request meets."""
        self.asked += bool(self.how)
        if not self.how:
            await self.app(scope, receive, send)
        elif self.how == BUSY:
            await JSONResponse({"error": "an outage of the test"}, 503)(scope, receive, send)
        elif self.how == SILENT:
            while (await receive())["type"] != "http.disconnect":
                pass

    async def look(self, scope: Any, receive: Any) -> Any:
        """Begins the outage if this is its request; returns what the request is read from then."""
        planned = self.planned
        if planned is None or not re.search(planned["match"], f"{scope['method']} {scope['path']}"):
            return receive
        if planned["holds"]:
            body = await Request(scope, receive).body()
            receive = _again(body, receive)
            if planned["holds"].encode() not in body:
                return receive
        if planned["skip"] > 0:
            planned["skip"] -= 1
        elif self.planned is planned:
            self.begin(planned)
        return receive

    def begin(self, planned: dict[str, Any]) -> None:
        self.planned, self.began, self.how = None, True, planned["how"]
        listener = self.hang_up() if self.how == REFUSES else None
        self._end = asyncio.create_task(self.end_after(planned["seconds"], listener))

    def hang_up(self) -> socket.socket:
        """Cuts every connection, and keeps the port without listening: who connects is refused."""
        assert self.server is not None
        (old,) = (listener for server in self.server.servers for listener in server.sockets)
        address = old.getsockname()
        for server in self.server.servers:
            server.close()
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        self.asked += 1
        new = socket.socket()
        new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        new.bind(address)
        return new

    async def end_after(self, seconds: float, listener: socket.socket | None) -> None:
        await asyncio.sleep(seconds)
        if listener is not None:
            assert self.server is not None
            connected = functools.partial(
                self.server.config.http_protocol_class,
                config=self.server.config,
                server_state=self.server.server_state,
                app_state=self.server.lifespan.state,
            )
            self.server.servers = [await asyncio.get_running_loop().create_server(connected, sock=listener)]
        self.how = ""

    async def control(self, request: Request) -> Response:
        if request.method == "POST":
            self.planned = {"holds": "", "skip": 0} | await request.json()
            self.began, self.asked = False, 0
        elif request.method == "DELETE":
            self.planned, self.how = None, ""
            if self._end:
                self._end.cancel()
        return JSONResponse({"began": self.began, "over": self.began and not self.how, "asked": self.asked})


def _again(body: bytes, receive: Any) -> Any:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def message() -> Any:
        return messages.pop() if messages else await receive()

    return message

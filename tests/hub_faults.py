"""Around the test Hub's application (hub_server.py): the log of requests, and the faults that tests ask for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class Outside:
    """An ASGI application around another."""

    def __init__(self, app: Any):
        self.app = app
        self.log: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        if scope["path"] in ("/__fault", "/__log"):
            await (await self.control(request))(scope, receive, send)
            return
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        line = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode()}
        line |= {"cookie": request.headers.get("Cookie", ""), "host": request.headers.get("Host", "")}
        line |= {"token": token, "range": request.headers.get("Range", ""), "status": 0, "sent": 0}
        self.log.append(line)
        await self.answer(scope, receive, Recorder(send, line), self.fault(f"{line['method']} {line['path']}"))

    async def answer(self, scope: Any, receive: Any, send: Recorder, fault: dict[str, Any]) -> None:
        send.cut, send.delay = fault.get("cut"), fault.get("delay", 0)
        send.says, send.damage = fault.get("says", {}), fault.get("damage")
        if fault.get("no_range"):
            scope = scope | {"headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}
        if "cut" not in fault and send.delay:
            await asyncio.sleep(send.delay)
        if "late" in fault:
            receive = await self.late(scope, receive, fault["late"])
        if "status" not in fault:
            await self.app(scope, receive, send)
            return
        if fault.get("after"):
            await self.app(scope, receive, Recorder(None, {}))
        body = fault.get("body", {"error": "a fault of the test"})
        error = JSONResponse(body, fault["status"], fault.get("headers"))
        await error(scope, receive, send)

    async def late(self, scope: Any, receive: Any, seconds: float) -> Any:
        """Takes in the whole request, and lets it be carried out later, whether anybody still waits or not."""
        body = await Request(scope, receive).body()
        await asyncio.sleep(seconds)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        return again

    def fault(self, request: str) -> dict[str, Any]:
        """The first fault that concerns this request, used up by one."""
        for fault in self.faults:
            if re.search(fault["match"], request) and fault["times"] > 0:
                if fault["skip"] > 0:
                    fault["skip"] -= 1
                    continue
                fault["times"] -= 1
                return fault
        return {}

    async def control(self, request: Request) -> Response:
        if request.url.path == "/__fault" and request.method == "DELETE":
            self.faults.clear()
        elif request.url.path == "/__fault":
            self.faults.append({"times": 1, "skip": 0} | await request.json())
        elif request.method == "DELETE":
            self.log.clear()
        return JSONResponse(self.log)


class Recorder:
    """Passes an answer on (nowhere, if `send` is None), notes its status and size, and cuts it."""

    def __init__(self, send: Any, line: dict[str, Any]):
        self.send, self.line = send, line
        self.cut: int | None = None  # bytes of the body after which the connection drops
        self.delay = 0.0  # seconds before that
        self.says: dict[str, str] = {}  # headers that the answer has instead of its own
        self.damage: int | None = None  # index of a byte of the body that arrives as another

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if self.send is None:
            return
        if message["type"] == "http.response.start":
            self.line["status"] = message["status"]
            named = {name.lower().encode(): value.encode() for name, value in self.says.items()}
            kept = [(name, value) for name, value in message.get("headers", ()) if name not in named]
            message = {**message, "headers": [*kept, *named.items()]}
        elif self.cut is not None and len(message.get("body", b"")) > self.cut:
            self.line["sent"] += self.cut
            await self.send({**message, "body": message["body"][: self.cut], "more_body": True})
            await asyncio.sleep(self.delay)
            raise ConnectionAbortedError("cut by the test")
        elif self.damage is not None and len(message.get("body", b"")) > self.damage:
            body = bytearray(message["body"])
            body[self.damage] ^= 1
            message = {**message, "body": bytes(body)}
        self.line["sent"] += len(message.get("body", b""))
        await self.send(message)

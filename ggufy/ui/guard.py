"""What stands before every request to a page that is not a Space's: its own names, and a password if there is one.

A browser can be led to ask a page on its own machine under a foreign name (DNS rebinding), and then belongs to that
name's scripts. And gradio's own sign-in leaves some of its routes, MCP among them, and ours open.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HEALTH = "/health"  # of which anybody may know
_SIGN_IN = frozenset({HEALTH, "/", "/login", "/login/", "/logout", "/theme.css", "/favicon.ico", "/manifest.json"})
_LOOKS = ("/static/", "/assets/", "/svelte/")  # gradio's own scripts and styles


class KnownHosts:
    """ASGI middleware: refuses requests for a name that `known` does not know."""

    def __init__(self, app: ASGIApp, known: Callable[[str], bool]):
        self.app, self.known = app, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.known(HTTPConnection(scope).headers.get("host", "")):
            await self.app(scope, receive, send)
        else:
            await _refuse(400, "this page is not known by that name: add it to GGUFY_HOSTS.", scope, receive, send)


class Locked:
    """ASGI middleware: lets those through who have signed in at gradio's page, or show the password (or `key`, which
    the program keeps for its own use) in a header: `Authorization: Basic` with any name, or `Bearer`.

    `cookies` gives the names of the cookies that gradio's sign-in sets, and what they hold now.
    """

    def __init__(self, app: ASGIApp, password: str, key: str, cookies: Callable[[], tuple[list[str], set[str]]]):
        self.app, self.password, self.key, self.cookies = app, password, key, cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in _SIGN_IN or scope["path"].startswith(_LOOKS):
            await self.app(scope, receive, send)
            return
        asked, (names, signed_in) = HTTPConnection(scope), self.cookies()
        if self._shown(asked.headers.get("authorization", "")):  # gradio itself asks for its cookie
            others = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
            kept = [asked.headers["cookie"]] if "cookie" in asked.headers else []
            cookie = "; ".join([*kept, f"{names[0]}={self.key}"])
            await self.app({**scope, "headers": [*others, (b"cookie", cookie.encode("latin-1"))]}, receive, send)
        elif any(asked.cookies.get(name, "") in signed_in for name in names):
            await self.app(scope, receive, send)
        else:
            await _refuse(401, "this page needs a password: sign in, or send it as a header.", scope, receive, send)

    def _shown(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return any(secrets.compare_digest(given.encode(), word.encode()) for word in (self.password, self.key))


async def _refuse(status: int, why: str, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})
    else:
        await PlainTextResponse(f"{why}\n", status_code=status)(scope, receive, send)

"""A large file behind HTTP, of which a little is read: a file object over range requests.

`HttpFile` asks for blocks of 64 KiB, keeps them, and asks for more at once when it is read from front to back. It
never asks for more than its budget of bytes and time, and it drops the connection to a server that sends the whole
file instead of a part. The redirect to where a file of the Hub is stored is followed once; the token goes to the Hub
only. Where strangers may name addresses, those inside the network that the program runs in are not asked.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import httpx2
from huggingface_hub import get_session

from ggufy.core.errors import Cancelled, SourceAway, SourceError
from ggufy.core.messages import Message
from ggufy.core.words import human_size
from ggufy.net.hub_private import build_hf_headers, hf_raise_for_status
from ggufy.net.session import Reference, ask, check_stopped, use_timeouts

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK = 1 << 16
_MOST_AHEAD = 1 << 20  # bytes asked for at once when a file is read from front to back
BYTES, SECONDS = 8 << 20, 20.0  # the budget: heads of the largest models take some 2 MB
SILENCE_S = 10.0
_TIMEOUT = httpx2.Timeout(SILENCE_S, connect=5.0)
_REDIRECTS = 6
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Deadline:
    """A moment that was set when this was made."""

    def __init__(self, seconds: float = SECONDS):
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def passed(self) -> bool:
        return time.monotonic() > self.end


class HttpFile(io.RawIOBase):
    """A seekable file at `url`. With `wanted`, a file of the Hub, the token goes along; `shown` is what people read;
    with `public`, only addresses of the public internet are asked.

    `size` is the file's in bytes, `version` the server's mark of it (empty: it has none), `received` what has arrived.
    Making one and reading from it raise SourceError, with what to do next, when the file cannot be had in parts, or
    more is read than `budget` bytes.
    """

    def __init__(
        self,
        url: str,
        *,
        shown: str,
        wanted: Reference | None = None,
        token: str | None = None,
        deadline: Deadline | None = None,
        budget: int = BYTES,
        public: bool = False,
    ):
        super().__init__()
        use_timeouts()
        self.received, self.requests = 0, 0
        self.size, self.version = -1, ""
        self._url, self._shown, self._wanted, self._budget = url, shown, wanted, budget
        self._token, self._public = token if wanted else None, public
        self._headers: Mapping[str, str] = build_hf_headers(token=token or False) if wanted else {}
        self._start = self._url, self._headers  # before any redirect
        self._deadline = deadline or Deadline()
        self._blocks: dict[int, bytes] = {}
        self._position, self._following, self._ahead = 0, 1, 0
        self._keep(0, self._fetch(0, BLOCK))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._position + len(view), self.size)
        count = max(0, stop - self._position)
        if count:
            first, last = self._position // BLOCK, (stop - 1) // BLOCK
            self._load(first, last)
            data = b"".join(self._blocks[block] for block in range(first, last + 1))
            start = self._position - first * BLOCK
            view[:count] = data[start : start + count]
            self._position = stop
        return count

    def _load(self, first: int, last: int) -> None:
        """Makes sure that these blocks are here, in one request."""
        missing = [block for block in range(first, last + 1) if block not in self._blocks]
        if not missing:
            return
        first, last = missing[0], missing[-1]
        end = (self.size - 1) // BLOCK
        if first == self._following:
            self._ahead = min(max(2 * self._ahead, 1), _MOST_AHEAD // BLOCK)
            affordable = (self._budget - self.received) // BLOCK - (last - first + 1)
            last = min(end, last + max(0, min(self._ahead, affordable)))
        elif last == end and first == last and first - 1 not in self._blocks:
            first -= 1  # the last block may be short, and what is read at the end of a file starts before it
        self._following = last + 1
        self._keep(first, self._fetch(first * BLOCK, min((last + 1) * BLOCK, self.size)))

    def _keep(self, first: int, data: bytes) -> None:
        for start in range(0, len(data), BLOCK):
            self._blocks[first + start // BLOCK] = data[start : start + BLOCK]

    def _fetch(self, start: int, stop: int) -> bytes:
        if self.received + stop - start > self._budget:
            raise SourceError(
                "{url} has more than {size} of headers, too much to look at from here: download it yourself and "
                "give the file.",
                url=self._shown,
                size=human_size(self._budget),
            )
        try:
            return ask(
                lambda: self._ask(start, stop),
                self._wanted,
                token=self._token,
                shown=self._shown,
                stopped=self._deadline.passed,
            )
        except Cancelled as error:
            raise SourceAway(
                "{url} was not answered within {seconds} seconds: try again later.",
                url=self._shown,
                seconds=f"{self._deadline.seconds:.0f}",
            ) from error

    def _ask(self, start: int, stop: int) -> bytes:
        """One request for a part, cut off after it whatever the server sends."""
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        self.requests += 1
        with self._answer(headers) as response:
            if self.size < 0 and response.status_code == 416:  # an empty file has no first byte
                self.size = 0
                return b""
            if response.status_code in (401, 403) and self._url != self._start[0]:
                self._url, self._headers = (
                    self._start
                )  # what the redirect signed holds no longer, or not for this part
                raise httpx2.RemoteProtocolError(Message("the place that the redirect led to refuses"))
            hf_raise_for_status(response)
            count = self._checked(response, start, stop)
            body = bytearray()
            for piece in response.iter_raw():
                self.received += len(piece)
                body += piece
                if len(body) >= count:
                    break
                check_stopped(self._deadline.passed)
            self._settle(response)
        if len(body) < count:
            raise httpx2.RemoteProtocolError(Message("the answer was cut"))
        return bytes(body[:count])

    @contextlib.contextmanager
    def _answer(self, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """The answer at the end of the redirects; the client leaves the token behind where they lead elsewhere."""
        session = get_session()
        request: httpx2.Request | None = session.build_request("GET", self._url, headers=headers, timeout=_TIMEOUT)
        for _ in range(_REDIRECTS):
            assert request is not None
            if self._public and not is_public(request.url.host):
                raise SourceError(
                    "{url} is not on the public internet: download it yourself and give the file.", url=self._shown
                )
            response = session.send(request, stream=True, follow_redirects=False)
            with contextlib.closing(response):
                request = response.next_request
                if request is None:
                    yield response
                    return
        raise SourceError("{url} is redirected again and again: give the address of the file itself.", url=self._shown)

    def _checked(self, response: httpx2.Response, start: int, stop: int) -> int:
        """Bytes that the answer holds, once it is known to be the part that was asked for."""
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise SourceError(
                "{url} is a web page, not a model: give the address of the file itself.", url=self._shown
            )
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or match is None:
            raise SourceError(
                "the server of {url} does not send parts of files: download it yourself and give the file.",
                url=self._shown,
            )
        first, last, total = (int(number) for number in match.groups())
        if self.size < 0:
            self.size = total
        if (first, last + 1, total) != (start, min(stop, self.size), self.size):
            raise SourceError(
                "the server of {url} sends another part than was asked for: try again later.", url=self._shown
            )
        return last + 1 - first

    def _settle(self, response: httpx2.Response) -> None:
        """The next request goes straight to where the redirects led; no token goes to another host."""
        if _origin(response.url) != _origin(httpx2.URL(self._url)):
            self._headers = {}
        self._url = str(response.url)
        self.version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def is_public(host: str) -> bool:
    """True if every address of a host is of the public internet; an unknown host is left to the client to report."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return True
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    return all((getattr(address, "ipv4_mapped", None) or address).is_global for address in addresses)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port

"""One file behind HTTP, of which parts are read.

`HttpFile` reads parts, in several threads if need be. Every answer is held against what is known of the file: the part
that was asked for, the whole file's size, and its version. Of a pinned file of the Hub that is its sha256, which the
Hub names whenever it is asked where the file is stored; the address that it gives is then used until it is refused,
and its ETag must stay the same meanwhile. At a plain address it is the ETag (or Last-Modified). A part that was cut
off is continued inside, and a server that sends the whole file is left at once. `BlockFile` is seekable.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2

from ggufy.core.errors import CannotStream, SourceChanged, SourceError
from ggufy.core.messages import Message
from ggufy.core.source import Source
from ggufy.core.words import human_size
from ggufy.net.http_get import Address, Answer, http_get
from ggufy.net.hub_errors import source_errors, status_of
from ggufy.net.session import ASK_TRIES, DOWNLOAD_TIMEOUT, DOWNLOAD_TRIES, FAILURES, check_stopped, with_retries
from ggufy.system.clock import never

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK = 1 << 16
_MOST_AHEAD = 1 << 20  # bytes asked for at once when a file is read from front to back
SECONDS = 20.0
_LOOK_S = 0.2
_REFUSALS = (401, 403, 404, 410)  # of a signed address that has expired
_NOTHING_THERE = 416  # an empty file has no first byte


class Deadline:
    """A moment that was set when this was made."""

    def __init__(self, seconds: float = SECONDS):
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def passed(self) -> bool:
        return time.monotonic() > self.end


@dataclass(frozen=True)
class _Place:
    """Where parts are asked for."""

    address: Address
    version: str = ""  # what answers from there must say; empty: not known yet


class HttpFile:
    """The file at an address; with `source` it must be what was pinned.

    `size` is the file's, in bytes, -1 until the first part of a file that is not pinned has arrived; `version` is the
    server's mark of it (empty: it has none, or the Hub vouches); `received` is what has arrived, in bytes, and
    `requests` how often was asked.
    """

    def __init__(
        self,
        address: Address,
        source: Source | None = None,
        *,
        timeout: httpx2.Timeout = DOWNLOAD_TIMEOUT,
        stopped: Callable[[], bool] = never,
    ):
        self.address, self.version = address, source.etag if source else ""
        self.size = source.size if source else -1
        self.received = self.requests = 0
        self._source, self._timeout, self._stopped = source, timeout, stopped
        self._closed, self._counting = threading.Event(), threading.Lock()
        self._place = self._start = _Place(address, self.version)

    def close(self) -> None:
        """Lets reads in other threads end soon, with Cancelled."""
        self._closed.set()

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop` of the file, all of them that it has.

        Raises SourceError when the server refuses or stays away, CannotStream when it sends no parts, SourceChanged
        when it holds another file than the pinned one, and Cancelled soon after `stopped()` turned true.
        """
        body = bytearray()

        def more() -> None:
            while self.size < 0 or len(body) < min(stop, self.size) - start:
                self._append(body, start, stop)

        tries = DOWNLOAD_TRIES if self._source else ASK_TRIES
        with source_errors(self.address.wanted, token=self.address.token, shown=self.address.shown):
            with_retries(more, tries=tries, reached=lambda: len(body), stopped=self._ended)
        return body

    def wait(self, part: Future[bytearray]) -> bytearray:
        """What another thread reads; Cancelled soon after `stopped()` turned true, also while the server is silent."""
        while not part.done():
            check_stopped(self._stopped)
            futures.wait([part], timeout=_LOOK_S)
        return part.result()

    def _ended(self) -> bool:
        return self._closed.is_set() or self._stopped()

    def _append(self, body: bytearray, start: int, stop: int) -> None:
        """One request: adds to `body` what the server sends of the rest."""
        place, had = self._place, len(body)
        with self._counting:
            self.requests += 1
        try:
            with http_get(place.address, span=(start + had, stop), timeout=self._timeout) as answer:
                self._check(answer, place, start + had, stop)
                for block in answer.response.iter_raw():  # as it comes: what a block of a fixed size lacks is lost
                    check_stopped(self._ended)
                    body += block[: stop - start - len(body)]
                    with self._counting:
                        self.received += len(block)
        except FAILURES as error:
            if status_of(error) in _REFUSALS and place is not self._start:
                self._place = self._start
                raise httpx2.RemoteProtocolError(Message("the place that the redirect led to refuses")) from error
            if status_of(error) != _NOTHING_THERE:
                raise
            if self.size >= 0:  # shorter than it was
                raise self._changed() from error
            self.size = 0
            return
        if len(body) == had:
            raise httpx2.RemoteProtocolError(Message("the answer held nothing new"))

    def _check(self, answer: Answer, place: _Place, start: int, stop: int) -> None:
        """Raises unless the answer is the part that was asked for, of the file that is known."""
        source, shown = self._source, self.address.shown
        if source is None and answer.is_web_page:
            raise SourceError("{url} is a web page, not a model: give the address of the file itself.", url=shown)
        if source and source.sha256 and answer.sha256 - {source.sha256}:
            raise self._changed()
        if place.version and answer.version != place.version:
            raise self._changed()
        if answer.part is None:
            raise CannotStream(
                "the server of {url} does not send parts of files: download it yourself and give the file.", url=shown
            )
        first, last, total = answer.part
        if self.size not in (-1, total):
            raise self._changed()
        if first != start or not start < last <= stop:
            raise CannotStream(
                "the server of {url} sends another part than was asked for: try again later.", url=shown
            )
        if source and not (place.version or answer.sha256):
            raise CannotStream("the server of {name} does not say which version it sends.", name=shown)
        self.size = total
        self.version = answer.version
        if place is self._start:  # from now on, straight to where that led
            self._place = _Place(place.address.after(answer.response.url), answer.version)

    def _changed(self) -> SourceError:
        shown, source = self.address.shown, self._source
        if source is None:
            return SourceError(
                "the server of {url} sends another part than was asked for: try again later.", url=shown
            )
        if source.url:
            return SourceChanged(
                "{url} holds another file than when the job was made: start it anew with {NAME}.", url=shown
            )
        commit = source.revision[:8]
        return SourceChanged(
            "the server sends another file than {path} of commit {commit}: {AGAIN}.", path=source.path, commit=commit
        )


class BlockFile(io.RawIOBase):
    """A seekable file over an HttpFile, for parsers: reads blocks, keeps them, and reads more at once when it is read
    from front to back. Making one and reading from it raise what `HttpFile.read` raises, and SourceError for more than
    `budget` bytes."""

    def __init__(self, file: HttpFile, *, budget: int):
        super().__init__()
        self._file, self._budget = file, budget
        self._blocks: dict[int, bytes] = {}
        self._position, self._following, self._ahead = 0, 1, 0
        self._keep(0, 0, BLOCK)
        self._size = file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._position + len(view), self._size)
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
        end = (self._size - 1) // BLOCK
        if first == self._following:
            self._ahead = min(max(2 * self._ahead, 1), _MOST_AHEAD // BLOCK)
            affordable = (self._budget - self._file.received) // BLOCK - (last - first + 1)
            last = min(end, last + max(0, min(self._ahead, affordable)))
        elif last == end and first == last and first - 1 not in self._blocks:
            first -= 1  # the last block may be short, and what is read at the end of a file starts before it
        self._following = last + 1
        self._keep(first, first * BLOCK, min((last + 1) * BLOCK, self._size))

    def _keep(self, first: int, start: int, stop: int) -> None:
        """Reads blocks from number `first` on."""
        if self._file.received + stop - start > self._budget:
            raise SourceError(
                "{url} has more than {size} of headers, too much to look at from here: download it yourself and "
                "give the file.",
                url=self._file.address.shown,
                size=human_size(self._budget),
            )
        data = self._file.read(start, stop)
        for at in range(0, len(data), BLOCK):
            self._blocks[first + at // BLOCK] = bytes(data[at : at + BLOCK])

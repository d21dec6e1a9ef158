"""One pinned file behind HTTP, read in parts by several threads at once.

Every answer is held against what was pinned: the part that was asked for, the file's whole size, and its version. On
the Hub that is the sha256 of the file, which the Hub names (X-Linked-Etag) whenever it is asked where the file is
stored; the address that it gives is then used until it is refused, and its ETag must stay the same meanwhile. At a
plain address it is the ETag (or Last-Modified) that was noted when the job was made. A part that was cut off is
continued inside. No token goes to another host than the Hub.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field

import httpx2
from huggingface_hub import get_session, hf_hub_url

from ggufy.core.errors import CannotStream, SourceChanged
from ggufy.core.job import Source
from ggufy.core.messages import Message
from ggufy.net.hub_private import build_hf_headers, hf_raise_for_status
from ggufy.net.session import (
    DOWNLOAD_TIMEOUT,
    DOWNLOAD_TRIES,
    Reference,
    check_stopped,
    source_errors,
    use_timeouts,
    with_retries,
)

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_LOOK_S = 0.2
_REFUSALS = (401, 403, 404, 410)  # of a signed address that has expired


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """Where parts are asked for."""

    url: str
    headers: Mapping[str, str] = field(repr=False)  # may hold a token
    etag: str = ""  # what answers from there must say; empty: not known yet


class VerifiedHttpFile:
    """Parts of a remote source; `read` may be called by several threads.

    `received` is what has arrived, in bytes, `requests` how often was asked.
    """

    def __init__(
        self,
        source: Source,
        *,
        token: str | None = None,
        endpoint: str | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ):
        use_timeouts()
        self.size, self.name = source.size, source.path.rpartition("/")[2]
        self.received = self.requests = 0
        self._source, self._stopped = source, stopped
        self._token = None if source.url else token
        self._closed, self._counting = threading.Event(), threading.Lock()
        if source.url:
            self._wanted = None
            self._start = _Origin(url=source.url, headers={}, etag=source.etag)
        else:
            self._wanted = Reference(repo_id=source.model_id, file=source.path, revision=source.revision)
            url = hf_hub_url(source.model_id, source.path, revision=source.revision, endpoint=endpoint)
            self._start = _Origin(url=url, headers=build_hf_headers(token=token or False))
        self._place = self._start

    def close(self) -> None:
        """Lets reads in other threads end soon, with Cancelled."""
        self._closed.set()

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes `start` to `stop` of the file, all of them.

        Raises SourceError when the server refuses or stays away, CannotStream when it sends no parts, SourceChanged
        when it holds another file, and Cancelled soon after `stopped()` turned true.
        """
        body = bytearray()

        def more() -> None:
            while len(body) < stop - start:
                self._append(body, start, stop)

        shown = self._source.url
        with source_errors(self._wanted, token=self._token, shown=shown):
            with_retries(more, tries=DOWNLOAD_TRIES, reached=lambda: len(body), stopped=self._ended)
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
        headers = {**place.headers, "Range": f"bytes={start + had}-{stop - 1}", "Accept-Encoding": "identity"}
        with self._counting:
            self.requests += 1
        with get_session().stream(
            "GET", place.url, headers=headers, timeout=DOWNLOAD_TIMEOUT, follow_redirects=True
        ) as response:
            if response.status_code in _REFUSALS and place is not self._start:
                self._place = self._start
                raise httpx2.RemoteProtocolError(Message("the place that the redirect led to refuses"))
            if response.status_code == 416:  # shorter than what was pinned
                raise self._changed()
            hf_raise_for_status(response)
            self._check(response, place, start + had, stop)
            for block in response.iter_raw():  # as it comes: what a block of a fixed size lacks would be lost
                check_stopped(self._ended)
                body += block[: stop - start - len(body)]
                with self._counting:
                    self.received += len(block)
        if len(body) == had:
            raise httpx2.RemoteProtocolError(Message("the answer held nothing new"))

    def _check(self, response: httpx2.Response, place: _Origin, start: int, stop: int) -> None:
        """Raises unless the answer is the part that was asked for, of the file that was pinned."""
        vouched = False
        for answer in (*response.history, response):
            linked = answer.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
            if len(linked) == 64 and linked != self._source.sha256:
                raise self._changed()
            vouched |= len(linked) == 64
        etag = str(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
        if place.etag and etag != place.etag:
            raise self._changed()
        part = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        if response.status_code != 206 or part is None or encoded:
            raise CannotStream("the server of {name} does not send parts of files.", name=self.name)
        first, last, total = (int(number) for number in part.groups())
        if total != self.size:
            raise self._changed()
        if first != start or not start <= last < stop:
            raise CannotStream("the server of {name} sends other parts than were asked for.", name=self.name)
        if not (place.etag or vouched):
            raise CannotStream("the server of {name} does not say which version it sends.", name=self.name)
        if not place.etag and response.history:  # the Hub's redirect: from now on, straight to where it led
            self._place = _Origin(url=str(response.url), headers={}, etag=etag)

    def _changed(self) -> SourceChanged:
        if self._source.url:
            return SourceChanged(
                "{url} holds another file than when the job was made: start it anew with {NAME}.", url=self._source.url
            )
        commit = self._source.revision[:8]
        return SourceChanged(
            "the server sends another file than {path} of commit {commit}: {AGAIN}.",
            path=self._source.path,
            commit=commit,
        )

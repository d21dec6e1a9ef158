"""Whole files over HTTP: large ones to the disk, in as many requests as it takes, and small ones.

The client library forgets a partial download when its process ends, so the download is our own: it appends to
`<file>.download`, goes on from there in the next process, and checks size and digest before the file gets its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from ggufy.core.errors import DiskError, GgufyError, SourceChanged, SourceError
from ggufy.core.messages import Message
from ggufy.core.source import Source
from ggufy.core.words import human_size
from ggufy.net.http_get import Address, Answer, http_get, source_address
from ggufy.net.hub_errors import ask
from ggufy.net.session import DOWNLOAD_TIMEOUT, DOWNLOAD_TRIES, check_stopped, with_retries
from ggufy.system.clock import never
from ggufy.system.files import DOWNLOAD_SUFFIX, disk_errors, finish, free_bytes, sha256
from ggufy.system.locks import lock

_BLOCK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class DownloadTask:
    """What is to be fetched."""

    address: Address
    path: str  # in the repo, for people
    commit: str
    size: int  # bytes
    sha256: str  # hex digest
    error: type[GgufyError]  # what is raised when something else arrives
    whole: bool = False  # its server may send all of it whatever part is asked for: what was cut begins anew


def fetch(
    wanted: DownloadTask,
    target: Path,
    *,
    progress: Callable[[int], None] | None = None,
    stopped: Callable[[], bool] = never,
) -> None:
    """Brings the file to `target`, going on where an earlier process stopped; `progress` gets the bytes that are here.

    Raises what the client library raises when the server stays away or refuses, `wanted.error` when it sends
    something else than was pinned, DiskError when there is no room, BusyError when another process fetches the same
    file, and Cancelled soon after `stopped()` turned true. What has arrived stays in `<target>.download`.
    """
    part = target.with_name(target.name + DOWNLOAD_SUFFIX)
    report = progress or (lambda done: None)

    def more() -> None:
        while _size(part) < wanted.size:
            _append(wanted, part, report=report, stopped=stopped)

    busy = Message("another run is downloading {name}: wait for it to end.", name=target.name)
    with disk_errors(target), lock(part, message=busy):
        if not part.exists():
            return  # between our open and our lock another process finished it
        if _size(part) > wanted.size:
            os.truncate(part, 0)
        _check_room(wanted.size - _size(part), target)
        report(_size(part))
        with_retries(more, tries=DOWNLOAD_TRIES, reached=lambda: _size(part), stopped=stopped)
        _finish(wanted, part, target, stopped=stopped)


def fetch_newest(
    wanted: DownloadTask,
    target: Path,
    *,
    progress: Callable[[int], None] | None = None,
    stopped: Callable[[], bool] = never,
) -> None:
    """As `fetch`, of a file that may have been another one when an earlier process began: then it begins anew."""
    begun = target.with_name(target.name + DOWNLOAD_SUFFIX)
    continued = begun.exists() and begun.stat().st_size > 0
    try:
        fetch(wanted, target, progress=progress, stopped=stopped)
    except wanted.error:
        if begun.exists() or not continued:
            raise
        fetch(wanted, target, progress=progress, stopped=stopped)


def fetch_small(address: Address, *, limit: int, stopped: Callable[[], bool] = never) -> bytes:
    """The text file at an address. Raises SourceError if it cannot be had, is a web page, or is larger than `limit`
    bytes; Cancelled."""

    def get() -> bytes:
        body = bytearray()
        with http_get(address, span=(0, None), timeout=DOWNLOAD_TIMEOUT) as answer:
            if answer.is_web_page:
                raise SourceError(
                    "{url} is a web page, not a text file: give the address of the raw file.", url=address.shown
                )
            for block in answer.response.iter_bytes(_BLOCK):
                check_stopped(stopped)
                body += block
                if len(body) > limit:
                    raise SourceError(
                        "{url} is larger than {size}: give a shorter text.", url=address.shown, size=human_size(limit)
                    )
        return bytes(body)

    return ask(get, address.wanted, token=address.token, shown=address.shown, stopped=stopped)


def fetch_pinned(
    source: Source,
    *,
    limit: int,
    token: str | None = None,
    endpoint: str | None = None,
    stopped: Callable[[], bool] = never,
) -> bytes:
    """A small file that is pinned. Raises SourceChanged if it is another one now, else as `fetch_small`."""
    data = fetch_small(source_address(source, token=token, endpoint=endpoint), limit=limit, stopped=stopped)
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise SourceChanged(
            "the server sends another file than {path} of commit {commit}: {AGAIN}.",
            path=source.path,
            commit=source.revision[:8],
        )
    return data


def _append(wanted: DownloadTask, part: Path, *, report: Callable[[int], None], stopped: Callable[[], bool]) -> None:
    """One request: adds to `part` what the server sends from its present size on."""
    have = 0 if wanted.whole else _size(part)
    with http_get(wanted.address, span=(have, None), timeout=DOWNLOAD_TIMEOUT) as answer:
        start = _checked_start(answer, wanted, have)
        with part.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            for block in answer.response.iter_bytes(_BLOCK):
                check_stopped(stopped)
                if file.tell() + len(block) > wanted.size:
                    raise _other_file(wanted)
                file.write(block)
                report(file.tell())
    if wanted.whole and _size(part) != wanted.size:
        raise _other_file(wanted)
    if _size(part) <= have:
        raise httpx2.RemoteProtocolError(Message("the answer held nothing new"))


def _checked_start(answer: Answer, wanted: DownloadTask, have: int) -> int:
    """Where in the file the answer begins; a server that ignores ranges sends all of it."""
    if whole := answer.response.status_code != 206:
        right = int(answer.response.headers.get("Content-Length", wanted.size)) == wanted.size
    else:
        right = answer.part is not None and answer.part[::2] == (have, wanted.size)
    if not right or answer.sha256 - {wanted.sha256}:
        raise _other_file(wanted)
    return 0 if whole else have


def _finish(wanted: DownloadTask, part: Path, target: Path, *, stopped: Callable[[], bool]) -> None:
    if sha256(part, stopped=stopped) != wanted.sha256:
        part.unlink()
        raise wanted.error(
            Message(
                "{name} arrived damaged (its sha256 is not the one on the Hub) and was removed: {AGAIN}.",
                name=wanted.path,
            )
        )
    finish(part, target)


def _other_file(wanted: DownloadTask) -> GgufyError:
    return wanted.error(
        Message(
            "the server sends another file than {path} of commit {commit}: {AGAIN}.",
            path=wanted.path,
            commit=wanted.commit[:8],
        )
    )


def _check_room(needed: int, target: Path) -> None:
    free = free_bytes(target.parent)
    if needed > free:
        raise DiskError(
            "the download of {name} needs {needed} more and {free} are free: free some space and {AGAIN}, it "
            "continues.",
            name=target.name,
            needed=human_size(needed),
            free=human_size(free),
        )


def _size(path: Path) -> int:
    return path.stat().st_size

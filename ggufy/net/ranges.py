"""One large file over HTTP, in as many requests as it takes.

The client library forgets a partial download when its process ends, so the download is our own: it appends to
`<file>.download`, goes on from there in the next process, and checks size and digest before the file gets its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import get_session

from ggufy.core.errors import DiskError, GgufyError
from ggufy.core.messages import Message
from ggufy.core.words import human_size
from ggufy.net.hub_private import hf_raise_for_status
from ggufy.net.session import DOWNLOAD_TIMEOUT, DOWNLOAD_TRIES, check_stopped, with_retries
from ggufy.system.files import DOWNLOAD_SUFFIX, disk_errors, finish, free_bytes, sha256
from ggufy.system.locks import lock

_BLOCK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class RangedFile:
    """What is to be fetched, pinned."""

    url: str
    headers: Mapping[str, str] = field(repr=False)  # may hold a token
    path: str  # in the repo, for people
    commit: str
    size: int  # bytes
    sha256: str  # hex digest
    error: type[GgufyError]  # what is raised when something else arrives


def fetch(
    wanted: RangedFile,
    target: Path,
    *,
    progress: Callable[[int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
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


def _append(wanted: RangedFile, part: Path, *, report: Callable[[int], None], stopped: Callable[[], bool]) -> None:
    """One request: adds to `part` what the server sends from its present size on."""
    have = _size(part)
    headers = {**wanted.headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream("GET", wanted.url, headers=headers, timeout=DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        start = _checked_start(response, wanted, have)
        with part.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            for block in response.iter_bytes(_BLOCK):
                check_stopped(stopped)
                if file.tell() + len(block) > wanted.size:
                    raise _other_file(wanted)
                file.write(block)
                report(file.tell())
    if _size(part) <= have:
        raise httpx2.RemoteProtocolError(Message("the answer held nothing new"))


def _checked_start(response: httpx2.Response, wanted: RangedFile, have: int) -> int:
    """Where in the file the answer begins; a server that ignores ranges sends all of it."""
    for answer in (*response.history, response):
        etag = answer.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
        if len(etag) == 64 and etag != wanted.sha256:
            raise _other_file(wanted)
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or (int(match[1]), int(match[2])) != (have, wanted.size):
            raise _other_file(wanted)
        return have
    if int(response.headers.get("Content-Length", wanted.size)) != wanted.size:
        raise _other_file(wanted)
    return 0


def _finish(wanted: RangedFile, part: Path, target: Path, *, stopped: Callable[[], bool]) -> None:
    if sha256(part, stopped=stopped) != wanted.sha256:
        part.unlink()
        raise wanted.error(
            f"{wanted.path} arrived damaged (its sha256 is not the one on the Hub) and was removed: "
            "run the same command again."
        )
    finish(part, target)


def _other_file(wanted: RangedFile) -> GgufyError:
    return wanted.error(
        f"the server sends another file than {wanted.path} of commit {wanted.commit[:8]}: run the same command again."
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

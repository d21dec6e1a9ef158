"""A source at a plain https address: pinned by its size and the server's own mark of the version (ETag), and fetched
by hf_transfer.

hf_transfer asks for several ranges at once and is fast, but it holds Python's lock while it works, leaves nothing to
go on with, and does not look at what it gets. So it runs in a child process (fast_download.py, started by the download
step), writes a fresh file, and the file is checked here: its size, and its sha256 where the address says one, as in
`https://example.org/model.pth#sha256=<64 hex digits>`. No token is ever sent.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import httpx2
from huggingface_hub import get_session

from ggufy.core.errors import SourceError
from ggufy.core.job import Source
from ggufy.core.words import brief
from ggufy.net.hub_private import hf_raise_for_status
from ggufy.net.session import ask, use_timeouts
from ggufy.sources.hub import KINDS, split_address
from ggufy.system.files import sha256

_DIGEST = re.compile(r"sha256=([0-9a-fA-F]{64})")
_TOTAL = re.compile(r"bytes 0-0/(\d+)")
_SCRIPT = Path(__file__).with_name("fast_download.py")


def resolve_url(text: str, *, stopped: Callable[[], bool] = lambda: False) -> Source:
    """Pins what is at an address now. Raises SourceError, with what to do next, if it is no `.pth` or `.gguf`, cannot
    be reached (SourceAway), or its server does not send parts of files; Cancelled."""
    url, _, fragment = text.strip().partition("#")
    parts = split_address(url)
    if parts.username is not None:
        raise SourceError("an address with a password in it is not taken: it would end up in job records.")
    name = PurePosixPath(unquote(parts.path)).name
    kind = KINDS.get(PurePosixPath(name).suffix)
    digest = _DIGEST.fullmatch(fragment)
    if kind is None or (fragment and not digest):
        raise SourceError(
            "{text} is not the address of a model: give one that ends in .pth or .gguf, with #sha256=<64 hex "
            "digits> after it or nothing.",
            text=brief(text),
        )
    size, etag = _look(url, stopped)
    given = digest[1].lower() if digest else ""
    mark = given or hashlib.sha256(f"{url}\n{size}\n{etag}".encode()).hexdigest()
    return Source(kind=kind, path=name, url=url, etag=etag, size=size, sha256=given, mark=mark)


def download_command(source: Source, target: Path, *, stopped: Callable[[], bool] = lambda: False) -> list[str]:
    """Fetches the file into `target`, which must not exist, and prints `<bytes so far>` now and then.

    Raises what `check_there` raises.
    """
    check_there(source, stopped=stopped)
    return [sys.executable, "-I", str(_SCRIPT), source.url, str(target)]


def check_there(source: Source, *, stopped: Callable[[], bool] = lambda: False) -> None:
    """Raises SourceError if there is another file than the one that was pinned, or none; SourceAway, Cancelled."""
    if _look(source.url, stopped) != (source.size, source.etag):
        raise SourceError(
            "{url} holds another file than when the job was made: start it anew with {NAME}.", url=source.url
        )


def check_download(source: Source, path: Path) -> None:
    """Raises SourceError, with the file removed, if it is not what was pinned."""
    if path.stat().st_size != source.size:
        path.unlink()
        raise SourceError("{name} arrived damaged (its size is another) and was removed: {AGAIN}.", name=source.path)
    if source.sha256 and sha256(path) != source.sha256:
        path.unlink()
        raise SourceError("{name} arrived damaged (its sha256 is another) and was removed: {AGAIN}.", name=source.path)


def _look(url: str, stopped: Callable[[], bool]) -> tuple[int, str]:
    """Size in bytes and ETag of what is at an address, from one byte of it."""
    use_timeouts()

    def call() -> tuple[int, str]:
        headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
            hf_raise_for_status(response)
            total = _TOTAL.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code != 206 or total is None:
                raise SourceError(
                    "the server of {url} does not send parts of files: download it yourself and give the file.",
                    url=url,
                )
            return int(total[1]), _version(response)

    return ask(call, None, token=None, shown=url, stopped=stopped)


def _version(response: httpx2.Response) -> str:
    return str(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")

"""A source at a plain https address: pinned by its size and the server's own mark of the version (ETag), and fetched
by hf_transfer.

hf_transfer asks for several ranges at once and is fast, but it holds Python's lock while it works, leaves nothing to
go on with, and does not look at what it gets. So it runs in a child process (net/fast_download.py, started by the
download step), writes a fresh file, and the file is checked here: its size, and its sha256 where the address says one,
as in `https://example.org/model.pth#sha256=<64 hex digits>`. No token is ever sent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ggufy.core.errors import SourceError
from ggufy.core.source import Source
from ggufy.core.words import brief
from ggufy.net import fast_download
from ggufy.net.http_file import HttpFile
from ggufy.net.http_get import Address
from ggufy.sources.addresses import split_address
from ggufy.sources.registry import format_of_name
from ggufy.system.files import sha256

_DIGEST = re.compile(r"sha256=([0-9a-fA-F]{64})")


def resolve_url(text: str, *, stopped: Callable[[], bool] = lambda: False) -> Source:
    """Pins what is at an address now. Raises SourceError, with what to do next, if it is no `.pth` or `.gguf`, cannot
    be reached (SourceAway), or its server does not send parts of files; Cancelled."""
    url, _, fragment = text.strip().partition("#")
    parts = split_address(url)
    if parts.username is not None:
        raise SourceError("an address with a password in it is not taken: it would end up in job records.")
    name = PurePosixPath(unquote(parts.path)).name
    form = format_of_name(name)
    digest = _DIGEST.fullmatch(fragment)
    if form is None or (fragment and not digest):
        raise SourceError(
            "{text} is not the address of a model: give one that ends in .pth, .safetensors or .gguf, with "
            "#sha256=<64 hex digits> after it or nothing.",
            text=brief(text),
        )
    size, etag = _look(url, stopped)
    given = digest[1].lower() if digest else ""
    mark = given or hashlib.sha256(f"{url}\n{size}\n{etag}".encode()).hexdigest()
    return Source(kind=form.kind, path=name, url=url, etag=etag, size=size, sha256=given, mark=mark)


def download_command(source: Source, target: Path, *, stopped: Callable[[], bool] = lambda: False) -> list[str]:
    """Fetches the file into `target`, which must not exist, and prints `<bytes so far>` now and then.

    Raises what `check_there` raises.
    """
    check_there(source, stopped=stopped)
    return fast_download.command(source.url, target)


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
    file = HttpFile(Address(url=url, shown=url), stopped=stopped)
    if not file.read(0, 1):
        raise SourceError("{url} is empty: download or copy it again.", url=url)
    return file.size, file.version

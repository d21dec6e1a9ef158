"""One GET over HTTP, whatever it is for: who gets the token, where redirects may lead, and what the headers say.

`http_get` asks once; whoever calls it decides how often (session.py) and what a failure means (hub_errors.py).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_session, hf_hub_url

from ggufy.core.errors import SourceError
from ggufy.core.hosts import MODELSCOPE
from ggufy.core.source import Source
from ggufy.net.hub_private import build_hf_headers, hf_raise_for_status
from ggufy.net.modelscope import modelscope_file
from ggufy.net.session import QUICK_TIMEOUT, Origin, Reference, identify, origin, use_timeouts

_REDIRECTS = 6
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, kw_only=True)
class Address:
    """What is asked for."""

    url: str
    shown: str  # what people read
    wanted: Reference | None = None  # the file of a hub that it is
    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # with the token in them, if there is one
    origins: frozenset[Origin] = frozenset()  # the hub's own: only they get these headers, also after redirects
    public: bool = False  # only the public internet is asked, also after redirects

    def after(self, url: httpx2.URL) -> Address:
        """Where redirects have led, to be asked from now on."""
        return replace(self, url=str(url))


def hub_address(wanted: Reference, *, token: str | None, endpoint: str | None = None) -> Address:
    """A file on the Hub, or on ModelScope."""
    if wanted.host == MODELSCOPE:
        url, headers, origins = modelscope_file(wanted, token=token, endpoint=endpoint)
    else:
        url = hf_hub_url(
            wanted.repo_id, wanted.file, repo_type=wanted.repo_type, revision=wanted.revision, endpoint=endpoint
        )
        headers, origins = _identity(url, token)
    shown = f"{wanted.name}:{wanted.file}"
    return Address(url=url, shown=shown, wanted=wanted, token=token, headers=headers, origins=origins)


def _identity(url: str, token: str | None) -> tuple[dict[str, str], frozenset[Origin]]:
    """What the Hub is told of us, and which hosts are."""
    return build_hf_headers(token=token or False), frozenset({origin(httpx2.URL(url))})


def source_address(source: Source, *, token: str | None, endpoint: str | None = None) -> Address:
    """A pinned source, on a hub or at a plain address."""
    if source.url:
        return Address(url=source.url, shown=source.url)
    wanted = Reference.named(source.model_id, file=source.path, revision=source.revision)
    return hub_address(wanted, token=token, endpoint=endpoint)


def hub_host(endpoint: str | None = None) -> str:
    """Name (and port) of the Hub's own host."""
    return urlsplit(endpoint or constants.ENDPOINT).netloc


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back, its body not read yet."""

    response: httpx2.Response
    sha256: frozenset[str]  # digests of the whole file that the Hub has named on the way; it names those of large ones

    @property
    def part(self) -> tuple[int, int, int] | None:
        """First byte, the byte after the last, and the whole file's size; None if it is no part of a file."""
        match = _RANGE.fullmatch(self.response.headers.get("Content-Range", ""))
        encoded = self.response.headers.get("Content-Encoding", "identity") != "identity"
        if self.response.status_code != 206 or match is None or encoded:
            return None
        return int(match[1]), int(match[2]) + 1, int(match[3])

    @property
    def version(self) -> str:
        """The server's mark of the version; empty if it has none."""
        return str(self.response.headers.get("ETag") or self.response.headers.get("Last-Modified") or "")

    @property
    def is_web_page(self) -> bool:
        return str(self.response.headers.get("Content-Type", "")).startswith("text/html")


@contextlib.contextmanager
def http_get(
    address: Address,
    *,
    span: tuple[int, int | None] | None = None,
    timeout: httpx2.Timeout | None = None,
    params: Mapping[str, Any] | None = None,
) -> Iterator[Answer]:
    """The answer at the end of the redirects, once it is none that refuses.

    `span` is the first byte and the one after the last (None: to the end) of what is wanted, as stored. Without a
    `timeout` the session's holds. Raises one of session.FAILURES, and SourceError for what is not `public`.
    """
    use_timeouts()
    headers = {}
    if span is not None:
        headers["Accept-Encoding"] = "identity"
    if span is not None and span != (0, None):
        headers["Range"] = f"bytes={span[0]}-" + (f"{span[1] - 1}" if span[1] is not None else "")
    session, digests = get_session(), set()
    request = session.build_request("GET", address.url, headers=headers, params=params, timeout=timeout)
    for _ in range(_REDIRECTS):
        if address.public and not is_public(request.url.host):
            raise SourceError(
                "{url} is not on the public internet: download it yourself and give the file.", url=address.shown
            )
        identify(request, address.headers, address.origins)
        response = session.send(request, stream=True, follow_redirects=False)
        with contextlib.closing(response):
            linked = response.headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"')
            digests |= {linked} if len(linked) == 64 else set()
            if response.next_request is None:
                hf_raise_for_status(response)
                yield Answer(response=response, sha256=frozenset(digests))
                return
            request = response.next_request
    raise httpx2.TooManyRedirects("", request=request)


def ask_hub(
    path: str, *, token: str | None, endpoint: str | None = None, params: Mapping[str, Any] | None = None
) -> Any:
    """What the Hub's API answers, from JSON, asked once and with little patience: somebody waits for it.

    Raises one of session.FAILURES, or RuntimeError where another thread has closed the session.
    """
    url = f"{endpoint or constants.ENDPOINT}{path}"
    headers, origins = _identity(url, token)
    address = Address(url=url, shown="the Hub", token=token, headers=headers, origins=origins)
    with http_get(address, timeout=QUICK_TIMEOUT, params=params) as answer:
        answer.response.read()
        return answer.response.json()


def is_public(host: str) -> bool:
    """True if every address of a host is of the public internet; an unknown host is left to the client to report."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return True
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    return all((getattr(address, "ipv4_mapped", None) or address).is_global for address in addresses)

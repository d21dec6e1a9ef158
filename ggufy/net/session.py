"""The one HTTP session: with timeouts, and with patience.

The client library waits for a silent server for ever; `use_timeouts` gives its session limits. `with_retries` makes a
call, and makes it again after a failure that passes (a cut connection, a busy server).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ggufy.core.errors import Cancelled
from ggufy.core.hosts import HUGGING_FACE, MODELSCOPE, RepoName
from ggufy.core.messages import Message, message_of
from ggufy.net.hub_private import default_client_factory, parse_ratelimit_headers
from ggufy.system.settings import modelscope_endpoint, proxy_fault

logger = logging.getLogger(__name__)

SILENCE_S = 10.0  # where somebody waits for the answer
QUICK_TIMEOUT = httpx2.Timeout(SILENCE_S, connect=5.0)
DOWNLOAD_TIMEOUT = httpx2.Timeout(20.0, connect=10.0)  # silence after which a download is taken up again
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # between tries; doubled each time
ASK_TRIES, DOWNLOAD_TRIES = 4, 9  # without progress: 3.5 s and about a minute and a half of waiting
SESSION_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
_LONGEST_ASKED_S = 301.0  # the Hub counts requests over five minutes


class ClientError(Exception):
    """No HTTP client can be made with the proxies of this environment."""


# What the client raises: the last but one while a header is put together, the last for the body of an answer that was
# cut, or a page of something between us and the Hub.
FAILURES = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    OfflineModeIsEnabled,
    HFValidationError,
    ClientError,
    UnicodeEncodeError,
    json.JSONDecodeError,
)
# Of these, what will be the same next time: a request that cannot be sent at all.
UNSENDABLE = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
_installed: httpx2.Timeout | None = None
T = TypeVar("T")
Origin = tuple[str, str, int | None]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a user named on a hub."""

    repo_id: str  # owner/name
    host: str = HUGGING_FACE  # or MODELSCOPE
    file: str = ""  # path in the repo; empty: not chosen
    revision: str | None = None  # branch, tag or commit
    repo_type: str = "model"  # model or dataset

    @classmethod
    def named(cls, name: str, **more: Any) -> Self:
        """A repo by the name that people and records give it, see core/hosts.py."""
        repo = RepoName.of(name)
        return cls(repo_id=repo.repo_id, host=repo.host, **more)

    @property
    def name(self) -> str:
        """As people name the repo, `ms:owner/name` if it is on ModelScope."""
        return str(RepoName(self.host, self.repo_id))

    @property
    def page(self) -> str:
        """Where people look at the repo."""
        prefix = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        if self.host == MODELSCOPE:
            return f"{modelscope_endpoint()}/models/{self.repo_id}"
        return f"https://huggingface.co/{prefix}{self.repo_id}"

    @property
    def files_page(self) -> str:
        return f"{self.page}/files" if self.host == MODELSCOPE else f"{self.page}/tree/main"


def use_timeouts(timeout: httpx2.Timeout | None = None) -> None:
    """Gives the client library's session limits: those named, else those that it has already, else a minute.

    The session is one for the whole process.
    """
    global _installed
    wanted = timeout or _installed or SESSION_TIMEOUT
    if wanted == _installed:
        return

    def limit(request: httpx2.Request) -> None:
        # Some of the library's calls (repo_info and its like) ask for no limit at all, whatever the session's is.
        if not any((request.extensions.get("timeout") or {}).values()):
            request.extensions = {**request.extensions, "timeout": wanted.as_dict()}

    def client() -> httpx2.Client:
        if fault := proxy_fault():
            raise ClientError(fault)
        try:
            session = default_client_factory()
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            raise ClientError(short(error)) from error
        session.timeout = wanted
        session.event_hooks["request"].append(limit)
        return session

    _installed = wanted
    set_client_factory(client)


def origin(url: httpx2.URL) -> Origin:
    """Scheme, host and port of an address; an unnamed port is None."""
    return url.scheme, url.host, url.port


def identify(request: httpx2.Request, headers: Mapping[str, str], origins: frozenset[Origin]) -> None:
    """Gives a request these headers if its host is one of those that may get them, and takes away what an earlier
    request or answer has left of a token."""
    for name in ("Authorization", "Cookie"):
        request.headers.pop(name, None)
    if origin(request.url) in origins:
        request.headers.update(headers)


def with_retries(
    call: Callable[[], T],
    *,
    tries: int = ASK_TRIES,
    reached: Callable[[], int] = lambda: 0,
    stopped: Callable[[], bool] = lambda: False,
) -> T:
    """`call()`, made up to `tries` times; the count starts anew whenever `reached()` has grown.

    Raises one of FAILURES, and Cancelled when `stopped()` turns true while it waits.
    """
    best, failed = reached(), 0
    while True:
        try:
            return call()
        except (*FAILURES, RuntimeError) as error:
            failed = 1 if reached() > best else failed + 1
            best = max(best, reached())
            wait = wait_s(error, planned=backoff_s(failed))
            if wait is None or failed >= tries:
                if wait is not None and isinstance(error, RuntimeError):
                    raise httpx2.ConnectError(Message("the connection was closed")) from error
                raise
            logger.info("asking again in %.1f s: %s", wait, reason(error))
        pause(wait, stopped)


def pause(seconds: float, stopped: Callable[[], bool] = lambda: False) -> None:
    """Sleeps; raises Cancelled soon after `stopped()` turned true."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        check_stopped(stopped)
        time.sleep(min(left, 0.2))


def check_stopped(stopped: Callable[[], bool]) -> None:
    """Raises Cancelled if the job was stopped."""
    if stopped():
        raise Cancelled("the job was stopped.")


def backoff_s(failed: int) -> float:
    """Seconds to wait after the `failed`th failure in a row."""
    return min(FIRST_WAIT_S * 2.0 ** (failed - 1), LONGEST_WAIT_S)


def wait_s(error: Exception, *, planned: float) -> float | None:
    """Seconds until the next try, at least `planned`, or None if the error will not pass."""
    if isinstance(error, httpx2.TransportError):
        return None if isinstance(error, UNSENDABLE) else planned
    if isinstance(error, json.JSONDecodeError):
        return planned
    if isinstance(error, RuntimeError):
        # After a failed connection the client library closes its one session, under the feet of other threads.
        return planned if "client has been closed" in str(error) else None
    if not isinstance(error, HfHubHTTPError) or not is_transient(error.response.status_code):
        return None
    return min(max(planned, asked_wait_s(error.response)), _LONGEST_ASKED_S)


def asked_wait_s(response: httpx2.Response) -> float:
    """Seconds that a refusal asks to wait, 0 if it names none."""
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def is_transient(status: int) -> bool:
    """True for an HTTP status that may be another one soon."""
    return status in (408, 429) or status >= 500


def reason(error: Exception) -> str:
    """For the log: an HTTP error's own text holds the address, which may be signed."""
    return f"HTTP status {error.response.status_code}" if isinstance(error, HfHubHTTPError) else short(error)


def short(error: Exception) -> str:
    """The first line of its text; nothing of a request that could not be sent, as such a text quotes headers."""
    if isinstance(error, httpx2.LocalProtocolError | UnicodeError):
        return type(error).__name__
    if isinstance(said := message_of(error), Message):
        return said
    return (said.strip().splitlines() or [""])[0].rstrip(".") or type(error).__name__

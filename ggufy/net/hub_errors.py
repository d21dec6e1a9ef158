"""What it means when the Hub or another server refuses or stays away: one sentence each, as errors of the program.

`source_errors` (and `ask`, which asks again first) is for what somebody wants to fetch, `hub_errors` for repos of our
own.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ggufy.core.errors import (
    HubAway,
    HubError,
    QuotaError,
    RepoMissing,
    SourceAway,
    SourceError,
    StaleParent,
    StorageError,
    TokenError,
)
from ggufy.core.hosts import MODELSCOPE
from ggufy.core.messages import Message
from ggufy.core.names import RepoKind
from ggufy.net.modelscope_errors import modelscope_sentence
from ggufy.net.session import (
    FAILURES,
    UNSENDABLE,
    ClientError,
    Reference,
    asked_wait_s,
    is_transient,
    short,
    wait_s,
    with_retries,
)
from ggufy.system.clock import never
from ggufy.system.settings import proxy_fault

_QUOTA_WAIT_S = 900.0  # where the Hub names no time; its commits are counted by the hour
_NO_ROOM = re.compile(r"storage|quota|disk|billing|payment", re.IGNORECASE)
_LONGEST_QUOTE = 160
_PATIENT = re.compile(r"/preupload/|/info/lfs/")  # what the client library itself has tried six times
T = TypeVar("T")


def ask(
    call: Callable[[], T],
    wanted: Reference | None,
    *,
    token: str | None,
    shown: str = "",
    stopped: Callable[[], bool] = never,
) -> T:
    """`call()`, made patiently.

    `wanted` is what is asked of the Hub; without it `shown` is the plain address in the sentences. Raises SourceError,
    and Cancelled when `stopped()` turns true while it waits.
    """
    with source_errors(wanted, token=token, shown=shown):
        return with_retries(call, stopped=stopped)


@contextlib.contextmanager
def source_errors(wanted: Reference | None, *, token: str | None, shown: str = "") -> Iterator[None]:
    """Turns what the client library raises into a SourceError; arguments as for `ask`."""
    try:
        yield
    except FAILURES as error:
        kind = SourceError if wait_s(error, planned=0.0) is None else SourceAway
        raise kind(_sentence(error, wanted, token, shown)) from error


@contextlib.contextmanager
def hub_errors(repo_id: str, kind: RepoKind) -> Iterator[None]:
    """Turns what the client library raises into a HubError about the repo."""
    try:
        yield
    except FAILURES as error:
        raise hub_error(error, repo_id, kind) from error
    except RuntimeError as error:
        if wait_s(error, planned=0.0) is None:
            raise
        raise HubAway("the Hub cannot be reached: it is tried again later, nothing is lost.") from error
    except ValueError as error:  # a file that the Hub would not take, such as a README with a broken front matter
        raise HubError(
            "the Hub's client refuses {repo} ({reason}): please report it.", repo=repo_id, reason=short(error)
        ) from error


def hub_error(error: Exception, repo_id: str, kind: RepoKind) -> HubError:
    """The error in the program's words."""
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repo_id, kind)
    if isinstance(error, HFValidationError):
        return HubError(
            "the Hub allows no such name ({reason}): choose another {REPO} or {NAME}.", reason=short(error)
        )
    if said := setup_sentence(error):
        wrong_token = isinstance(error, httpx2.LocalProtocolError | UnicodeEncodeError)
        return TokenError(said) if wrong_token else HubError(said)
    if isinstance(error, httpx2.TransportError):
        return HubAway(
            "the Hub cannot be reached ({reason}): it is tried again later, nothing is lost.", reason=short(error)
        )
    return HubAway(
        "the Hub's answer about {repo} arrived damaged: it is tried again later, nothing is lost.", repo=repo_id
    )


def setup_sentence(error: Exception) -> str:
    """What to do if the Hub cannot even be asked, as its address, the token, a proxy or a setting is wrong; else
    empty."""
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        if constants.ENDPOINT.startswith(("https://", "http://")):
            return Message("the Hub's address cannot be used ({reason}): check HF_ENDPOINT.", reason=short(error))
        return Message(
            "HF_ENDPOINT is {address}, which is no address: write https:// in front of it.", address=constants.ENDPOINT
        )
    unsendable = isinstance(error, httpx2.LocalProtocolError)
    if isinstance(error, UnicodeEncodeError) or (unsendable and "header" in str(error).lower()):
        # Only the token may be anything.
        return Message("the token holds a character that no token has: paste it again.")
    if unsendable:
        return Message("the question to the Hub cannot be sent ({reason}): please report it.", reason=short(error))
    if isinstance(error, OfflineModeIsEnabled):
        return Message("HF_HUB_OFFLINE keeps the Hub from being asked: unset it and start again.")
    return client_sentence(error) if isinstance(error, ClientError) else ""


def client_sentence(error: ClientError) -> str:
    """What to do if no client can be made."""
    return proxy_fault() or Message("the proxy in the environment cannot be used ({reason}): unset it.", reason=error)


def is_passing(error: Exception) -> bool:
    """True if the same commit may succeed if it is tried at once, or has succeeded although its answer was lost."""
    if isinstance(error, HfHubHTTPError):
        passes = is_transient(error.response.status_code) and error.response.status_code != 429
    else:
        passes = wait_s(error, planned=0.0) is not None
    return passes and not _PATIENT.search(_address(error))


def status_of(error: Exception) -> int:
    """The HTTP status of a refusal, 0 for any other error."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else 0


def quota_wait_s(error: Exception, unsaid: float = _QUOTA_WAIT_S) -> float:
    """Seconds for which nothing more is to be asked after a 429; `unsaid` where the Hub names none."""
    return (asked_wait_s(error.response) if isinstance(error, HfHubHTTPError) else 0.0) or unsaid


def _sentence(error: Exception, wanted: Reference | None, token: str | None, shown: str) -> str:
    if wanted is None:
        return _plain_sentence(error, shown)
    if wanted.host == MODELSCOPE:
        return modelscope_sentence(error, wanted, token) or _plain_sentence(error, Message("ModelScope"))
    return _source_sentence(error, wanted, token)


def _source_sentence(error: Exception, wanted: Reference, token: str | None) -> str:
    repo, page = wanted.repo_id, wanted.page
    if said := setup_sentence(error):
        return said
    if isinstance(error, HFValidationError):
        return Message(
            "the Hub allows no such name ({reason}): write owner/repo or owner/repo:file.", reason=short(error)
        )
    if isinstance(error, GatedRepoError):
        if token:
            return Message(
                "{repo} is gated: accept its conditions on {page} and use the token of that account.",
                repo=repo,
                page=page,
            )
        return Message(
            "{repo} is gated: accept its conditions on {page} and set HF_TOKEN to a token of that account.",
            repo=repo,
            page=page,
        )
    if isinstance(error, RepositoryNotFoundError):
        if token:
            return Message(
                "the Hub has no {kind} {repo}, or it is private: check the name, a private one needs a token "
                "that may read it.",
                kind=wanted.repo_type,
                repo=repo,
            )
        return Message(
            "the Hub has no {kind} {repo}, or it is private: check the name, for a private one set HF_TOKEN.",
            kind=wanted.repo_type,
            repo=repo,
        )
    if isinstance(error, RevisionNotFoundError):
        return Message(
            "{repo} has no revision {revision}: look at {page}.",
            repo=repo,
            revision=wanted.revision,
            page=f"{page}/tree/main",
        )
    if isinstance(error, EntryNotFoundError):
        return Message(
            "{repo} has no file {name} at this revision: look at {page}.",
            repo=repo,
            name=wanted.file,
            page=f"{page}/tree/main",
        )
    if status_of(error) in (401, 403):
        return Message("the Hub refuses to show {repo} with the token given: check HF_TOKEN.", repo=repo)
    return _plain_sentence(error, Message("the Hub"))


def _plain_sentence(error: Exception, host: str) -> str:
    if status := status_of(error):
        if is_transient(status):
            return Message(
                "{host} answers with HTTP status {status}: wait, or try again later; what has arrived stays.",
                host=host,
                status=status,
            )
        return Message("{host} answers with HTTP status {status}: check the name.", host=host, status=status)
    if isinstance(error, ClientError):
        return client_sentence(error)
    if isinstance(error, json.JSONDecodeError):
        return Message("the answer of {host} cannot be understood: check the network and try again.", host=host)
    if isinstance(error, httpx2.TooManyRedirects):
        return Message("{url} is redirected again and again: give the address of the file itself.", url=host)
    if isinstance(error, (httpx2.InvalidURL, UnicodeEncodeError, *UNSENDABLE)):
        return Message(
            "{text} is no address that can be fetched ({reason}): check it.", text=host, reason=short(error)
        )
    return Message(
        "{host} cannot be reached ({reason}): check the network, and wait or try again; what has arrived stays.",
        host=host,
        reason=short(error),
    )


def _refusal(error: HfHubHTTPError, repo_id: str, kind: RepoKind) -> HubError:
    status, said = error.response.status_code, _quote(error)
    if status == 412 or isinstance(error, RevisionNotFoundError):  # the latter: squashed between two questions
        return StaleParent("somebody else has committed to {repo} meanwhile: read it again.", repo=repo_id)
    if status == 429:
        wait = quota_wait_s(error)
        return QuotaError(
            "the Hub takes no more requests for now{said}: it is asked again in {wait} s.",
            wait,
            said=said,
            wait=f"{wait:.0f}",
        )
    if status in (402, 413, 507) or (status == 403 and _NO_ROOM.search(said)):
        return StorageError(
            "the Hub has no room for {repo}{said}: make room at https://huggingface.co/settings/billing or "
            "choose another owner with {REPO}, then retry the job.",
            repo=repo_id,
            said=said,
        )
    if status == 401:
        return TokenError(
            "the Hub does not know the token, or none was given{said}: set HF_TOKEN to a valid one.", said=said
        )
    if status == 403:
        return TokenError(
            "the token may not write to {repo}{said}: set HF_TOKEN to one with write access to that account.",
            repo=repo_id,
            said=said,
        )
    if isinstance(error, RepositoryNotFoundError):
        return RepoMissing(
            "the Hub has no {kind} repo {repo}, or hides it from this token: check both.", kind=kind, repo=repo_id
        )
    if is_transient(status):
        return HubAway(
            "the Hub answers with HTTP status {status}: it is tried again later, nothing is lost.", status=status
        )
    return HubError(
        "the Hub refuses what was asked of {repo} with HTTP status {status}{said}: please report it.",
        repo=repo_id,
        status=status,
        said=said,
    )


def _address(error: Exception) -> str:
    """Path of the request that failed; empty if it is not known."""
    try:
        return str(error.request.url.path) if isinstance(error, httpx2.HTTPError) else ""
    except RuntimeError:  # an error without a request
        return ""


def _quote(error: HfHubHTTPError) -> str:
    """The Hub's own words (the first line) in brackets, cut; empty if there are none."""
    said = (error.response.headers.get("X-Error-Message") or error.server_message or "").strip().partition("\n")[0]
    if len(said) > _LONGEST_QUOTE:
        said = said[: _LONGEST_QUOTE - 1].rstrip() + "…"
    return Message(" ({said})", said=said.rstrip(".!")) if said else ""

"""What the Hugging Face Hub answers when it refuses, in one sentence each, as the errors that the program knows."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import httpx2
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ggufy.core.errors import HubAway, HubError, QuotaError, RepoMissing, StaleParent, StorageError, TokenError
from ggufy.core.messages import Message
from ggufy.core.names import RepoKind
from ggufy.net.session import (
    FAILURES,
    ClientError,
    asked_wait_s,
    client_sentence,
    endpoint_sentence,
    is_transient,
    short,
    unsendable_sentence,
    wait_s,
)

_QUOTA_WAIT_S = 900.0  # where the Hub names no time; its commits are counted by the hour
_NO_ROOM = re.compile(r"storage|quota|disk|billing|payment", re.IGNORECASE)
_LONGEST_QUOTE = 160
_PATIENT = re.compile(r"/preupload/|/info/lfs/")  # what the client library itself has tried six times


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
    if isinstance(error, OfflineModeIsEnabled):
        return HubError("HF_HUB_OFFLINE keeps the Hub from being asked: unset it and start again.")
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return HubError(endpoint_sentence(error))
    if isinstance(error, httpx2.LocalProtocolError | UnicodeEncodeError):
        return TokenError(unsendable_sentence(error))
    if isinstance(error, ClientError):
        return HubError(client_sentence(error))
    if isinstance(error, httpx2.TransportError):
        return HubAway(
            "the Hub cannot be reached ({reason}): it is tried again later, nothing is lost.", reason=short(error)
        )
    return HubAway(
        "the Hub's answer about {repo} arrived damaged: it is tried again later, nothing is lost.", repo=repo_id
    )


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


def quota_wait_s(error: HfHubHTTPError) -> float:
    """How long nothing more is to be asked after a 429."""
    return asked_wait_s(error.response) or _QUOTA_WAIT_S


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

"""What it means when ModelScope refuses or stays away: `modelscope_sentence` for what somebody wants to fetch,
`modelscope_errors` for repos of our own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx2
from huggingface_hub.errors import HfHubHTTPError

from ggufy.core.errors import HubAway, HubError, QuotaError, RepoMissing, StorageError, TokenError
from ggufy.core.messages import Message
from ggufy.net.modelscope import BAD_TOKEN, NOT_FOUND, ModelScopeRefusal
from ggufy.net.session import FAILURES, Reference, asked_wait_s, is_transient, short, wait_s
from ggufy.system.settings import modelscope_endpoint

_QUOTA_WAIT_S = 300.0  # where ModelScope names no time
_LONGEST_QUOTE = 160


def modelscope_sentence(error: Exception, wanted: Reference, token: str | None) -> str:
    """Why something could not be fetched; empty if that is not particular to ModelScope."""
    if said := _setup_sentence(error):
        return said
    if not isinstance(error, HfHubHTTPError):
        return ""
    status, code = error.response.status_code, _code(error)
    if code == BAD_TOKEN or status == 401:
        return Message("ModelScope does not know the token: set MODELSCOPE_API_TOKEN to a valid one, or leave it out.")
    if status == 404 or code == NOT_FOUND:
        if wanted.file:
            return Message(
                "{repo} has no file {name} at this revision: look at {page}.",
                repo=wanted.name,
                name=wanted.file,
                page=wanted.files_page,
            )
        if token:
            return Message(
                "ModelScope has no model {repo}, or it is private: check the name, a private one needs a token that "
                "may read it.",
                repo=wanted.repo_id,
            )
        return Message(
            "ModelScope has no model {repo}, or it is private: check the name, for a private one set "
            "MODELSCOPE_API_TOKEN.",
            repo=wanted.repo_id,
        )
    if status == 403:
        return Message(
            "ModelScope does not show {repo} to this account: look at {page}, and set MODELSCOPE_API_TOKEN to a token "
            "of an account that may read it.",
            repo=wanted.repo_id,
            page=wanted.page,
        )
    return ""


@contextlib.contextmanager
def modelscope_errors(repo_id: str) -> Iterator[None]:
    """Turns what a request to ModelScope raises into a HubError about the repo."""
    try:
        yield
    except (*FAILURES, RuntimeError) as error:
        if isinstance(error, RuntimeError) and wait_s(error, planned=0.0) is None:
            raise
        raise modelscope_error(error, repo_id) from error


def modelscope_error(error: Exception, repo_id: str) -> HubError:
    """The error in the program's words."""
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repo_id)
    if said := _setup_sentence(error):
        return HubError(said)
    return HubAway(
        "ModelScope cannot be reached ({reason}): it is tried again later, nothing is lost.", reason=short(error)
    )


def _refusal(error: HfHubHTTPError, repo_id: str) -> HubError:
    status, code, said = error.response.status_code, _code(error), _quote(error)
    if status == 429:
        wait = asked_wait_s(error.response) or _QUOTA_WAIT_S
        return QuotaError(
            "ModelScope takes no more requests for now{said}: it is asked again in {wait} s.",
            wait,
            said=said,
            wait=f"{wait:.0f}",
        )
    if status == 401 or code == BAD_TOKEN:
        return TokenError(
            "ModelScope does not know the token, or none was given{said}: set MODELSCOPE_API_TOKEN to a valid one.",
            said=said,
        )
    if status in (402, 413, 507):
        return StorageError(
            "ModelScope has no room for {repo}{said}: make room there or choose another owner with {REPO}, then retry "
            "the job.",
            repo=repo_id,
            said=said,
        )
    if status == 403:
        return TokenError(
            "the token may not write to {repo} on ModelScope{said}: set MODELSCOPE_API_TOKEN to one that may.",
            repo=repo_id,
            said=said,
        )
    if status == 404 or code == NOT_FOUND:
        return RepoMissing("ModelScope has no repo {repo}, or hides it from this token: check both.", repo=repo_id)
    if is_transient(status):
        return HubAway(
            "ModelScope answers with HTTP status {status}: it is tried again later, nothing is lost.", status=status
        )
    return HubError(
        "ModelScope refuses what was asked of {repo} with HTTP status {status}{said}: please report it.",
        repo=repo_id,
        status=status,
        said=said,
    )


def _setup_sentence(error: Exception) -> str:
    """What to do if ModelScope cannot even be asked as its address is wrong; else empty."""
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return Message(
            "MODELSCOPE_ENDPOINT is {address}, which cannot be used ({reason}): check it.",
            address=modelscope_endpoint(),
            reason=short(error),
        )
    return ""


def _code(error: HfHubHTTPError) -> int:
    return error.code if isinstance(error, ModelScopeRefusal) else 0


def _quote(error: HfHubHTTPError) -> str:
    """ModelScope's own words in brackets, cut; empty if there are none."""
    said = (error.server_message or "").strip().partition("\n")[0][:_LONGEST_QUOTE]
    return Message(" ({said})", said=said.rstrip(".!")) if said else ""

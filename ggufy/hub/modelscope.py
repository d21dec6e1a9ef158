"""Repos on ModelScope as a place for results: see protocol.OutputHub for the methods.

A large file goes to the storage in one request, and after a failure from its beginning; a commit names it then.
Commits name no parent there, so nobody can tell whether somebody else was faster: a repo must have one writer.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import get_session

from ggufy.core.errors import HubError, TokenError
from ggufy.core.hosts import MODELSCOPE, RepoName
from ggufy.core.messages import Message
from ggufy.core.names import RepoKind
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.modelscope_files import NewFile, blocks, new_file
from ggufy.hub.protocol import Content, RemoteFile, check_path, is_listed, sha256_of
from ggufy.net import modelscope
from ggufy.net.download import DownloadTask, fetch_newest
from ggufy.net.http_get import Address, http_get, hub_address
from ggufy.net.modelscope import MASTER, NOT_FOUND, PRIVATE, PUBLIC, ModelScopeRefusal, Tree
from ggufy.net.modelscope_errors import modelscope_errors
from ggufy.net.session import (
    ASK_TRIES,
    FAILURES,
    Reference,
    asked_wait_s,
    backoff_s,
    check_stopped,
    pause,
    reason,
    wait_s,
    with_retries,
)
from ggufy.system.clock import never

logger = logging.getLogger(__name__)
_EXISTS = (10010101001, 10010202004)  # `Code` of the two sites for a name that is taken
_RACED = 10030000001  # somebody else's commit, or too many at a time: made again
_UPLOAD_TIMEOUT = httpx2.Timeout(60.0, connect=10.0, read=3600.0)  # it takes its time when all has arrived
T = TypeVar("T")


class ModelScopeHub:
    """Repos that `token` may read and write, named `owner/name` or `ms:owner/name`; there are models only. `tries` is
    how often a request is made while it fails in a way that passes."""

    def __init__(
        self,
        *,
        token: str | None,
        endpoint: str | None = None,
        budget: CommitBudget | None = None,
        tries: int = ASK_TRIES,
    ):
        self.budget = budget or CommitBudget()
        self._token, self._endpoint, self._tries = token, endpoint, tries

    def user(self) -> str:
        """Name of the account that the token belongs to. Raises TokenError if there is none."""
        if not self._token:
            raise TokenError("no token was given: set MODELSCOPE_API_TOKEN to one that may write.")
        with modelscope_errors(Message("your account")):
            told = self._patiently(lambda: self._call("GET", "/openapi/v1/users/me")) or {}
        names = [told.get(key) for key in ("Username", "username", "name", "preferred_username")]
        if not (found := next(filter(None, names), "")):
            raise HubError("ModelScope does not say whose token this is: please report it.")
        return str(found)

    def create_repo(self, repo_id: str, *, kind: RepoKind, private: bool = False) -> None:
        wanted = _reference(repo_id)
        owner, _, name = wanted.repo_id.partition("/")
        body = {"Path": owner, "Name": name, "Visibility": PRIVATE if private else PUBLIC}
        with modelscope_errors(repo_id):
            try:
                self._patiently(lambda: self._call("POST", "/api/v1/models", body))
            except ModelScopeRefusal as error:
                if error.code not in _EXISTS:
                    raise
            if private and self._patiently(lambda: self._info(wanted)).get("Visibility") != PRIVATE:
                raise HubError(
                    "{repo} is on ModelScope already and is public, but should be private: change that in its "
                    "settings there, or choose another name.",
                    repo=repo_id,
                )

    def head(self, repo_id: str, *, kind: RepoKind) -> str | None:
        """Id of the newest commit, or None if the repo does not exist or is hidden from this token."""
        tree = self._tree_if_any(repo_id)
        return tree.commit if tree else None

    def list_files(self, repo_id: str, *, kind: RepoKind, under: str = "") -> dict[str, RemoteFile]:
        tree = self._tree_if_any(repo_id)
        files = tree.files.values() if tree else ()
        shown = [file for file in files if file.path.startswith(under) and is_listed(file.path)]
        return {file.path: RemoteFile(size=file.size, sha256=file.sha256) for file in shown}

    def read(self, repo_id: str, path: str, *, kind: RepoKind) -> bytes | None:
        tree, file = self._tree_if_any(repo_id), check_path(path)
        if tree is None or (found := tree.files.get(file)) is None:
            return None
        address = self._address(repo_id, tree.commit, path)

        def call() -> bytes:
            with http_get(address, span=(0, None)) as answer:
                data = answer.response.read()
            if sha256_of(data) != found.sha256:
                raise httpx2.RemoteProtocolError(Message("another file came than the one that was listed"))
            return data

        with modelscope_errors(repo_id):
            return self._patiently(call)

    def download(
        self,
        repo_id: str,
        path: str,
        target: Path,
        *,
        kind: RepoKind,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = never,
    ) -> None:
        tree, name = self._tree_if_any(repo_id), check_path(path)
        if tree is None or (found := tree.files.get(name)) is None:
            raise HubError(
                "{repo} has no file {path} on ModelScope: it has to be made again.", repo=repo_id, path=path
            )
        file = DownloadTask(
            address=self._address(repo_id, tree.commit, path),
            path=path,
            commit=tree.commit,
            size=found.size,
            sha256=found.sha256,
            error=HubError,
            whole=not found.lfs,
        )
        with modelscope_errors(repo_id):
            fetch_newest(file, target, progress=progress, stopped=stopped)

    def commit(
        self,
        repo_id: str,
        *,
        kind: RepoKind,
        message: str,
        add: Mapping[str, Content] | None = None,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = never,
    ) -> str:
        new = [new_file(path, content) for path, content in (add or {}).items()]
        report = progress or (lambda done: None)
        with modelscope_errors(repo_id):
            for failed in itertools.count(1):
                try:
                    commit = self._commit_once(_reference(repo_id), message, new, report, stopped)
                    report(sum(file.size for file in new))
                    return commit
                except FAILURES as error:
                    if isinstance(error, ModelScopeRefusal) and error.response.status_code == 429:
                        self.budget.pause(asked_wait_s(error.response))
                        raise
                    if failed >= self._tries or not _passes(error):
                        raise
                    logger.info("committing to %s again: %s", repo_id, reason(error))
                pause(backoff_s(failed), stopped)
        raise AssertionError("unreachable")

    def wait_s(self) -> float:
        return self.budget.wait_s()

    def count_past_commits(self, repo_id: str, *, kind: RepoKind) -> None:
        """ModelScope counts in ways of its own, and tells how long to wait."""

    # ---- one commit

    def _commit_once(
        self,
        wanted: Reference,
        message: str,
        new: Iterable[NewFile],
        report: Callable[[int], None],
        stopped: Callable[[], bool],
    ) -> str:
        """Sends what the repo lacks; after a failure, this is made again. Gives the newest commit."""
        tree, done = self._tree(wanted), 0
        missing = []
        for file in new:
            if (there := tree.files.get(file.path)) and there.sha256 == file.sha256:
                done += file.size
            else:
                missing.append(file)
        if not missing:
            return tree.commit
        check_stopped(stopped)
        self.budget.take()
        places = self._places(wanted, [file for file in missing if file.lfs])
        for file in missing:
            if href := places.get(file.sha256):
                self._put(href, file, partial(_report_from, report, done), stopped)
            done += file.size
            report(done)
        check_stopped(stopped)
        path = f"/api/v1/repos/models/{wanted.repo_id}/commit/{MASTER}"
        self._call("POST", path, {"commit_message": message, "actions": [file.action() for file in missing]})
        return self._tree(wanted).commit

    def _places(self, wanted: Reference, files: Iterable[NewFile]) -> dict[str, str]:
        """Where files have to be sent, by digest; what the storage has already is not among them."""
        objects = [{"oid": file.sha256, "size": file.size} for file in files]
        if not objects:
            return {}
        path = f"/api/v1/repos/models/{wanted.repo_id}/info/lfs/objects/batch"
        told = self._call("POST", path, {"operation": "upload", "objects": objects})
        uploads = {one["oid"]: (one.get("actions") or {}).get("upload") for one in told.get("objects") or ()}
        return {oid: str(upload["href"]) for oid, upload in uploads.items() if upload}

    def _put(self, href: str, file: NewFile, report: Callable[[int], None], stopped: Callable[[], bool]) -> None:
        """The whole file in one request."""
        request = get_session().build_request(
            "PUT",
            href,
            content=blocks(file.content, report, stopped),
            headers={"Content-Length": str(file.size)},
            timeout=_UPLOAD_TIMEOUT,
        )
        with modelscope.sent(request, *modelscope.identity(self._token, self._endpoint)) as response:
            response.read()
            if not response.is_success or "json" in response.headers.get("Content-Type", ""):
                modelscope.data_of(response)

    # ---- questions

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return modelscope.call(method, path, token=self._token, endpoint=self._endpoint, body=body)

    def _info(self, wanted: Reference) -> dict[str, Any]:
        return modelscope.repo_info(wanted, token=self._token, endpoint=self._endpoint, timeout=None)

    def _tree(self, wanted: Reference) -> Tree:
        return modelscope.repo_tree(wanted, token=self._token, endpoint=self._endpoint)

    def _tree_if_any(self, repo_id: str) -> Tree | None:
        """What the repo holds; None if there is no such repo."""
        with modelscope_errors(repo_id):
            try:
                return self._patiently(lambda: self._tree(_reference(repo_id)))
            except ModelScopeRefusal as error:
                if error.response.status_code != 404 and error.code != NOT_FOUND:
                    raise
                return None

    def _address(self, repo_id: str, commit: str, path: str) -> Address:
        wanted = replace(_reference(repo_id), file=path, revision=commit)
        return hub_address(wanted, token=self._token, endpoint=self._endpoint)

    def _patiently(self, call: Callable[[], T]) -> T:
        return with_retries(call, tries=self._tries)


def _report_from(report: Callable[[int], None], start: int, done: int) -> None:
    report(start + done)


def _reference(repo_id: str) -> Reference:
    return Reference(repo_id=RepoName.of(repo_id).repo_id, host=MODELSCOPE)


def _passes(error: Exception) -> bool:
    """True if the same commit may succeed if it is tried at once, or has succeeded although its answer was lost."""
    if isinstance(error, ModelScopeRefusal) and error.code == _RACED:
        return True
    return wait_s(error, planned=0.0) is not None

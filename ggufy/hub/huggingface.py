"""Repos on the Hugging Face Hub, through its client library, with an end to every wait.

The token is an argument: none is looked up in files or in the environment, and none is written or printed. See
protocol.Hub for the methods; how a commit is made is told in commits.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile, RepoSibling
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from ggufy.core.errors import HubError, StaleParent, TokenError
from ggufy.core.messages import Message
from ggufy.core.names import RepoKind
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.commits import Commit, remote_file
from ggufy.hub.protocol import Content, RemoteFile, Staged, check_path, is_listed
from ggufy.net.download import DownloadTask, fetch_newest
from ggufy.net.http_get import Address, http_get, hub_address
from ggufy.net.hub_errors import hub_errors, status_of
from ggufy.net.session import ASK_TRIES, Reference, use_timeouts, with_retries
from ggufy.system.clock import never
from ggufy.system.files import partial

T = TypeVar("T")


class HuggingFaceHub:
    """Repos that `token` may read and write. `timeout` holds for the whole process; `tries` is how often a request is
    made while it fails in a way that passes."""

    def __init__(
        self,
        *,
        token: str | None,
        endpoint: str | None = None,
        budget: CommitBudget | None = None,
        timeout: httpx2.Timeout | None = None,
        tries: int = ASK_TRIES,
    ):
        use_timeouts(timeout)
        disable_progress_bars()  # of the client library, for the whole process
        self.budget = budget or CommitBudget()
        self._api = HfApi(endpoint=endpoint, token=token or False)
        self._token, self._tries = token, tries
        self._own: set[str] = set()  # ids of the commits that this process made
        self._counted: set[tuple[RepoKind, str]] = set()  # repos whose past commits are in the budget

    def user(self) -> str:
        """Name of the account that the token belongs to. Raises TokenError if there is none."""
        with hub_errors(Message("your account"), "model"):
            if not self._api.token:
                raise TokenError("no token was given: set HF_TOKEN to one that may write.")
            return str(self._patiently(lambda: self._api.whoami(cache=True))["name"])

    def create_repo(self, repo_id: str, *, kind: RepoKind, private: bool = False) -> None:
        with hub_errors(repo_id, kind):
            self._patiently(lambda: self._api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True))
            if private and not self._patiently(lambda: self._api.repo_info(repo_id, repo_type=kind)).private:
                raise HubError(
                    "{repo} is on the Hub already and is public, but should be private: change that in its "
                    "settings there, or choose another name.",
                    repo=repo_id,
                )

    def head(self, repo_id: str, *, kind: RepoKind) -> str | None:
        with hub_errors(repo_id, kind):
            try:
                return self._patiently(lambda: self._api.repo_info(repo_id, repo_type=kind)).sha
            except RepositoryNotFoundError as error:
                _unless_unknown(error)
                return None

    def list_files(self, repo_id: str, *, kind: RepoKind, under: str = "") -> dict[str, RemoteFile]:
        def call() -> dict[str, RemoteFile]:
            info = self._api.model_info if kind == "model" else self._api.dataset_info
            siblings = info(repo_id, files_metadata=True).siblings or []
            shown = [one for one in siblings if one.rfilename.startswith(under) and is_listed(one.rfilename)]
            return {one.rfilename: _listed(one) for one in shown}

        with hub_errors(repo_id, kind):
            try:
                return self._patiently(call)
            except RepositoryNotFoundError as error:
                _unless_unknown(error)
                return {}

    def read(self, repo_id: str, path: str, *, kind: RepoKind, at: str | None = None) -> bytes | None:
        address = self._address(repo_id, check_path(path), kind, at)

        def call() -> bytes:
            with http_get(address) as answer:
                return answer.response.read()

        with hub_errors(repo_id, kind):
            try:
                return self._patiently(call)
            except EntryNotFoundError:
                return None
            except RepositoryNotFoundError as error:
                _unless_unknown(error)
                return None
            except RevisionNotFoundError as error:
                raise StaleParent(
                    "{repo} has no commit {commit} any more: read it again.", repo=repo_id, commit=at
                ) from error

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
        commit = self.head(repo_id, kind=kind) or ""
        with hub_errors(repo_id, kind):
            found = self._find(repo_id, check_path(path), kind, commit) if commit else None
        if found is None:
            raise HubError("{repo} has no file {path} on the Hub: it has to be made again.", repo=repo_id, path=path)
        if found.sha256 is None:
            with partial(target) as part:
                part.write_bytes(self.read(repo_id, path, kind=kind, at=commit) or b"")
            return
        file = DownloadTask(
            address=self._address(repo_id, path, kind, commit),
            path=path,
            commit=commit,
            size=found.size,
            sha256=found.sha256,
            error=HubError,
        )
        with hub_errors(repo_id, kind):
            fetch_newest(file, target, progress=progress, stopped=stopped)

    def stage(
        self,
        repo_id: str,
        files: Mapping[str, Path],
        *,
        kind: RepoKind,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = never,
    ) -> dict[str, Content]:
        with hub_errors(repo_id, kind):
            commit = Commit(
                self._api, repo_id, kind, add=files, delete=(), parent=None, tries=self._tries, stopped=stopped
            )
            commit.upload(progress or (lambda done: None))
            return {add.path_in_repo: Staged(path=files[add.path_in_repo], handle=add) for add in commit.add}

    def commit(
        self,
        repo_id: str,
        *,
        kind: RepoKind,
        message: str,
        add: Mapping[str, Content] | None = None,
        delete: Collection[str] = (),
        parent: str | None = None,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = never,
        urgent: bool = False,
    ) -> str:
        add, report = add or {}, progress or (lambda done: None)
        for path in (*add, *delete):
            check_path(path)
        with hub_errors(repo_id, kind):
            commit = Commit(
                self._api, repo_id, kind, add=add, delete=delete, parent=parent, tries=self._tries, stopped=stopped
            )
            total = sum(one.upload_info.size for one in commit.add)
            head = commit.head()
            if commit.leave_out_what_is_there(head):
                there = total - sum(one.upload_info.size for one in commit.add)
                commit.upload(lambda done: report(there + done))
                head = commit.send(message, self.budget, urgent=urgent)
                self._own.add(head)
            report(total)
            return head

    def squash(self, repo_id: str, *, kind: RepoKind, message: str) -> str:
        self.budget.take(urgent=True)
        with hub_errors(repo_id, kind):
            self._patiently(lambda: self._api.super_squash_history(repo_id, repo_type=kind, commit_message=message))
        return self.head(repo_id, kind=kind) or ""

    def wait_s(self) -> float:
        return self.budget.wait_s()

    def count_past_commits(self, repo_id: str, *, kind: RepoKind) -> None:
        if (kind, repo_id) in self._counted:
            return
        with hub_errors(repo_id, kind):
            try:
                commits = self._api.list_repo_commits(repo_id, repo_type=kind)  # asks again by itself
            except RepositoryNotFoundError as error:
                _unless_unknown(error)
                return
        now = datetime.now(UTC)
        ages = [(now - commit.created_at).total_seconds() for commit in commits if commit.commit_id not in self._own]
        self.budget.seed(age for age in ages if age < self.budget.window_s)
        self._counted.add((kind, repo_id))

    def _find(self, repo_id: str, path: str, kind: RepoKind, commit: str) -> RemoteFile | None:
        found = self._patiently(lambda: self._api.get_paths_info(repo_id, [path], repo_type=kind, revision=commit))
        return next((remote_file(file) for file in found if isinstance(file, RepoFile)), None)

    def _address(self, repo_id: str, path: str, kind: RepoKind, commit: str | None) -> Address:
        wanted = Reference(repo_id=repo_id, file=path, revision=commit, repo_type=kind)
        return hub_address(wanted, token=self._token, endpoint=self._api.endpoint)

    def _patiently(self, call: Callable[[], T]) -> T:
        return with_retries(call, tries=self._tries)


def _listed(file: RepoSibling) -> RemoteFile:
    if file.lfs is not None:
        return RemoteFile(size=file.lfs.size, sha256=file.lfs.sha256)
    return RemoteFile(size=file.size or 0, git_sha1=file.blob_id)


def _unless_unknown(error: RepositoryNotFoundError) -> None:
    """A repo that is missing is no error; a token that the Hub does not know is one."""
    if status_of(error) == 401:
        raise error

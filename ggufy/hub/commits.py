"""One commit to a repo on the Hugging Face Hub: what is left to do, the large files, the commit itself, and what
became of it.

The client library does not repeat the request that makes the commit, since it may have been carried out although its
answer was lost. Here the newest commit is read then and compared with what was sent; the request is made again only
if it is not there. With a parent a second one could not do any harm: the Hub refuses it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from ggufy.core.errors import HubAway, HubError, RepoMissing, StaleParent
from ggufy.core.names import RepoKind
from ggufy.hub import xet
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.protocol import Content, RemoteFile, Staged
from ggufy.net.hub_errors import is_passing, quota_wait_s, status_of
from ggufy.net.hub_private import build_hf_headers, fetch_upload_modes, is_xet_available
from ggufy.net.session import FAILURES, backoff_s, check_stopped, pause, reason, with_retries

logger = logging.getLogger(__name__)


class Commit:
    """One commit that is to be made. Its methods raise what the client library raises, and HubErrors of their own."""

    def __init__(
        self,
        api: HfApi,
        repo_id: str,
        kind: RepoKind,
        *,
        add: Mapping[str, Content],
        delete: Collection[str],
        parent: str | None,
        tries: int,
        stopped: Callable[[], bool],
    ):
        self.api, self.repo_id, self.kind, self.parent = api, repo_id, kind, parent
        self.tries, self.stopped = tries, stopped
        self.add = [_operation(path, content) for path, content in add.items()]
        self.delete = sorted(delete)

    def head(self) -> str:
        """The newest commit. Raises StaleParent if it is not the parent that was given."""
        head = self._newest()
        if self.parent is not None and head != self.parent:
            raise StaleParent("somebody else has committed to {repo} meanwhile: read it again.", repo=self.repo_id)
        return head

    def leave_out_what_is_there(self, head: str) -> bool:
        """Compares with that commit; False if nothing is left to do."""
        there = self._files(head)
        self.add = [add for add in self.add if not _same(add, there.get(add.path_in_repo))]
        self.delete = [path for path in self.delete if path in there]
        return bool(self.add or self.delete)

    def upload(self, progress: Callable[[int], None]) -> None:
        """Brings the files that the Hub does not take into git itself to its storage, where they wait for the commit;
        `progress` gets the bytes of these. Those that were staged are there."""
        fresh = [add for add in self.add if add._upload_mode is None]
        if not fresh:
            return
        fetch_upload_modes(
            additions=fresh,
            repo_type=self.kind,
            repo_id=self.repo_id,
            headers=build_hf_headers(token=self.api.token),
            revision="main",
            endpoint=self.api.endpoint,
        )
        for add in fresh:
            # What is there already was left out above. The library would leave out more in silence, and a commit of
            # which nothing is left it does not send at all, not even to have its parent checked.
            add._remote_oid, add._should_ignore = None, False
        large = [add for add in fresh if add._upload_mode == "lfs"]
        if large and is_xet_available():
            self._upload_xet(large, progress)
        elif large:
            self._upload_lfs(large, progress)

    def _upload_xet(self, large: list[CommitOperationAdd], progress: Callable[[int], None]) -> None:
        headers = build_hf_headers(token=self.api.token)
        url = f"{self.api.endpoint}/api/{self.kind}s/{self.repo_id}/xet-write-token/main"
        for failed in itertools.count(1):
            try:
                xet.upload(large, token_url=url, headers=headers, progress=progress, stopped=self.stopped)
                return
            except (HubAway, *FAILURES) as error:
                if failed >= self.tries or not (isinstance(error, HubAway) or is_passing(error)):
                    raise
                logger.info("uploading to %s again: %s", self.repo_id, reason(error))
            pause(backoff_s(failed), self.stopped)

    def _upload_lfs(self, large: list[CommitOperationAdd], progress: Callable[[int], None]) -> None:
        """Where hf_xet cannot be used. The client library tries each request several times."""
        done = 0
        for add in large:
            check_stopped(self.stopped)
            try:
                self.api.preupload_lfs_files(self.repo_id, [add], repo_type=self.kind, free_memory=False)
            except RuntimeError as error:
                if isinstance(error.__cause__, FAILURES):  # what really happened
                    raise error.__cause__ from None
                raise
            done += add.upload_info.size
            progress(done)

    def send(self, message: str, budget: CommitBudget, *, urgent: bool) -> str:
        """Makes the commit; returns its id, or that of the newest one if this one is below it."""
        unsure = False  # an earlier try may have been carried out
        for failed in itertools.count(1):
            budget.take(urgent=urgent or failed > 1)
            try:
                return self._create(message)
            except FAILURES as error:
                if isinstance(error, HfHubHTTPError) and status_of(error) == 429:
                    budget.pause(quota_wait_s(error))
                if not (unsure and status_of(error) == 412) and not is_passing(error):
                    raise
                if (head := self._landed()) is not None:
                    return head
                if failed >= self.tries or status_of(error) == 412:
                    raise
                unsure = True
                logger.info("committing to %s again: %s", self.repo_id, reason(error))
            pause(backoff_s(failed), self.stopped)
        raise AssertionError("unreachable")

    def _create(self, message: str) -> str:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [*self.add]
        operations += [CommitOperationDelete(path) for path in self.delete]
        made = self.api.create_commit(
            self.repo_id, operations, commit_message=message, repo_type=self.kind, parent_commit=self.parent
        )
        return str(made.oid)

    def _landed(self) -> str | None:
        """The newest commit if it holds what was sent; None if the repo has not moved.

        Raises StaleParent if it has moved in another way and a parent was given.
        """
        head = self._newest()
        if head == self.parent:
            return None
        there = self._files(head)
        if all(_same(add, there.get(add.path_in_repo)) for add in self.add) and not there.keys() & set(self.delete):
            return head
        if self.parent is not None:
            raise StaleParent("somebody else has committed to {repo} meanwhile: read it again.", repo=self.repo_id)
        return None

    def _newest(self) -> str:
        def call() -> str | None:
            return self.api.repo_info(self.repo_id, repo_type=self.kind).sha

        if (head := with_retries(call, tries=self.tries, stopped=self.stopped)) is None:
            raise RepoMissing("{repo} holds nothing on the Hub: delete it there, it is made again.", repo=self.repo_id)
        return head

    def _files(self, commit: str) -> dict[str, RemoteFile]:
        """Those that this commit is about, as of another commit."""
        paths = [*(add.path_in_repo for add in self.add), *self.delete]

        def call() -> dict[str, RemoteFile]:
            found = self.api.get_paths_info(self.repo_id, paths, repo_type=self.kind, revision=commit)
            return {file.path: remote_file(file) for file in found if isinstance(file, RepoFile)}

        return with_retries(call, tries=self.tries, stopped=self.stopped)


def remote_file(file: RepoFile) -> RemoteFile:
    """What the Hub tells about a file."""
    if file.lfs is not None:
        return RemoteFile(size=file.size, sha256=file.lfs.sha256)
    return RemoteFile(size=file.size, git_sha1=file.blob_id)


def _operation(path: str, content: Content) -> CommitOperationAdd:
    """The file as the library commits it."""
    if isinstance(content, Staged):
        assert isinstance(content.handle, CommitOperationAdd)
        return content.handle
    return CommitOperationAdd(path, _there(content))


def _there(content: bytes | Path) -> bytes | str:
    """The content as the library takes it: bytes or the text of a path, never a file object."""
    if isinstance(content, bytes):
        return content
    if not content.is_file():
        raise HubError("{path} is gone, so it cannot be uploaded: make it again.", path=content)
    return str(content)


def _same(add: CommitOperationAdd, there: RemoteFile | None) -> bool:
    if there is None or there.size != add.upload_info.size:
        return False
    data = add.path_or_fileobj
    content = data if isinstance(data, bytes) else Path(str(data))
    return there.holds(content, add.upload_info.sha256.hex() if there.sha256 else None)

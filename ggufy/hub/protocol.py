"""What the program asks of a hub; huggingface.py does it with repos on the Hugging Face Hub, and modelscope.py what
results need of it (OutputHub) with those on ModelScope.

A repo is named `owner/name` and is of a kind. It changes by commits: some files added or replaced, some deleted, all
at once. Each commit has an id; who names the id that was seen last as `parent` is refused (StaleParent) if somebody
else was faster. Files whose names begin with a dot are the hub's own and are not listed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from ggufy.core.errors import HubError
from ggufy.core.names import RepoKind
from ggufy.system.clock import never
from ggufy.system.files import sha256


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A file that the hub has in its storage already, and no commit names yet."""

    path: Path
    handle: object  # the hub's own


Content = bytes | Path | Staged


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repo. The Hugging Face Hub knows the sha256 of large files only (those that it keeps in LFS or Xet,
    as every GGUF), and of any other its git digest; ModelScope and a folder know the sha256 of all."""

    size: int  # bytes
    sha256: str | None = None  # hex digest
    git_sha1: str | None = None  # hex digest as of `git hash-object`, where there is no sha256

    def holds(self, content: bytes | Path, digest: str | None = None) -> bool:
        """True if this is the content; the sha256 of a path is computed unless given as `digest`."""
        if self.size != (len(content) if isinstance(content, bytes) else content.stat().st_size):
            return False
        if self.sha256 is None:
            return self.git_sha1 == git_sha1(content if isinstance(content, bytes) else content.read_bytes())
        return self.sha256 == (digest or sha256_of(content))


class OutputHub(Protocol):
    """A place for repos that one program at a time writes to, as results go to. Every method raises a HubError when it
    cannot do its work, and DiskError for this disk."""

    def create_repo(self, repo_id: str, *, kind: RepoKind, private: bool = False) -> None:
        """Makes the repo if there is none. Raises HubError if it exists, is public, and should be private."""

    def list_files(self, repo_id: str, *, kind: RepoKind, under: str = "") -> dict[str, RemoteFile]:
        """What the repo holds now, by path, or that part whose paths begin with the folder `under` (`jobs/`); nothing
        if it does not exist."""

    def read(self, repo_id: str, path: str, *, kind: RepoKind) -> bytes | None:
        """A small file, or None if there is no such file or repo."""

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
        """Brings a file here, whole and checked, or not at all; the next process goes on where this one ended.

        `progress` gets the bytes that are here. Raises Cancelled soon after `stopped()` turned true.
        """

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
        """Adds (or replaces) files; returns the id of the new commit.

        What is there already is not sent again; if nothing is left to do, no commit is made and the newest one's id is
        returned. An answer that gets lost does not matter: whether the commit was made is found out. `progress` gets
        the bytes of the added files that are through. Raises RepoMissing, QuotaError, and Cancelled soon after
        `stopped()` turned true.
        """

    def wait_s(self) -> float:
        """Seconds until an ordinary commit may be made; 0 if it may be made now."""

    def count_past_commits(self, repo_id: str, *, kind: RepoKind) -> None:
        """Counts what other processes committed to the repo in the last hour; once for each repo."""


class Hub(OutputHub, Protocol):
    """A place for repos that several programs may write to: who names what he has seen is told of the others."""

    def head(self, repo_id: str, *, kind: RepoKind) -> str | None:
        """Id of the newest commit, or None if the repo does not exist or is hidden from this token."""

    def read(self, repo_id: str, path: str, *, kind: RepoKind, at: str | None = None) -> bytes | None:
        """A small file, or None if there is no such file or repo.

        `at` asks for it as of that commit. Raises StaleParent if that cannot be had any more; a folder has only its
        newest commit.
        """

    def stage(
        self,
        repo_id: str,
        files: Mapping[str, Path],
        *,
        kind: RepoKind,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = never,
    ) -> dict[str, Content]:
        """Brings the bytes of files to the hub; a commit that adds what this returns has only to name them. The files
        must stay where they are until then. Errors and arguments as for `commit`."""

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
        """Deletes files too; what is to be deleted may be missing. `urgent` lets a lease use commits that are kept
        back for it. Raises StaleParent if `parent` is given and is not the newest commit."""

    def squash(self, repo_id: str, *, kind: RepoKind, message: str) -> str:
        """Makes one commit of the whole history, with the same files; returns its id."""


def check_path(path: str) -> str:
    """The path, if it names a file inside a repo. Raises HubError for any other."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or any(part.startswith(".") for part in parts):
        raise HubError(
            "{path} is no name for a file in a repo: use plain names without leading dots.", path=repr(path)
        )
    return path


def is_listed(path: str) -> bool:
    """False for what a hub keeps for itself in a repo, such as .gitattributes."""
    return not any(part.startswith(".") for part in PurePosixPath(path).parts)


def sha256_of(content: bytes | Path) -> str:
    """Hex digest of bytes or of a file."""
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)


def git_sha1(content: bytes) -> str:
    """Hex digest of a git blob: git's object format is `blob <size>`, a zero byte, and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

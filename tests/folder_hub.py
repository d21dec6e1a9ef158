"""The hub without a hub: the repo `owner/name` is the folder `<root>/name`.

The folder is the truth: what lies in it, complete, is in the repo, however it came there. A commit writes each file
aside, flushes it to the disk and renames it; then the commit id moves on. A process that dies in between leaves some
new files and the old id, and the same commit made again ends well.

    <root>/.ggufy-hub/<name>.lock    held while the repo changes; the kernel lets go of it when a process dies
    <root>/.ggufy-hub/<name>.json    commit id, and digests of files as long as size, time and inode stand
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ggufy.core.errors import Cancelled, HubError, RepoMissing, StaleParent
from ggufy.core.names import RepoKind
from ggufy.hub.protocol import Content, Hub, RemoteFile, Staged, check_path, is_listed, sha256_of
from ggufy.jobs.workspace import Workspace
from ggufy.records.account import Account
from ggufy.records.records import JobRecords
from ggufy.records.state_repo import StateRepo
from ggufy.records.store import JobStore
from ggufy.system.clock import never
from ggufy.system.files import DOWNLOAD_SUFFIX, PART_SUFFIX, disk_errors, partial, sha256, write_text
from ggufy.system.locks import lock

_BOOKS = ".ggufy-hub"
_NO_COMMIT = "0" * 40  # a folder that nothing was committed to yet
_UNFINISHED = (PART_SUFFIX, DOWNLOAD_SUFFIX)
_LOCK_WAIT_S = 600.0
_BLOCK = 4 << 20


@dataclass
class Book:
    """What is noted about a repo."""

    head: str = _NO_COMMIT
    digests: dict[str, list[int | str]] = field(default_factory=dict)  # path -> size, mtime_ns, inode, sha256

    def digest(self, name: str, path: Path) -> str | None:
        """The sha256 noted for the file, if it has not changed since."""
        known = self.digests.get(name)
        return str(known[3]) if known and known[:3] == _stamp(path) else None

    def note(self, name: str, path: Path, digest: str) -> None:
        self.digests[name] = [*_stamp(path), digest]


class LocalHub:
    """Folders below `root`; owner, kind and privacy make no difference here. See protocol.Hub for the methods."""

    def __init__(self, root: Path):
        self.root = root

    def folder(self, repo_id: str) -> Path:
        """Where the repo's files are."""
        name = repo_id.rpartition("/")[2]
        if not name or name.startswith(".") or "\\" in name:
            raise HubError(f"{repo_id!r} is no name for a repo: write owner/name.")
        return self.root / name

    def create_repo(self, repo_id: str, *, kind: RepoKind, private: bool = False) -> None:
        folder = self.folder(repo_id)
        with self._locked(repo_id) as book, disk_errors(folder):
            if not folder.is_dir():
                folder.mkdir(parents=True)
                self._save(repo_id, Book(head=_new_id()))
            elif book.head == _NO_COMMIT:
                book.head = _new_id()
                self._save(repo_id, book)

    def head(self, repo_id: str, *, kind: RepoKind) -> str | None:
        return self._load(repo_id).head if self.folder(repo_id).is_dir() else None

    def list_files(self, repo_id: str, *, kind: RepoKind, under: str = "") -> dict[str, RemoteFile]:
        folder, book, found, new = self.folder(repo_id), self._load(repo_id), {}, Book()
        for path in sorted((folder / under).rglob("*")):
            name = path.relative_to(folder).as_posix()
            with contextlib.suppress(FileNotFoundError):  # deleted while we look
                if not path.is_file() or not is_listed(name) or name.endswith(_UNFINISHED):
                    continue
                if (digest := book.digest(name, path)) is None:
                    digest = sha256(path)
                    new.note(name, path, digest)
                found[name] = RemoteFile(size=path.stat().st_size, sha256=digest)
        if new.digests:
            with self._locked(repo_id) as book:
                book.digests |= new.digests
                self._save(repo_id, book)
        return found

    def read(self, repo_id: str, path: str, *, kind: RepoKind, at: str | None = None) -> bytes | None:
        file = self.folder(repo_id) / check_path(path)
        self._check_head(repo_id, at)
        try:
            data = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            data = None
        self._check_head(repo_id, at)
        return data

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
        source = self.folder(repo_id) / check_path(path)
        if not source.is_file():
            raise HubError(f"{repo_id} has no file {path}: look into {source.parent}.")
        if not (target.exists() and target.samefile(source)):
            _copy(source, target, report=progress or _ignore, stopped=stopped)

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
        folder, add = self.folder(repo_id), add or {}
        for path in (*add, *delete):
            check_path(path)
        report = progress or _ignore
        with self._locked(repo_id) as book, disk_errors(folder):
            self._check_head(repo_id, parent)
            if not folder.is_dir():
                raise RepoMissing(f"there is no repo {repo_id}: the folder {folder} is missing.")
            done, changed = 0, False
            for name, content in add.items():
                shifted = functools.partial(_shifted, report, done)
                changed |= _put(book, name, content, folder / name, report=shifted, stopped=stopped)
                done += (folder / name).stat().st_size
                report(done)
            for name in delete:
                changed |= _remove(book, name, folder)
            if changed:
                book.head = _new_id()
                self._save(repo_id, book)
            return book.head

    def squash(self, repo_id: str, *, kind: RepoKind, message: str) -> str:
        with self._locked(repo_id) as book:
            if not self.folder(repo_id).is_dir():
                raise RepoMissing(f"there is no repo {repo_id}.")
            book.head = _new_id()
            self._save(repo_id, book)
            return book.head

    def stage(
        self,
        repo_id: str,
        files: Mapping[str, Path],
        *,
        kind: RepoKind,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = never,
    ) -> dict[str, Content]:
        return dict(files)

    def wait_s(self) -> float:
        return 0.0

    def count_past_commits(self, repo_id: str, *, kind: RepoKind) -> None:
        pass

    @contextlib.contextmanager
    def _locked(self, repo_id: str) -> Iterator[Book]:
        """Holds the repo against other threads and processes; yields what is noted about it."""
        path = self.root / _BOOKS / f"{self.folder(repo_id).name}.lock"
        with lock(path, _LOCK_WAIT_S, f"another run has been writing to {self.folder(repo_id)} for too long: end it."):
            yield self._load(repo_id)

    def _book(self, repo_id: str) -> Path:
        return self.root / _BOOKS / f"{self.folder(repo_id).name}.json"

    def _load(self, repo_id: str) -> Book:
        try:
            return Book(**json.loads(self._book(repo_id).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return Book()  # a folder that was here before, or whose notes somebody removed

    def _save(self, repo_id: str, book: Book) -> None:
        write_text(self._book(repo_id), json.dumps(vars(book), indent=1) + "\n")

    def _check_head(self, repo_id: str, expected: str | None) -> None:
        if expected is not None and (self.head(repo_id, kind="model") or "") != expected:
            raise StaleParent(f"somebody else has changed {self.folder(repo_id)} meanwhile: read it again.")


@contextlib.contextmanager
def connected(out: Path, hub: Hub, owner: str) -> Iterator[Workspace]:
    """A connection to this hub, for an output folder; it lets go of its lease at the end."""
    records = JobRecords(JobStore(out))
    workspace = Workspace(records=records, hub=hub, state=StateRepo(records, hub, Account(ask=lambda: owner)))
    workspace.start()
    try:
        yield workspace
    finally:
        workspace.close()


def _put(
    book: Book,
    name: str,
    content: Content,
    target: Path,
    *,
    report: Callable[[int], None],
    stopped: Callable[[], bool],
) -> bool:
    """Brings the content under its name; False if it was there."""
    assert not isinstance(content, Staged)
    if isinstance(content, Path):
        if not content.is_file():
            raise HubError(f"{content} is gone, so it cannot be added to the repo: make it again.")
        if target.exists() and target.samefile(content):
            known = book.digest(name, target)
            book.note(name, target, known or sha256(target, report))
            return known is None
    if target.is_file():
        there = RemoteFile(size=target.stat().st_size, sha256=book.digest(name, target) or sha256(target))
        if there.holds(content):
            return False
    if isinstance(content, bytes):
        with partial(target) as part:
            part.write_bytes(content)
        digest = sha256_of(content)
    else:
        digest = _copy(content, target, report=report, stopped=stopped)
    book.note(name, target, digest)
    return True


def _copy(source: Path, target: Path, *, report: Callable[[int], None], stopped: Callable[[], bool]) -> str:
    """Copies a file; returns its sha256."""
    digest = hashlib.sha256()
    with partial(target) as part, source.open("rb") as old, part.open("wb") as new:
        while block := old.read(_BLOCK):
            if stopped():
                raise Cancelled("the job was stopped.")
            new.write(block)
            digest.update(block)
            report(new.tell())
    return digest.hexdigest()


def _remove(book: Book, name: str, folder: Path) -> bool:
    """Deletes a file, and the folders that are empty then; False if there was none."""
    book.digests.pop(name, None)
    file = folder / name
    if not file.is_file():
        return False
    file.unlink()
    for above in file.relative_to(folder).parents:
        if above != Path() and not any((folder / above).iterdir()):
            (folder / above).rmdir()
    return True


def _stamp(path: Path) -> list[int | str]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _new_id() -> str:
    """Looks like a commit id of git; never the same twice."""
    return secrets.token_hex(20)


def _shifted(report: Callable[[int], None], start: int, done: int) -> None:
    report(start + done)


def _ignore(done: int) -> None:
    pass

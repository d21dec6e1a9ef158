"""What stands for the world around a job in tests that run in milliseconds: a clock whose hands are turned, a hub in
memory that is away, slow, or loses answers, and steps that make small files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggufy.core.errors import Cancelled, HubAway, QuotaError, RepoMissing, StaleParent, TokenError
from ggufy.core.names import RepoKind
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.protocol import Content, RemoteFile, Staged, check_path
from ggufy.system.clock import never, sleep

_REAL_S = 0.005  # a wait looks around so often, for stops that nobody announces


class HandClock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()
        self._waiting: dict[threading.Condition, int] = {}

    def now(self) -> float:
        return self._now

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        with self._lock:
            self._waiting[condition] = self._waiting.get(condition, 0) + 1
        condition.wait(_REAL_S)
        with self._lock:
            self._waiting[condition] -= 1
            if not self._waiting[condition]:
                del self._waiting[condition]

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds
            waiting = list(self._waiting)
        for condition in waiting:
            with condition:
                condition.notify_all()


@dataclass
class Repo:
    """A repo in memory: every commit's files, oldest first."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def head(self) -> str:
        return f"{id(self):x}-{len(self.commits) - 1}"


class Cloud:
    """The hub that all machines share, and its moods."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.repos: dict[tuple[str, str], Repo] = {}
        self.mood = ""  # "", away, lost, slow, hangs, quota, token
        self.then: list[str] = []  # moods of the next calls, before that one
        self.lock = threading.Lock()  # of what is in memory here
        self.violations: list[str] = []

    def files(self, repo_id: str, kind: RepoKind = "model") -> dict[str, bytes]:
        with self.lock:
            repo = self.repos.get((kind, repo_id))
            return dict(repo.files) if repo else {}


class Handle:
    """One process' client. Cut off (`dead`), nothing that it asks arrives any more."""

    def __init__(self, cloud: Cloud, held: Callable[[], Iterable[str]] = tuple):
        self.cloud, self.dead = cloud, False
        self.held = held  # names of the product's locks that the calling thread holds
        self.budget = CommitBudget(limit=240, reserve=120, burst=60, clock=cloud.clock.now)

    def _call(self, what: str, do: Callable[[], Any], stopped: Callable[[], bool] = never) -> Any:
        if names := list(self.held()):
            self.cloud.violations.append(f"{what} with {', '.join(names)} held")
        with self.cloud.lock:
            mood = self.cloud.then.pop(0) if self.cloud.then else self.cloud.mood
        if self.dead or mood == "away":
            raise HubAway("the Hub cannot be reached.")
        if mood == "quota":
            raise QuotaError("the Hub takes no more requests for now.", 900.0)
        if mood == "token":
            raise TokenError("the token has expired: set HF_TOKEN to a valid one.")
        if mood in ("slow", "hangs"):
            sleep(8.0 if mood == "slow" else 240.0, lambda: stopped() or self.dead, self.cloud.clock)
        if mood == "hangs":
            raise HubAway("the Hub does not answer.")
        with self.cloud.lock:
            answer = do()
        if mood == "lost":
            raise HubAway("the answer was lost.")
        return answer

    def user(self) -> str:
        return str(self._call("user", lambda: "alice"))

    def create_repo(self, repo_id: str, *, kind: RepoKind, private: bool = False) -> None:
        self._call("create_repo", lambda: self.cloud.repos.setdefault((kind, repo_id), Repo(private)))

    def head(self, repo_id: str, *, kind: RepoKind) -> str | None:
        def do() -> str | None:
            repo = self.cloud.repos.get((kind, repo_id))
            return repo.head() if repo else None

        found: str | None = self._call("head", do)
        return found

    def list_files(self, repo_id: str, *, kind: RepoKind, under: str = "") -> dict[str, RemoteFile]:
        def do() -> dict[str, RemoteFile]:
            repo = self.cloud.repos.get((kind, repo_id))
            there = repo.files if repo else {}
            return {name: _remote(data) for name, data in there.items() if name.startswith(under)}

        found: dict[str, RemoteFile] = self._call("list_files", do)
        return found

    def read(self, repo_id: str, path: str, *, kind: RepoKind, at: str | None = None) -> bytes | None:
        def do() -> bytes | None:
            repo = self.cloud.repos.get((kind, repo_id))
            if at is not None and (repo is None or repo.head() != at):
                raise StaleParent("it has moved on.")
            return repo.files.get(path) if repo else None

        found: bytes | None = self._call("read", do)
        return found

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
        data: bytes = self._call("download", lambda: self.cloud.repos[kind, repo_id].files[path], stopped)
        target.write_bytes(data)

    def stage(
        self,
        repo_id: str,
        files: Mapping[str, Path],
        *,
        kind: RepoKind,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = never,
    ) -> dict[str, Content]:
        def do() -> dict[str, Content]:
            return {name: Staged(path=path, handle=path.read_bytes()) for name, path in files.items()}

        found: dict[str, Content] = self._call("stage", do, stopped)
        return found

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
        add = add or {}
        for path in (*add, *delete):
            check_path(path)

        def do() -> str:
            repo = self.cloud.repos.get((kind, repo_id))
            if repo is None:
                raise RepoMissing(f"there is no repo {repo_id}.")
            if parent is not None and repo.head() != parent:
                raise StaleParent("somebody was faster.")
            files = {**repo.files, **{name: _data(content) for name, content in add.items()}}
            files = {name: data for name, data in files.items() if name not in delete}
            if files != repo.files:
                self.budget.take(urgent=urgent)
                repo.commits.append(files)
            return repo.head()

        made: str = self._call("commit", do, stopped)
        return made

    def squash(self, repo_id: str, *, kind: RepoKind, message: str) -> str:
        def do() -> str:
            repo = self.cloud.repos[kind, repo_id]
            self.cloud.repos[kind, repo_id] = Repo(repo.private, [repo.files])
            return self.cloud.repos[kind, repo_id].head()

        made: str = self._call("squash", do)
        return made

    def wait_s(self) -> float:
        return self.budget.wait_s()

    def count_past_commits(self, repo_id: str, *, kind: RepoKind) -> None:
        self._call("count_past_commits", lambda: None)


def _data(content: Content) -> bytes:
    if isinstance(content, Staged):
        assert isinstance(content.handle, bytes)
        return content.handle
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except FileNotFoundError as error:
        raise Cancelled(f"{content} is gone") from error


def _remote(data: bytes) -> RemoteFile:
    return RemoteFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())

"""What every hub must do, on folders, on the real client against the local Hub, over Xet and over LFS, and on a local
ModelScope. What several writers need (`shared`), all but the latter do."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import random
import threading
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import pytest

from ggufy.core.errors import Cancelled, HubError, RepoMissing, StaleParent
from ggufy.core.names import RepoKind
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.hub.modelscope import ModelScopeHub
from ggufy.hub.protocol import Hub, sha256_of
from ggufy.net import session as hub_session
from tests.folder_hub import LocalHub
from tests.hub_fixture import ALICE, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.hub_fixture import LocalHub as Server
from tests.modelscope_fixture import MS_ALICE, local_modelscope  # noqa: F401 - a fixture

# The client library's LFS upload uses what its HTTP library is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
NUMBERS = itertools.count()
SIZE = 3_000_000


@dataclass(frozen=True)
class Place:
    """A hub to be tested, and what the test may look at from outside."""

    hub: Hub  # ModelScope: an OutputHub
    name: str  # local, xet, lfs or modelscope
    root: Path  # of the local one
    server: Server | None  # of the others

    def new(self, kind: RepoKind = "model", *, make: bool = True) -> str:
        repo = f"alice/contract-{next(NUMBERS)}"
        if make:
            self.hub.create_repo(repo, kind=kind)
        return repo

    @property
    def begins_with(self) -> set[str]:
        """What a new repo holds."""
        return {"README.md"} if self.name == "modelscope" else set()

    def writes(self) -> list[str]:
        """Requests that brought something to the server since the last call."""
        if self.server is None:
            return []
        told = [f"{line['method']} {line['path']}" for line in self.server.log()]
        self.server.clear()
        return [line for line in told if line.startswith("PUT") or "/commit/" in line or "-write-token" in line]


def place_named(name: str, request: pytest.FixtureRequest, tmp_path: Path, patch: pytest.MonkeyPatch) -> Place:
    if name == "local":
        return Place(LocalHub(tmp_path / "hub"), "local", tmp_path / "hub", None)
    server = request.getfixturevalue("local_modelscope" if name == "modelscope" else "local_hub")
    patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", name == "lfs")
    patch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    budget = CommitBudget(limit=1000, reserve=0, burst=1000)
    if name == "modelscope":
        return Place(ModelScopeHub(token=MS_ALICE, endpoint=server.endpoint, budget=budget), name, tmp_path, server)
    return Place(HuggingFaceHub(token=ALICE, endpoint=server.endpoint, budget=budget), name, tmp_path / "hub", server)


@pytest.fixture(params=["local", "xet", "lfs", "modelscope"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return place_named(request.param, request, tmp_path, monkeypatch)


@pytest.fixture(params=["local", "xet", "lfs"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A hub on which several programs may write to a repo."""
    return place_named(request.param, request, tmp_path, monkeypatch)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "model-Q8_0.gguf"
    path.parent.mkdir()
    path.write_bytes(random.Random(next(NUMBERS)).randbytes(SIZE))  # else the Hub has it from another test
    return path


def test_a_repo_is_made_once(place: Place) -> None:
    repo = place.new(make=False)
    assert place.hub.head(repo, kind="dataset") is None
    assert place.hub.list_files(repo, kind="dataset") == {}
    assert place.hub.read(repo, "a.txt", kind="dataset") is None
    place.hub.create_repo(repo, kind="dataset", private=True)
    head = place.hub.head(repo, kind="dataset")
    assert head is not None and len(head) == 40
    place.hub.create_repo(repo, kind="dataset", private=True)
    assert place.hub.head(repo, kind="dataset") == head
    assert place.hub.list_files(repo, kind="dataset").keys() == place.begins_with


def test_small_and_large_files_come_back_as_they_went(place: Place, large: Path, tmp_path: Path) -> None:
    repo, seen, data = place.new(), list[int](), large.read_bytes()
    head = place.hub.commit(
        repo,
        kind="model",
        message="a commit",
        add={"README.md": b"# Card\n", "quants/model-Q8_0.gguf": large, "jobs/a.json": b"{}"},
        progress=seen.append,
    )
    assert place.hub.head(repo, kind="model") == head
    files = place.hub.list_files(repo, kind="model")
    assert sorted(files) == ["README.md", "jobs/a.json", "quants/model-Q8_0.gguf"]
    assert list(place.hub.list_files(repo, kind="model", under="jobs/")) == ["jobs/a.json"]
    assert place.hub.list_files(repo, kind="model", under="none/") == {}
    found = files["quants/model-Q8_0.gguf"]
    assert (found.size, found.sha256) == (SIZE, sha256_of(data))
    puts = [line for line in place.writes() if line.startswith("PUT") or "-write-token" in line]
    assert [line[:3] for line in puts] == {"local": [], "xet": ["GET"]}.get(place.name, ["PUT"])
    assert found.holds(large) and found.holds(data) and not found.holds(data[::-1])
    assert files["README.md"].holds(b"# Card\n") and not files["README.md"].holds(b"# Cars\n")
    assert place.hub.read(repo, "jobs/a.json", kind="model") == b"{}"
    assert place.hub.read(repo, "jobs/b.json", kind="model") is None
    assert seen == sorted(seen) and seen[-1] == SIZE + 9
    place.hub.download(repo, "quants/model-Q8_0.gguf", tmp_path / "back" / "a.gguf", kind="model")
    place.hub.download(repo, "README.md", tmp_path / "back" / "b.md", kind="model")
    assert (tmp_path / "back" / "a.gguf").read_bytes() == data
    assert (tmp_path / "back" / "b.md").read_bytes() == b"# Card\n"
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["a.gguf", "b.md"]


def test_what_is_there_is_not_sent_again(place: Place, large: Path) -> None:
    repo = place.new()
    content = {"model-Q8_0.gguf": large, "README.md": b"# Card\n"}
    head = place.hub.commit(repo, kind="model", message="first", add=content)
    place.writes()
    seen: list[int] = []
    assert place.hub.commit(repo, kind="model", message="again", add=content, progress=seen.append) == head
    if place.name != "modelscope":
        assert place.hub.commit(repo, kind="model", message="again", add=content, parent=head) == head
        assert place.hub.commit(repo, kind="model", message="again", delete=["no-such-file"]) == head
    assert place.hub.head(repo, kind="model") == head and place.writes() == [] and seen[-1] == SIZE + 7
    changed = place.hub.commit(repo, kind="model", message="card", add=content | {"README.md": b"# Better\n"})
    assert changed != head
    assert [line for line in place.writes() if "/commit/" not in line] == [], "the large file was sent again"
    other = place.hub.commit(repo, kind="model", message="same file, other name", add={"copy.gguf": large})
    assert place.hub.head(repo, kind="model") == other
    if place.name in ("lfs", "modelscope"):
        assert not [line for line in place.writes() if line.startswith("PUT")]


def test_what_was_staged_is_committed_without_being_sent_again(shared: Place, large: Path, tmp_path: Path) -> None:
    repo, seen = shared.new("dataset"), list[int]()
    small = tmp_path / "segment.txt"
    small.write_bytes(b"a small one")
    head = shared.hub.head(repo, kind="dataset")
    shared.writes()
    files = {"files/a/big.gguf": large, "files/a/small.txt": small}
    staged = shared.hub.stage(repo, files, kind="dataset", progress=seen.append)
    sent = [line[:3] for line in shared.writes() if "/commit/" not in line]
    assert sent == {"local": [], "xet": ["GET"], "lfs": ["PUT"]}[shared.name]
    assert sorted(staged) == sorted(files) and seen == sorted(seen)
    assert shared.hub.head(repo, kind="dataset") == head and shared.hub.list_files(repo, kind="dataset") == {}
    new = shared.hub.commit(
        repo, kind="dataset", message="one", add={**staged, "lease.json": b"{}"}, parent=head, urgent=True
    )
    assert [line for line in shared.writes() if "/commit/" not in line] == [], "it was sent again"
    there = shared.hub.list_files(repo, kind="dataset")
    assert shared.hub.head(repo, kind="dataset") == new and sorted(there) == [*sorted(files), "lease.json"]
    assert there["files/a/big.gguf"].holds(large) and there["files/a/small.txt"].holds(small)


def test_what_was_staged_survives_a_commit_that_is_refused(shared: Place, large: Path) -> None:
    """Somebody else was faster: the same is committed again on what they made."""
    repo = shared.new("dataset")
    staged = shared.hub.stage(repo, {"big.gguf": large}, kind="dataset")
    old = shared.hub.head(repo, kind="dataset")
    new = shared.hub.commit(repo, kind="dataset", message="theirs", add={"a.txt": b"1"})
    with pytest.raises(StaleParent):
        shared.hub.commit(repo, kind="dataset", message="ours", add=staged, parent=old)
    shared.writes()
    shared.hub.commit(repo, kind="dataset", message="ours", add=staged, parent=new)
    assert [line for line in shared.writes() if "/commit/" not in line] == []
    assert sorted(shared.hub.list_files(repo, kind="dataset")) == ["a.txt", "big.gguf"]


def test_staging_what_is_there_makes_no_commit(shared: Place, large: Path) -> None:
    repo = shared.new()
    head = shared.hub.commit(repo, kind="model", message="one", add={"a.gguf": large})
    staged = shared.hub.stage(repo, {"a.gguf": large}, kind="model")
    assert shared.hub.commit(repo, kind="model", message="two", add=staged, parent=head) == head
    assert shared.hub.stage(repo, {}, kind="model") == {}


def test_past_commits_may_be_counted_at_any_time(place: Place) -> None:
    place.hub.count_past_commits(place.new(make=False), kind="model")
    repo = place.new()
    for _ in range(2):
        place.hub.count_past_commits(repo, kind="model")
        place.hub.commit(repo, kind="model", message="one", add={"a.txt": b"1"})
    assert place.hub.wait_s() == 0


def test_nothing_to_do_on_a_repo_that_moved_is_stale_too(shared: Place) -> None:
    repo = shared.new()
    first = shared.hub.commit(repo, kind="model", message="one", add={"a.txt": b"1"})
    shared.hub.commit(repo, kind="model", message="two", add={"b.txt": b"2"})
    with pytest.raises(StaleParent):
        shared.hub.commit(repo, kind="model", message="three", add={"a.txt": b"1"}, parent=first)


def test_a_commit_on_a_stale_parent_changes_nothing(shared: Place, large: Path) -> None:
    repo = shared.new(kind="dataset")
    first = shared.hub.commit(repo, kind="dataset", message="one", add={"lease.json": b"1"})
    second = shared.hub.commit(repo, kind="dataset", message="two", add={"lease.json": b"2"}, parent=first)
    shared.writes()
    with pytest.raises(StaleParent, match="somebody else"):
        shared.hub.commit(
            repo, kind="dataset", message="three", add={"lease.json": b"3", "model.gguf": large}, parent=first
        )
    assert shared.hub.head(repo, kind="dataset") == second
    assert shared.hub.read(repo, "lease.json", kind="dataset", at=second) == b"2"
    assert list(shared.hub.list_files(repo, kind="dataset")) == ["lease.json"]
    assert shared.writes() == [], "something was sent although it was clear that it would be refused"


def test_of_commits_made_at_once_on_one_parent_one_is_made(shared: Place) -> None:
    repo = shared.new()
    parent = shared.hub.head(repo, kind="model")
    gate, ends = threading.Barrier(4), list[str]()

    def run(number: int) -> None:
        gate.wait()
        try:
            content = {"who.txt": str(number).encode()}
            shared.hub.commit(repo, kind="model", message="mine", add=content, parent=parent)
            ends.append(str(number))
        except StaleParent:
            ends.append("stale")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [end for end in ends if end != "stale"]
    assert len(ends) == 4 and shared.hub.read(repo, "who.txt", kind="model") == winner.encode()


def test_files_are_replaced_and_deleted_in_one_commit(shared: Place) -> None:
    repo = shared.new()
    files = {"a.txt": b"1", "sub/b.txt": b"2", "sub/c.txt": b"3", "sub/deep/d.txt": b"4"}
    shared.hub.commit(repo, kind="model", message="one", add=files)
    shared.hub.commit(
        repo, kind="model", message="two", add={"a.txt": b"new"}, delete=["sub/b.txt", "sub/deep/d.txt", "gone.txt"]
    )
    listed = shared.hub.list_files(repo, kind="model")
    assert sorted(listed) == ["a.txt", "sub/c.txt"] and listed["a.txt"].holds(b"new")
    assert shared.hub.read(repo, "sub/b.txt", kind="model") is None


def test_a_large_file_may_be_bytes_and_an_empty_file_is_one(place: Place) -> None:
    repo = place.new()
    place.hub.commit(repo, kind="model", message="one", add={"a.gguf": b"GGUF" * 9, "b.txt": b"", "c.gguf": b""})
    files = place.hub.list_files(repo, kind="model")
    assert files["a.gguf"].sha256 == sha256_of(b"GGUF" * 9) and files["b.txt"].size == files["c.gguf"].size == 0
    assert place.hub.read(repo, "a.gguf", kind="model") == b"GGUF" * 9


def test_a_squash_keeps_the_files_and_moves_the_head(shared: Place) -> None:
    repo = shared.new()
    head = ""
    for number in range(3):
        head = shared.hub.commit(repo, kind="model", message="more", add={f"{number}.txt": b"x"})
    squashed = shared.hub.squash(repo, kind="model", message="one commit")
    assert squashed == shared.hub.head(repo, kind="model") != head
    assert sorted(shared.hub.list_files(repo, kind="model")) == ["0.txt", "1.txt", "2.txt"]
    with pytest.raises(StaleParent):
        shared.hub.commit(repo, kind="model", message="late", add={"0.txt": b"y"}, parent=head)
    with pytest.raises(StaleParent):
        shared.hub.read(repo, "0.txt", kind="model", at=head)
    assert shared.hub.commit(repo, kind="model", message="on", add={"0.txt": b"y"}, parent=squashed) != squashed


def test_a_missing_repo_is_told(place: Place, tmp_path: Path) -> None:
    repo = place.new(make=False)
    with pytest.raises(RepoMissing):
        place.hub.commit(repo, kind="model", message="one", add={"a.txt": b"1"})
    if place.name != "modelscope":
        with pytest.raises(RepoMissing):
            place.hub.squash(repo, kind="model", message="one")
    with pytest.raises(HubError, match="has no file a.gguf"):
        place.hub.download(repo, "a.gguf", tmp_path / "a.gguf", kind="model")
    assert place.hub.head(repo, kind="model") is None and not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("path", ["../out.txt", "/etc/x", "a/../../b", ".hidden", "", "a\\b"])
def test_names_that_leave_the_repo_are_refused(place: Place, path: str, tmp_path: Path) -> None:
    repo = place.new()
    head = place.hub.head(repo, kind="model")
    with pytest.raises(HubError, match="no name for a file"):
        place.hub.commit(repo, kind="model", message="one", add={path: b"1"})
    if place.name != "modelscope":
        with pytest.raises(HubError, match="no name for a file"):
            place.hub.commit(repo, kind="model", message="one", delete=[path])
    with pytest.raises(HubError, match="no name for a file"):
        place.hub.read(repo, path, kind="model")
    assert place.hub.head(repo, kind="model") == head


def test_a_file_that_is_gone_is_told(place: Place, tmp_path: Path) -> None:
    repo = place.new()
    with pytest.raises(HubError, match="is gone, so it cannot be"):
        place.hub.commit(repo, kind="model", message="one", add={"a.gguf": tmp_path / "none.gguf"})
    if place.name != "modelscope":
        with pytest.raises(HubError, match="is gone, so it cannot be"):
            gone = place.hub.stage(repo, {"a.gguf": tmp_path / "none.gguf"}, kind="model")
            place.hub.commit(repo, kind="model", message="one", add=gone)


def test_a_stopped_upload_leaves_nothing(place: Place, large: Path) -> None:
    repo = place.new()
    head = place.hub.head(repo, kind="model")
    if place.name != "modelscope":
        with pytest.raises(Cancelled):
            staged = place.hub.stage(repo, {"a.gguf": large}, kind="model", stopped=lambda: True)
            place.hub.commit(repo, kind="model", message="one", add=staged, stopped=lambda: True)
    with pytest.raises(Cancelled):
        place.hub.commit(repo, kind="model", message="one", add={"a.gguf": large}, stopped=lambda: True)
    assert place.hub.head(repo, kind="model") == head
    assert place.hub.list_files(repo, kind="model").keys() == place.begins_with
    assert place.hub.commit(repo, kind="model", message="two", add={"a.gguf": large}) != head


def test_a_download_reports_its_bytes_and_can_be_stopped(place: Place, large: Path, tmp_path: Path) -> None:
    repo, seen = place.new(), list[int]()
    place.hub.commit(repo, kind="model", message="one", add={"a.gguf": large})
    with pytest.raises(Cancelled):
        place.hub.download(repo, "a.gguf", tmp_path / "a.gguf", kind="model", stopped=lambda: True)
    assert not (tmp_path / "a.gguf").exists()
    place.hub.download(repo, "a.gguf", tmp_path / "a.gguf", kind="model", progress=seen.append)
    assert sha256_of(tmp_path / "a.gguf") == sha256_of(large)
    assert seen == sorted(seen) and seen[-1] == SIZE

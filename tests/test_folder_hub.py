"""Repos that are folders: what is true of them beyond what every hub must do (test_hub_contract.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ggufy.core.errors import HubError, StaleParent
from ggufy.hub.protocol import sha256_of
from tests.folder_hub import LocalHub


@pytest.fixture
def local(tmp_path: Path) -> LocalHub:
    hub = LocalHub(tmp_path / "out")
    hub.create_repo("alice/m-GGUF", kind="model")
    return hub


def test_a_file_that_is_in_its_place_is_not_copied(local: LocalHub) -> None:
    made = local.root / "m-GGUF" / "m-Q8_0.gguf"
    made.write_bytes(b"GGUF" * 1000)
    before, inode = local.head("m-GGUF", kind="model"), made.stat().st_ino
    head = local.commit("alice/m-GGUF", kind="model", message="one", add={"m-Q8_0.gguf": made})
    assert head != before and made.stat().st_ino == inode
    assert local.list_files("me/m-GGUF", kind="model")["m-Q8_0.gguf"].sha256 == sha256_of(made)
    assert local.commit("alice/m-GGUF", kind="model", message="two", add={"m-Q8_0.gguf": made}) == head
    local.download("alice/m-GGUF", "m-Q8_0.gguf", made, kind="model")
    assert made.stat().st_ino == inode


def test_the_folder_is_the_truth(local: LocalHub) -> None:
    folder = local.root / "m-GGUF"
    for name in ("by-hand.gguf", "cut.gguf.part", "late.gguf.download", ".lock"):
        (folder / name).write_bytes(b"one")
    assert list(local.list_files("alice/m-GGUF", kind="model")) == ["by-hand.gguf"]
    first = local.list_files("alice/m-GGUF", kind="model")["by-hand.gguf"].sha256
    (folder / "by-hand.gguf").write_bytes(b"two")
    assert local.list_files("alice/m-GGUF", kind="model")["by-hand.gguf"].sha256 == sha256_of(b"two") != first
    (folder / "by-hand.gguf").unlink()
    assert local.list_files("alice/m-GGUF", kind="model") == {}
    assert sorted(path.name for path in local.root.iterdir()) == [".ggufy-hub", "m-GGUF"]


def test_a_folder_from_before_and_lost_notes_do_no_harm(local: LocalHub) -> None:
    (local.root / "old").mkdir()
    (local.root / "old" / "a.gguf").write_bytes(b"GGUF")
    head = local.head("x/old", kind="model")
    assert head is not None
    local.create_repo("x/old", kind="model")
    head = local.commit(
        "x/old", kind="model", message="one", add={"b.txt": b"1"}, parent=local.head("x/old", kind="model")
    )
    assert sorted(local.list_files("x/old", kind="model")) == ["a.gguf", "b.txt"]
    for note in (local.root / ".ggufy-hub").iterdir():
        note.write_text("{")
    with pytest.raises(StaleParent):
        local.commit("x/old", kind="model", message="two", add={"b.txt": b"2"}, parent=head)
    assert local.read("x/old", "b.txt", kind="model") == b"1"


@pytest.mark.parametrize("repo", ["alice/..", "alice/.ssh", "alice/", "a\\b"])
def test_repos_that_would_leave_the_root_are_refused(local: LocalHub, repo: str) -> None:
    with pytest.raises(HubError, match="no name for a repo"):
        local.create_repo(repo, kind="model")


def test_a_commit_that_dies_in_the_middle_can_be_made_again(local: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    save: Callable[..., None] = LocalHub._save
    head = local.head("alice/m-GGUF", kind="model")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalHub, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        local.commit("alice/m-GGUF", kind="model", message="one", add={"a.txt": b"1", "b.txt": b"2"}, parent=head)
    monkeypatch.setattr(LocalHub, "_save", save)
    assert local.head("alice/m-GGUF", kind="model") == head
    local.commit("alice/m-GGUF", kind="model", message="one", add={"a.txt": b"1", "b.txt": b"2"}, parent=head)
    assert local.read("alice/m-GGUF", "b.txt", kind="model") == b"2"

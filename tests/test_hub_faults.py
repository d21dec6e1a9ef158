"""The Hugging Face Hub when it is slow, silent or away, and when its answers are lost: each fault once."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

from collections.abc import Callable

import pytest

from ggufy.core.errors import HubAway, StaleParent
from ggufy.hub.commits import Commit
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.net import session as hub_session
from tests.hub_client import (  # noqa: F401 - fixtures
    ADD,
    COMMIT,
    NUMBERS,
    change,
    commits,
    connect,
    hub,
    impatient,
    large,
    repo,
    short_waits,
    wait_for,
)
from tests.hub_fixture import ALICE, ALICE_READ, BOB, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.hub_fixture import LocalHub as Server


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"status": 504}, {"status": 408}])
def test_a_commit_that_was_not_made_is_made_again(
    hub: HuggingFaceHub, local_hub: Server, repo: str, fault: dict[str, int]
) -> None:
    local_hub.fault(COMMIT, **fault)
    assert change(hub, repo) == hub.head(repo, kind="dataset")
    assert commits(local_hub, repo) == ["initial commit", "first", "second"]
    assert len(local_hub.log("/commit/")) == 2


@pytest.mark.parametrize("fault", [{"status": 500, "after": True}, {"status": 504, "after": True}, {"cut": 10}])
@pytest.mark.parametrize("with_parent", [True, False])
def test_a_commit_whose_answer_is_lost_is_found_and_not_made_again(
    hub: HuggingFaceHub, local_hub: Server, repo: str, fault: dict[str, int], with_parent: bool
) -> None:
    parent = hub.head(repo, kind="dataset") if with_parent else None
    local_hub.fault(COMMIT, **fault)
    made = hub.commit(
        repo, kind="dataset", message="second", add=ADD | {"new.txt": b""}, delete=["gone.txt"], parent=parent
    )
    assert made == hub.head(repo, kind="dataset") and hub.read(repo, "state.json", kind="dataset") == b"new"
    assert commits(local_hub, repo) == ["initial commit", "first", "second"]
    assert len(local_hub.log("/commit/")) == 1


def test_a_lost_answer_to_a_deletion_is_found_too(hub: HuggingFaceHub, local_hub: Server, repo: str) -> None:
    local_hub.fault(COMMIT, status=500, after=True)
    hub.commit(repo, kind="dataset", message="second", delete=["state.json"])
    assert hub.list_files(repo, kind="dataset") == {} and len(commits(local_hub, repo)) == 3


@pytest.mark.parametrize("wait", [0.01, 2.5])
def test_a_commit_that_is_carried_out_after_we_gave_up_on_it_is_made_once(
    impatient: HuggingFaceHub, local_hub: Server, repo: str, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", wait)  # the next try is made before, or after, the late one
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", wait)
    local_hub.fault(COMMIT, late=2.2)
    assert change(impatient, repo) == impatient.head(repo, kind="dataset")
    wait_for(lambda: len([line for line in local_hub.log("/commit/") if line["status"]]) == 2)
    assert commits(local_hub, repo) == ["initial commit", "first", "second"]
    assert sorted(line["status"] for line in local_hub.log("/commit/")) == [200, 412]


def test_somebody_elses_commit_after_a_failure_is_not_taken_for_ours(
    hub: HuggingFaceHub, local_hub: Server, repo: str
) -> None:
    parent = hub.head(repo, kind="dataset")
    local_hub.put(repo, "other.txt", b"from a second runner", type="dataset", lfs=0)
    with pytest.raises(StaleParent, match="somebody else has committed"):
        hub.commit(repo, kind="dataset", message="second", add=ADD, parent=parent)
    local_hub.fault(COMMIT, status=500)
    real = hub._api.create_commit

    def beaten(*arguments: object, **options: object) -> object:
        try:
            return real(*arguments, **options)  # type: ignore[call-overload]
        finally:
            local_hub.put(repo, "state.json", b"theirs", type="dataset", lfs=0)

    hub._api.create_commit = beaten  # type: ignore[method-assign]
    with pytest.raises(StaleParent, match="somebody else has committed"):
        change(hub, repo)
    assert hub.read(repo, "state.json", kind="dataset") == b"theirs"


def test_a_412_is_a_stale_parent(hub: HuggingFaceHub, local_hub: Server, repo: str) -> None:
    local_hub.fault(COMMIT, status=412)
    with pytest.raises(StaleParent):
        change(hub, repo)
    assert len(local_hub.log("/commit/")) == 1 and len(commits(local_hub, repo)) == 2


def test_the_library_leaves_nothing_out_in_silence(hub: HuggingFaceHub, local_hub: Server, repo: str) -> None:
    """Between our look and the commit another runner writes the same bytes: the parent must be checked even so."""
    parent, real = hub.head(repo, kind="dataset"), Commit.upload

    def beaten(self: Commit, progress: Callable[[int], None]) -> None:
        local_hub.put(repo, "state.json", ADD["state.json"], type="dataset", lfs=0)
        real(self, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Commit, "upload", beaten)
        with pytest.raises(StaleParent):
            hub.commit(repo, kind="dataset", message="second", add=ADD, parent=parent)


def test_a_repo_that_ignores_ggufs_gets_them(hub: HuggingFaceHub, local_hub: Server, repo: str) -> None:
    local_hub.put(repo, ".gitignore", b"*.gguf", type="dataset", lfs=0)
    hub.commit(repo, kind="dataset", message="second", add={"a.gguf": b"GGUF"})
    assert list(hub.list_files(repo, kind="dataset")) == ["a.gguf", "state.json"]


def test_a_hub_that_stays_away_is_one_sentence(hub: HuggingFaceHub, local_hub: Server, repo: str) -> None:
    local_hub.fault(COMMIT, status=503, times=4)
    with pytest.raises(HubAway, match=r"^the Hub answers with HTTP status 503: it is tried again later"):
        change(hub, repo)
    assert len(local_hub.log("/commit/")) == 4
    nowhere = HuggingFaceHub(token=ALICE, endpoint="http://127.0.0.1:9")
    for call in (nowhere.head, nowhere.list_files):
        with pytest.raises(HubAway, match=r"^the Hub cannot be reached \(.+\): it is tried again later"):
            call("alice/any", kind="model")


# ---- silence and delays


def test_a_silent_socket_is_left(impatient: HuggingFaceHub, local_hub: Server, repo: str) -> None:
    for match in (f"GET /api/datasets/{repo}", "GET .*/resolve/", "POST .*/paths-info/", COMMIT):
        local_hub.fault(match, delay=60)
    assert impatient.head(repo, kind="dataset")
    assert list(impatient.list_files(repo, kind="dataset")) == ["state.json"]
    assert impatient.read(repo, "state.json", kind="dataset") == b"old"
    change(impatient, repo)
    assert commits(local_hub, repo) == ["initial commit", "first", "second"]


def test_a_hub_that_is_silent_all_the_time_is_an_error(
    impatient: HuggingFaceHub, local_hub: Server, repo: str
) -> None:
    local_hub.fault(f"GET /api/datasets/{repo}", delay=60, times=4)
    with pytest.raises(HubAway, match="cannot be reached"):
        impatient.head(repo, kind="dataset")


def test_a_slow_answer_is_waited_for(hub: HuggingFaceHub, local_hub: Server, repo: str) -> None:
    local_hub.fault(COMMIT, delay=1)
    change(hub, repo)
    assert len(local_hub.log("/commit/")) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_reads_are_asked_again(hub: HuggingFaceHub, local_hub: Server, repo: str, status: int) -> None:
    for match in (f"GET /api/datasets/{repo}$", "GET .*/resolve/"):
        local_hub.fault(match, status=status, times=3)
    assert hub.list_files(repo, kind="dataset")["state.json"].holds(b"old")
    assert hub.read(repo, "state.json", kind="dataset") == b"old"


@pytest.mark.parametrize("match", ["GET /api/datasets/.*", "GET .*/resolve/"])
def test_cut_bodies_are_asked_again(hub: HuggingFaceHub, local_hub: Server, repo: str, match: str) -> None:
    local_hub.fault(match, cut=2)
    assert hub.head(repo, kind="dataset")
    assert hub.list_files(repo, kind="dataset")["state.json"].holds(b"old")
    assert hub.read(repo, "state.json", kind="dataset") == b"old"

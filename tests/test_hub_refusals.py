"""The Hugging Face Hub when it refuses: each reason once, in one sentence, and nothing is tried in vain."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from ggufy.core.errors import HubError, QuotaError, RepoMissing, StaleParent, StorageError, TokenError
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
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

STORAGE = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."


def test_too_many_commits_pause_all_of_them(
    connect: Callable[..., HuggingFaceHub], local_hub: Server, repo: str
) -> None:
    budget = CommitBudget()
    hub = connect(budget=budget)
    local_hub.fault(COMMIT, status=429, headers={"Retry-After": "1800"})
    with pytest.raises(QuotaError, match=r"takes no more requests for now.*in 1800 s") as error:
        change(hub, repo)
    assert error.value.retry_after == 1800 and 1790 < hub.wait_s() <= 1800
    with pytest.raises(QuotaError):
        change(hub, repo, urgent=True)
    assert len(local_hub.log("/commit/")) == 1, "a commit was sent although the Hub had asked to wait"


def test_without_a_time_the_pause_is_a_quarter_of_an_hour(
    connect: Callable[..., HuggingFaceHub], local_hub: Server, repo: str
) -> None:
    local_hub.fault(COMMIT, status=429, headers={"RateLimit": '"api";r=900;t=200'})  # another limit than this one
    with pytest.raises(QuotaError) as error:
        change(connect(), repo)
    assert error.value.retry_after == 900


def test_the_budget_is_kept_whatever_is_asked(
    connect: Callable[..., HuggingFaceHub], local_hub: Server, repo: str
) -> None:
    hub = connect(budget=CommitBudget(limit=4, reserve=1, burst=10))
    for number in range(3):
        hub.commit(repo, kind="dataset", message="more", add={"n.txt": str(number).encode()})
    with pytest.raises(QuotaError):
        hub.commit(repo, kind="dataset", message="more", add={"n.txt": b"9"})
    hub.commit(repo, kind="dataset", message="lease", add={"n.txt": b"lease"}, urgent=True)
    with pytest.raises(QuotaError):
        hub.commit(repo, kind="dataset", message="lease", add={"n.txt": b"again"}, urgent=True)
    with pytest.raises(QuotaError):
        hub.squash(repo, kind="dataset", message="lease")
    assert len(local_hub.log("/commit/")) == 4
    restarted = connect(budget=CommitBudget(limit=6, reserve=0))
    restarted.count_past_commits(repo, kind="dataset")  # the initial one, the fixture's, four of this test
    assert restarted.wait_s() > 3000 and restarted.budget.wait_s(urgent=True) == 0


def test_past_commits_count_once_for_each_repo_and_the_own_ones_not_again(
    connect: Callable[..., HuggingFaceHub], local_hub: Server
) -> None:
    """However many jobs go to a repo: each of them asks for its past commits to be counted."""
    first, second = (f"alice/counted-{next(NUMBERS)}" for _ in range(2))
    for number in range(15):  # with the first one, which makes the repo, sixteen
        local_hub.put(first, "a.txt", b"%d" % number, lfs=0)
    hub = connect()

    def counted() -> tuple[int, int]:
        made = hub.budget._made
        return sum(not one.ours for one in made), sum(one.ours for one in made)

    for _ in range(3):
        hub.count_past_commits(first, kind="model")
        hub.commit(first, kind="model", message="more", add={"b.txt": b"%d" % next(NUMBERS)})
    assert counted() == (16, 3)
    assert len(local_hub.log(f"{first}/commits/")) == 1, "nor is the Hub asked again"
    hub.count_past_commits(second, kind="model")  # which is not there yet
    hub.create_repo(second, kind="model")
    hub.commit(second, kind="model", message="more", add={"b.txt": b"1"})
    hub.count_past_commits(second, kind="model")
    assert counted() == (17, 4), "its initial commit; the own one was counted when it was made"
    local_hub.put(first, "c.txt", b"1", type="dataset", lfs=0)
    hub.count_past_commits(first, kind="dataset")
    assert counted() == (19, 4), "a repo of the other kind is another repo"


def test_commits_of_the_last_hour_count(
    connect: Callable[..., HuggingFaceHub], local_hub: Server, repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = connect()
    commits, old = hub._api.list_repo_commits(repo, repo_type="dataset"), timedelta(hours=2)
    commits[0].created_at -= old
    monkeypatch.setattr(hub._api, "list_repo_commits", lambda *_, **__: commits)
    hub.count_past_commits(repo, kind="dataset")
    assert len(hub.budget._made) == len(commits) - 1


def test_commits_that_could_not_be_counted_are_counted_later(
    connect: Callable[..., HuggingFaceHub], local_hub: Server, repo: str
) -> None:
    hub = connect()
    local_hub.fault("GET .*/commits/", status=403)
    with pytest.raises(HubError):
        hub.count_past_commits(repo, kind="dataset")
    assert not hub.budget._made
    hub.count_past_commits(repo, kind="dataset")
    assert len(hub.budget._made) == 2


@pytest.mark.parametrize("where", [COMMIT, "POST .*/preupload/"])
def test_no_room_is_told_once_and_not_tried_again(
    hub: HuggingFaceHub, local_hub: Server, repo: str, where: str
) -> None:
    local_hub.fault(where, status=403, headers={"X-Error-Message": STORAGE}, times=2)
    with pytest.raises(StorageError, match=r"no room for .*storage limit reached.*settings/billing") as error:
        change(hub, repo)
    assert str(error.value).count(". ") == 0, "more than one sentence"
    with pytest.raises(StorageError):
        change(hub, repo)


def test_no_room_for_a_large_file_is_told_in_the_hubs_words(
    hub: HuggingFaceHub, local_hub: Server, repo: str, tmp_path: Path
) -> None:
    large = tmp_path / "m.gguf"
    large.write_bytes(random.Random(next(NUMBERS)).randbytes(100_000))
    local_hub.fault("xet-write-token", status=403, headers={"X-Error-Message": STORAGE}, times=2)
    with pytest.raises(StorageError, match="storage limit reached"):
        hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    assert hub.list_files(repo, kind="dataset")["m.gguf"].holds(large)


@pytest.mark.parametrize("token", [ALICE_READ, BOB, "hf_expired", None])
def test_a_token_that_may_not_write_is_told_what_is_needed(
    connect: Callable[..., HuggingFaceHub], local_hub: Server, token: str | None
) -> None:
    local_hub.put("alice/public", "state.json", b"old", type="dataset", lfs=0)
    before = commits(local_hub, "alice/public")
    with pytest.raises(TokenError, match="set HF_TOKEN to") as error:
        connect(token).commit("alice/public", kind="dataset", message="second", add=ADD)
    assert token is None or token not in str(error.value)
    with pytest.raises(TokenError, match="set HF_TOKEN to"):
        connect(token).create_repo(f"alice/new-{next(NUMBERS)}", kind="model")
    assert commits(local_hub, "alice/public") == before


def test_a_token_that_expires_meanwhile_is_no_missing_repo(
    connect: Callable[..., HuggingFaceHub], repo: str, tmp_path: Path
) -> None:
    hub = connect("hf_expired")
    calls: list[Callable[[], object]] = [
        lambda: hub.head(repo, kind="dataset"),
        lambda: hub.list_files(repo, kind="dataset"),
        lambda: hub.read(repo, "state.json", kind="dataset"),
        lambda: hub.download(repo, "state.json", tmp_path / "s", kind="dataset"),
        lambda: hub.count_past_commits(repo, kind="dataset"),
        hub.user,
    ]
    for call in calls:
        with pytest.raises(TokenError, match="set HF_TOKEN to"):
            call()


def test_an_unknown_token_is_told_as_on_https_where_it_looks_like_a_missing_repo(
    hub: HuggingFaceHub, local_hub: Server, repo: str
) -> None:
    local_hub.fault(f"{repo}", status=401, headers={"X-Error-Code": "RepoNotFound"}, times=20)
    for call in (hub.head, hub.list_files, hub.count_past_commits):
        with pytest.raises(TokenError, match="set HF_TOKEN to"):
            call(repo, kind="dataset")
    with pytest.raises(TokenError, match="set HF_TOKEN to"):
        hub.read(repo, "state.json", kind="dataset")
    with pytest.raises(TokenError, match="set HF_TOKEN to"):
        hub.commit(repo, kind="dataset", message="second", add=ADD)


def test_who_owns_the_token(connect: Callable[..., HuggingFaceHub]) -> None:
    assert connect().user() == "alice"
    with pytest.raises(TokenError, match="set HF_TOKEN"):
        connect(None).user()


def test_a_repo_that_was_deleted_meanwhile_can_be_made_again(
    hub: HuggingFaceHub, local_hub: Server, repo: str
) -> None:
    parent = hub.head(repo, kind="dataset")
    hub._api.delete_repo(repo, repo_type="dataset")
    with pytest.raises(RepoMissing, match="has no dataset repo"):
        hub.commit(repo, kind="dataset", message="second", add=ADD, parent=parent)
    hub.create_repo(repo, kind="dataset")
    with pytest.raises(StaleParent):
        hub.commit(repo, kind="dataset", message="second", add=ADD, parent=parent)
    change(hub, repo)
    assert commits(local_hub, repo) == ["initial commit", "second"]


def test_a_public_repo_is_not_used_for_what_is_private(hub: HuggingFaceHub, local_hub: Server) -> None:
    local_hub.put("alice/open", "a.txt", b"1", type="dataset", lfs=0)
    with pytest.raises(HubError, match="is public, but should be private"):
        hub.create_repo("alice/open", kind="dataset", private=True)


@pytest.mark.parametrize("name", ["alice/a--b", "alice/大", "alice/" + "x" * 200])
def test_names_that_the_hub_would_not_take_are_one_sentence(hub: HuggingFaceHub, name: str) -> None:
    with pytest.raises(HubError, match="^the Hub allows no such name"):
        hub.create_repo(name, kind="model")


def test_other_refusals_are_one_sentence(hub: HuggingFaceHub, local_hub: Server, repo: str) -> None:
    local_hub.fault(COMMIT, status=400, headers={"X-Error-Message": "Something" + " long" * 80})
    with pytest.raises(HubError, match=r"HTTP status 400 \(Something long.*…\): please report it\.$") as error:
        change(hub, repo)
    assert type(error.value) is HubError and len(str(error.value)) < 320

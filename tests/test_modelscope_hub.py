"""Repos on ModelScope, against a local one: what goes wrong there, and who hears the token. What every hub must do is
in test_hub_contract.py."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggufy.core.errors import HubAway, HubError, QuotaError, RepoMissing, StorageError, TokenError
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.modelscope import ModelScopeHub
from ggufy.jobs.options import JobOptions
from ggufy.jobs.workspace import ModelScopeAccount, Workspace
from ggufy.net import modelscope
from ggufy.net import session as hub_session
from ggufy.net.session import Reference
from ggufy.records.account import Account
from ggufy.records.records import JobRecords
from ggufy.records.store import JobStore
from tests.modelscope_fixture import (  # noqa: F401 - a fixture
    MS_ALICE,
    MS_ALICE_READ,
    MS_BOB,
    LocalModelScope,
    local_modelscope,
)

NUMBERS = itertools.count()
COMMIT = "POST .*/commit/"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, local_modelscope: LocalModelScope) -> Iterator[None]:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(modelscope, "_ODD_S", 0.01)
    yield
    local_modelscope.mend()
    local_modelscope.storage(oss=False)


@pytest.fixture
def connect(local_modelscope: LocalModelScope) -> Callable[[str | None], ModelScopeHub]:
    def hub(token: str | None) -> ModelScopeHub:
        budget = CommitBudget(limit=1000, reserve=0, burst=1000)
        return ModelScopeHub(token=token, endpoint=local_modelscope.endpoint, budget=budget)

    return hub


@pytest.fixture
def hub(connect: Callable[[str | None], ModelScopeHub]) -> ModelScopeHub:
    return connect(MS_ALICE)


@pytest.fixture
def repo(hub: ModelScopeHub, local_modelscope: LocalModelScope) -> str:
    """A repo of the test's own; the log starts after it."""
    name = f"ms:alice/out-{next(NUMBERS)}"
    hub.create_repo(name, kind="model")
    local_modelscope.clear()
    return name


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "model-Q8_0.gguf"
    path.write_bytes(random.Random(next(NUMBERS)).randbytes(3_000_000))
    return path


def commits(local_modelscope: LocalModelScope) -> list[int]:
    """Status of each commit that was tried."""
    return [line["status"] for line in local_modelscope.log("/commit/")]


def test_whose_token_it_is(connect: Callable[[str | None], ModelScopeHub]) -> None:
    assert connect(MS_BOB).user() == "bob"
    with pytest.raises(TokenError, match="no token was given: set MODELSCOPE_API_TOKEN"):
        connect(None).user()
    with pytest.raises(TokenError, match=r"does not know the token, .*\(AccessToken is invalid or expired\)"):
        connect("ms-unknown").user()


def test_a_repo_that_exists_is_taken_and_one_that_should_be_private_is_not_shown(
    hub: ModelScopeHub, connect: Callable[[str | None], ModelScopeHub]
) -> None:
    for _ in range(2):
        hub.create_repo("alice/private", kind="model", private=True)
    assert connect(MS_BOB).head("alice/private", kind="model") is None
    hub.create_repo("alice/open", kind="model")
    with pytest.raises(HubError, match="alice/open is on ModelScope already and is public, but should be private"):
        hub.create_repo("alice/open", kind="model", private=True)


def test_who_may_not_write_is_told(connect: Callable[[str | None], ModelScopeHub], repo: str) -> None:
    for token in (MS_BOB, MS_ALICE_READ):
        with pytest.raises(TokenError, match=r"may not write to .* on ModelScope"):
            connect(token).commit(repo, kind="model", message="one", add={"a.txt": b"1"})
    with pytest.raises(TokenError):
        connect(MS_BOB).create_repo("alice/theirs", kind="model")


def test_a_large_file_goes_in_one_request_with_its_length(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str, large: Path
) -> None:
    seen: list[int] = []
    hub.commit(repo, kind="model", message="one", add={"a.gguf": large, "b.gguf": large}, progress=seen.append)
    (put,) = [line for line in local_modelscope.uploads() if line["status"] == 200][:1]
    assert (put["token"], put["cookie"]) == (MS_ALICE, f"m_session_id={MS_ALICE}")
    assert seen == sorted(seen) and seen[-1] == 6_000_000
    assert hub.list_files(repo, kind="model")["a.gguf"].holds(large)


def test_storage_of_another_host_hears_no_token(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str, large: Path
) -> None:
    local_modelscope.storage(oss=True)
    hub.commit(repo, kind="model", message="one", add={"a.gguf": large})
    (put,) = local_modelscope.uploads()
    assert (put["token"], put["cookie"], put["status"]) == ("", "", 200) and put["host"].startswith("localhost:")


def test_an_upload_that_breaks_off_begins_anew_and_what_arrived_is_not_sent_again(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str, large: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(large.read_bytes()[::-1])
    local_modelscope.fault("PUT /__lfs/", status=502, skip=1)  # the second file, half-way
    hub.commit(repo, kind="model", message="one", add={"a.gguf": large, "b.gguf": other})
    assert [line["status"] for line in local_modelscope.uploads()] == [200, 502, 200]
    assert len({line["path"] for line in local_modelscope.uploads()}) == 2
    assert hub.list_files(repo, kind="model")["b.gguf"].holds(other)


def test_an_upload_that_keeps_breaking_off_waits(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str, large: Path
) -> None:
    local_modelscope.fault("PUT /__lfs/", status=503, times=99)
    with pytest.raises(HubAway, match="(HTTP status 503|cannot be reached).*: it is tried again later"):
        hub.commit(repo, kind="model", message="one", add={"a.gguf": large})
    assert commits(local_modelscope) == [], "a commit names a file that was not sent"


@pytest.mark.parametrize("status", [400, 409])
def test_a_race_or_too_many_at_a_time_is_tried_again(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str, large: Path, status: int
) -> None:
    body = {"Code": 10030000001, "Success": False, "Message": "branch changed, please retry"}
    local_modelscope.fault(COMMIT, status=status, body=body)
    hub.commit(repo, kind="model", message="one", add={"a.gguf": large})
    assert commits(local_modelscope) == [status, 200] and len(local_modelscope.uploads()) == 1


def test_how_long_it_asks_to_wait_is_respected(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str
) -> None:
    local_modelscope.fault(COMMIT, status=429, headers={"Retry-After": "1200"})
    with pytest.raises(QuotaError, match=r"ModelScope takes no more requests for now.* in 1200 s\.") as error:
        hub.commit(repo, kind="model", message="one", add={"a.txt": b"1"})
    assert error.value.retry_after == 1200 and 1100 < hub.wait_s() <= 1200
    assert commits(local_modelscope) == [429]
    local_modelscope.fault("GET .*/repo/files", status=429, headers={"Retry-After": "0"})
    assert "README.md" in hub.list_files(repo, kind="model")


def test_a_lost_answer_to_a_commit_makes_no_second_one(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str
) -> None:
    local_modelscope.fault(COMMIT, status=504, after=True)
    head = hub.commit(repo, kind="model", message="one", add={"a.txt": b"1"})
    assert commits(local_modelscope) == [504] and hub.head(repo, kind="model") == head


def test_a_commit_of_what_was_never_sent_is_refused_by_the_test_server(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelScopeHub, "_places", lambda *_: {})
    with pytest.raises(HubError, match=r"HTTP status 400 \(the object of a\.gguf was not uploaded\)"):
        hub.commit(repo, kind="model", message="one", add={"a.gguf": large})


@pytest.mark.parametrize(
    ("status", "kind"), [(401, TokenError), (402, StorageError), (404, RepoMissing), (418, HubError), (500, HubAway)]
)
def test_what_a_refusal_means(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str, status: int, kind: type[HubError]
) -> None:
    local_modelscope.fault(COMMIT, status=status, times=9, body={"Message": f"no, {MS_ALICE}"})
    with pytest.raises(kind) as error:
        hub.commit(repo, kind="model", message="one", add={"a.txt": b"1"})
    assert type(error.value) is kind and "\n" not in str(error.value)


def test_an_answer_with_status_200_may_refuse_too(
    hub: ModelScopeHub, local_modelscope: LocalModelScope, repo: str
) -> None:
    local_modelscope.fault(COMMIT, status=200, body={"Success": False, "Code": 7, "Message": "the policy forbids it"})
    with pytest.raises(HubError, match=r"\(the policy forbids it\)"):
        hub.commit(repo, kind="model", message="one", add={"a.txt": b"1"})


def test_a_file_that_was_replaced_since_it_was_begun_is_fetched_anew(
    hub: ModelScopeHub, repo: str, large: Path, tmp_path: Path
) -> None:
    hub.commit(repo, kind="model", message="one", add={"a.gguf": large})
    (tmp_path / "back.gguf.download").write_bytes(b"x" * 1000)
    hub.download(repo, "a.gguf", tmp_path / "back.gguf", kind="model")
    assert (tmp_path / "back.gguf").read_bytes() == large.read_bytes()


def test_the_listing_of_our_own_repo_is_that_of_its_newest_commit(hub: ModelScopeHub, repo: str) -> None:
    head = hub.commit(repo, kind="model", message="one", add={"README.md": b"# Card\n"})
    wanted = Reference(repo_id=repo.removeprefix("ms:"), host="ms", revision=head)
    tree = modelscope.repo_tree(wanted, token=MS_ALICE, endpoint=hub._endpoint)
    assert tree.commit == head and hub.read(repo, "README.md", kind="model") == b"# Card\n"


def test_the_account_is_asked_for_once_by_whoever_comes_and_remembered(tmp_path: Path) -> None:
    records = JobRecords(JobStore(tmp_path))
    gate, asked = threading.Barrier(2, timeout=30), list[str]()

    def ask() -> str:
        gate.wait()  # the thread of the start and the one that waits have both asked
        asked.append("one")
        return "alice"

    account = Account.of_token(ask, "a token").on_modelscope()
    places = ModelScopeAccount(ModelScopeHub(token=None), account, records)
    workspace = Workspace(records=records, modelscope=places)
    assert workspace.owner == ""
    with pytest.raises(HubAway, match="ModelScope has not said yet whose token this is"):
        workspace.addressed(JobOptions(source="demo", quant_types=()))
    workspace.start()
    workspace.acquire()
    assert workspace.addressed(JobOptions(source="demo", quant_types=())).owner == "ms:alice" and asked
    again = ModelScopeAccount(ModelScopeHub(token=None), account, records)
    assert again.owner == "ms:alice"
    other = Account.of_token(ask, "another token").on_modelscope()
    assert ModelScopeAccount(ModelScopeHub(token=None), other, records).owner == ""
    workspace.close()


def test_a_token_that_is_not_known_is_told_to_whoever_needs_it(
    connect: Callable[[str | None], ModelScopeHub], tmp_path: Path
) -> None:
    records, hub = JobRecords(JobStore(tmp_path)), connect("ms-unknown")
    workspace = Workspace(records=records, modelscope=ModelScopeAccount(hub, Account(ask=hub.user), records))
    workspace.start()
    with pytest.raises(TokenError, match="ModelScope does not know the token"):
        workspace.acquire()

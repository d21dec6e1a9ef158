"""The Hugging Face Hub when it is slow, silent, full, strict or gone: each fault once, with the real client."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import json
import logging
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import huggingface_hub.constants
import pytest

from ggufy.errors import (
    GgufyError,
    HubAway,
    HubError,
    QuotaError,
    RepoMissing,
    StaleParent,
    StorageError,
    TokenError,
)
from ggufy.hub import xet
from ggufy.hub.budget import CommitBudget
from ggufy.hub.commits import Commit
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.sources import hub_session
from tests.hub_fixture import ALICE, ALICE_READ, BOB, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.hub_fixture import LocalHub as Server

NUMBERS = itertools.count()
COMMIT, ADD = "POST .*/commit/", {"state.json": b"new"}
STORAGE = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, local_hub: Server) -> Iterator[None]:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", 0.05)
    yield
    local_hub.mend()


@pytest.fixture
def connect(local_hub: Server) -> Callable[..., HuggingFaceHub]:
    def hub(token: str | None = ALICE, **options: object) -> HuggingFaceHub:
        options = {"budget": CommitBudget(limit=1000, reserve=0, burst=1000)} | options
        return HuggingFaceHub(token=token, endpoint=local_hub.endpoint, **options)  # type: ignore[arg-type]

    return hub


@pytest.fixture
def hub(connect: Callable[..., HuggingFaceHub]) -> HuggingFaceHub:
    return connect()


@pytest.fixture
def impatient(connect: Callable[..., HuggingFaceHub]) -> Iterator[HuggingFaceHub]:
    yield connect(timeout=httpx2.Timeout(0.5))
    hub_session.use_timeouts(hub_session.SESSION_TIMEOUT)


@pytest.fixture
def repo(hub: HuggingFaceHub, local_hub: Server) -> str:
    """A repo of the test's own with one small file; the log starts after it."""
    name = f"alice/faults-{next(NUMBERS)}"
    hub.create_repo(name, kind="dataset")
    hub.commit(name, kind="dataset", message="first", add={"state.json": b"old"})
    local_hub.clear()
    return name


def commits(local_hub: Server, repo: str, kind: str = "datasets") -> list[str]:
    """Titles of the repo's commits, oldest first."""
    request = urllib.request.Request(f"{local_hub.endpoint}/api/{kind}/{repo}/commits/main")
    request.add_header("Authorization", f"Bearer {ALICE}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [commit["title"] for commit in json.load(answer)][::-1]


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def change(hub: HuggingFaceHub, repo: str, **options: object) -> str:
    parent = hub.head(repo, kind="dataset")
    return hub.commit(repo, kind="dataset", message="second", add=ADD, parent=parent, **options)  # type: ignore[arg-type]


# ---- answers that are lost, late or cut


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


@pytest.mark.parametrize("wait", [0.01, 1.5])
def test_a_commit_that_is_carried_out_after_we_gave_up_on_it_is_made_once(
    impatient: HuggingFaceHub, local_hub: Server, repo: str, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", wait)  # the next try is made before, or after, the late one
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", wait)
    local_hub.fault(COMMIT, late=1.2)
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


@pytest.mark.parametrize("way", ["xet", "lfs"])
def test_nothing_is_printed(
    hub: HuggingFaceHub,
    repo: str,
    large: Path,
    way: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", way == "lfs")
    hub.commit(repo, kind="dataset", message="second", add={"a.gguf": large, "b.gguf": b"GGUF"})
    assert capfd.readouterr() == ("", "")


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


# ---- refusals


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
    restarted.remember(repo, kind="dataset")  # six commits: the initial one, the fixture's, four of this test
    assert restarted.wait_s() > 3000


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
    large.write_bytes(random.Random(1).randbytes(100_000))
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
        lambda: hub.remember(repo, kind="dataset"),
        hub.user,
    ]
    for call in calls:
        with pytest.raises(TokenError, match="set HF_TOKEN to"):
            call()


def test_an_unknown_token_is_told_as_on_https_where_it_looks_like_a_missing_repo(
    hub: HuggingFaceHub, local_hub: Server, repo: str
) -> None:
    local_hub.fault(f"{repo}", status=401, headers={"X-Error-Code": "RepoNotFound"}, times=20)
    for call in (hub.head, hub.list_files, hub.remember):
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


# ---- large files


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(random.Random(3).randbytes(9_000_000))
    return path


def test_a_download_goes_on_where_the_last_process_ended(
    hub: HuggingFaceHub, local_hub: Server, repo: str, large: Path, tmp_path: Path
) -> None:
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    (tmp_path / "back.gguf.download").write_bytes(large.read_bytes()[:7_000_000])
    local_hub.clear()
    local_hub.fault("GET /__cdn/", cut=1_000_000)
    hub.download(repo, "m.gguf", tmp_path / "back.gguf", kind="dataset")
    assert (tmp_path / "back.gguf").read_bytes() == large.read_bytes()
    ranges = [line["range"] for line in local_hub.log("/__cdn/")]
    assert ranges[0] == "bytes=7000000-" and len(ranges) == 2 and ranges[1] > ranges[0]
    assert [line["token"] for line in local_hub.log("/__cdn/")] == ["", ""], "the token went to another host"


def test_the_beginning_of_another_file_is_thrown_away(
    hub: HuggingFaceHub, repo: str, large: Path, tmp_path: Path
) -> None:
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    (tmp_path / "back.gguf.download").write_bytes(b"another version" * 1000)
    hub.download(repo, "m.gguf", tmp_path / "back.gguf", kind="dataset")
    assert (tmp_path / "back.gguf").read_bytes() == large.read_bytes()


def test_content_that_does_not_fit_its_digest_is_never_named(
    hub: HuggingFaceHub, local_hub: Server, repo: str, tmp_path: Path
) -> None:
    local_hub.put(repo, "bad.gguf", b"x" * 3000, type="dataset", oid="ab" * 32)
    with pytest.raises(HubError, match="arrived damaged"):
        hub.download(repo, "bad.gguf", tmp_path / "bad.gguf", kind="dataset")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["xet", "lfs"])
def test_an_upload_that_breaks_off_is_taken_up_again(
    hub: HuggingFaceHub,
    local_hub: Server,
    repo: str,
    large: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", way == "lfs")
    if way == "lfs":
        local_hub.fault("PUT /__lfs/", status=400)
        local_hub.fault("POST .*/objects/batch", status=400)
        with pytest.raises(HubError, match="HTTP status 400"):
            hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    local_hub.fault("xet-write-token", status=404)  # hf_xet does not ask again, and the Hub itself is well
    local_hub.fault("PUT /__lfs/", status=500)
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    assert hub.list_files(repo, kind="dataset")["m.gguf"].holds(large)
    assert len(commits(local_hub, repo)) == 3


def test_an_upload_that_moves_nothing_is_given_up(
    hub: HuggingFaceHub, repo: str, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xet, "_SILENCE_S", -1.0)
    with pytest.raises(HubAway, match="nothing moved"):
        hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    monkeypatch.undo()
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})


# ---- secrets


def test_the_token_is_in_no_error_and_no_log(
    connect: Callable[..., HuggingFaceHub],
    local_hub: Server,
    repo: str,
    large: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub, told = connect(), list[str]()
    hub.commit(repo, kind="dataset", message="big", add={"m.gguf": large})
    for fault in ({"status": 500, "times": 4}, {"status": 403}, {"status": 401}, {"status": 429}, {"cut": 3}):
        local_hub.fault(COMMIT, **fault)
        try:
            hub.commit(repo, kind="dataset", message="next", add={"n.txt": json.dumps(fault).encode()})
        except GgufyError as error:
            cause: BaseException | None = error
            while cause is not None:
                told.append(repr(cause))
                cause = cause.__cause__ or cause.__context__
    assert len(told) >= 8
    assert ALICE not in "\n".join(told) + caplog.text + repr(hub) + repr(vars(hub).get("_tries"))

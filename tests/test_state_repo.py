"""The state repo: records, the lease and unfinished work, with the Hub away, the disk wiped, and another runner.

The tests turn the thread's work by hand: while somebody waits, time passes and the runner has its turn.
"""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from ggufy.core.errors import Cancelled, GgufyError, HubAway, HubError, LeaseLost, QuotaError, RepoMissing, TokenError
from ggufy.core.job import Job, Status
from ggufy.core.job_record import to_json
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.hub.lease import LEASE_FILE, Lease
from ggufy.hub.lease_record import LeaseRecord
from ggufy.hub.protocol import Hub
from ggufy.net import session as hub_session
from ggufy.records.account import Account
from ggufy.records.records import JobRecords
from ggufy.records.state_repo import StateRepo
from ggufy.records.store import JobStore
from tests.folder_hub import LocalHub
from tests.hands import HandClock
from tests.hub_client import wait_for
from tests.hub_fixture import ALICE, ALICE_READ, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.hub_fixture import LocalHub as Server
from tests.jobs import artifact, job

pytestmark = pytest.mark.fast

REPO = "alice/ggufy-state"
COMMIT = "POST .*/commit/"
LOOK_S = 0.2


class Machine:
    """One runner: its disk, its records, its lease."""

    def __init__(self, out: Path, hub: Hub, clock: HandClock, account: Account | None = None):
        self.out, self.hub, self.clock = out, hub, clock
        self.records = JobRecords(JobStore(out))
        self.state = StateRepo(
            self.records,
            hub,
            account or Account(ask=lambda: "alice"),
            make_lease=lambda hub, repo_id: Lease(hub, repo_id, clock=clock, process=""),
            clock=clock,
        )

    def take(self, seconds: float = LOOK_S) -> bool:
        """Waits so long for the lease."""
        until = self.clock.time + seconds
        self.clock.meanwhile = self.state.turn
        with contextlib.suppress(Cancelled):
            self.state.acquire(stopped=lambda: self.clock.time >= until)
        return self.state.held

    def save(self, record: Job) -> Job:
        """Notes a job, and lets the thread have its turn."""
        self.clock.meanwhile = self.state.turn
        saved = self.records.queue(record, "a run")
        saved = self.records.end(saved, record.status, "a run") if record.status is not saved.status else saved
        self.records.add_artifacts(saved.id, record.artifacts)
        self.state.turn()
        known = self.records.latest(saved.id)
        assert known is not None
        return known

    def leave(self) -> None:
        """As when the program ends."""
        self.state._leave()


class Faulty(LocalHub):
    """A hub whose methods raise or do what the test says."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.fails: dict[str, Callable[[], object]] = {}
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> object:
        if name in ("commit", "head", "list_files", "read", "stage", "wait_s", "create_repo"):
            self.calls.append(name)
            if fails := self.fails.get(name) or self.fails.get("all"):
                fails()
        return super().__getattribute__(name)


def raising(error: Exception) -> Callable[[], object]:
    def fails() -> None:
        raise error

    return fails


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def hub(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path / "hub")


@pytest.fixture
def alone(tmp_path: Path, hub: Faulty, clock: HandClock) -> Machine:
    """A runner on a hub that the test can break."""
    return Machine(tmp_path / "out", hub, clock)


@pytest.fixture(params=["local", "huggingface"])
def machine(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    clock: HandClock,
    local_hub: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Machine]]:
    """Runners that share one state repo."""
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    HfApi(endpoint=local_hub.endpoint, token=ALICE).delete_repo(REPO, repo_type="dataset", missing_ok=True)

    def make(name: str, budget: CommitBudget | None = None) -> Machine:
        if request.param == "local":
            return Machine(tmp_path / name, LocalHub(tmp_path / "shared"), clock)
        budget = budget or CommitBudget(limit=1000, reserve=0, burst=1000)
        return Machine(tmp_path / name, remote(local_hub, budget), clock)

    yield make
    local_hub.mend()


def remote(local_hub: Server, budget: CommitBudget | None = None, token: str = ALICE) -> HuggingFaceHub:
    return HuggingFaceHub(token=token, endpoint=local_hub.endpoint, budget=budget, tries=2)


only_remote = pytest.mark.parametrize("machine", ["huggingface"], indirect=True)


# ---- records


def test_records_come_back_when_the_disk_is_wiped(machine: Callable[..., Machine]) -> None:
    first = machine("one")
    assert first.take()
    saved = [first.save(job(name, Status.RUNNING, artifacts=2)) for name in ("b", "a")]
    done = first.save(saved[0].evolve(status=Status.DONE))
    assert not first.state.unsent
    first.leave()
    shutil.rmtree(first.out)
    second = machine("one")
    assert second.records.all() == [] and second.take()
    assert second.records.all() == [done, saved[1]] and not second.state.unsent


def test_reading_and_writing_ask_nobody(machine: Callable[..., Machine], local_hub: Server) -> None:
    runner = machine("one")
    runner.take()
    local_hub.clear()
    saved = runner.records.queue(job("a"), "run 1")
    assert runner.records.latest(saved.id) == saved and runner.records.all() == [saved]
    assert runner.state.held and runner.state.unsent and runner.state.owner == "alice"
    runner.state.check()
    assert local_hub.log() == []


def test_what_changes_at_once_is_one_commit(machine: Callable[..., Machine]) -> None:
    runner = machine("one")
    runner.take()
    before = runner.hub.head(REPO, kind="dataset")
    saved = [runner.records.queue(job(name), "a run") for name in "abc"]
    runner.state.turn()
    lease = runner.state.lease
    assert lease is not None and lease._own is not None and lease._own.commits == 2  # taking it was the first
    assert runner.hub.head(REPO, kind="dataset") != before and not runner.state.unsent
    there = runner.hub.list_files(REPO, kind="dataset", under="jobs/")
    assert sorted(there) == sorted(f"jobs/{record.id}.json" for record in saved)
    assert runner.state.turn() > 1.0, "nothing is left to do"


def test_a_runner_that_lost_its_lease_cannot_write_a_record(machine: Callable[..., Machine], clock: HandClock) -> None:
    first, second = machine("one"), machine("two")
    assert first.take() and not second.take()
    running = first.save(job("a", Status.RUNNING))
    second.records.queue(job("b"), "a run")
    second.state.turn()
    with pytest.raises(LeaseLost, match="does not hold the lease"):
        second.state.check()
    with pytest.raises(LeaseLost):
        second.state.keep("a-1", {})
    clock.time += 100
    assert not second.take(30)
    clock.time += 600
    assert second.take(30)
    done = second.save(running.evolve(status=Status.DONE))
    with pytest.raises(LeaseLost, match="could not be renewed"):
        first.state.check()
    first.save(running)
    assert not first.state.held and first.state.unsent
    with pytest.raises(LeaseLost, match="another runner has had the lease"):
        first.state.check()
    path = f"jobs/{done.id}.json"
    assert second.hub.read(REPO, path, kind="dataset") == to_json(done).encode()


def test_records_of_a_lost_lease_are_merged_when_it_is_ours_again(
    machine: Callable[..., Machine], clock: HandClock
) -> None:
    first, second = machine("one"), machine("two")
    first.take()
    running = first.save(job("a", Status.RUNNING, artifacts=1))
    cancelled = first.save(job("c", Status.RUNNING))
    second.take()
    clock.time += 700
    assert second.take(60)
    second.save(running.evolve(status=Status.DONE, artifacts=(artifact("theirs.gguf"),)))
    first.records.add_artifacts(running.id, [artifact("ours.gguf")])
    first.records.decide(cancelled.id, Status.CANCELLED)
    first.records.queue(job("new"), "a run")
    first.state.turn()
    assert not first.state.held
    second.leave()
    assert first.take(60) and not first.state.unsent
    merged = first.records.latest(running.id)
    assert merged is not None and merged.status is Status.DONE
    assert [one.name for one in merged.artifacts] == ["a-0.gguf", "theirs.gguf", "ours.gguf"]
    assert {record.request.name: record.status for record in first.records.all()} == {
        "a": Status.DONE,
        "c": Status.CANCELLED,
        "new": Status.QUEUED,
    }
    first.leave()
    third = machine("three")
    assert third.take() and third.records.all() == first.records.all()
    assert third.records.term == 4


def test_the_later_record_stays_and_one_that_never_arrived_is_sent(machine: Callable[..., Machine]) -> None:
    first = machine("one")
    first.take()
    kept, other = (first.save(job(name, Status.RUNNING)) for name in ("a", "b"))
    first.leave()
    newer = kept.evolve(status=Status.DONE, serial=99)
    older = other.evolve(status=Status.FAILED, serial=0)
    lost = job("c").evolve(created="2998", updated="2998")
    for record in (newer, older, lost):
        first.records.store.put(record)
    (first.records.store.root / "jobs" / "broken.json").write_text("{")
    again = machine("one")
    assert again.take() and again.records.all() == [newer, other, lost] and not again.state.unsent
    again.leave()
    second = machine("two")
    assert second.take() and second.records.all() == [newer, other, lost]


def test_a_record_made_by_hand_in_the_repo_does_no_harm(machine: Callable[..., Machine]) -> None:
    first = machine("one")
    first.take()
    saved = first.save(job("a"))
    first.leave()
    bad = {
        "jobs/bad.json": b"\xff{",
        "jobs/other-name.json": to_json(saved).encode(),
        "jobs/notes.txt": b"x",
        "jobs/sub/deep.json": b"{}",
        "README.md": b"# mine",
    }
    first.hub.commit(REPO, kind="dataset", message="by hand", add=bad)
    second = machine("two")
    assert second.take() and second.records.all() == [saved]
    assert second.save(saved.evolve(status=Status.DONE)).status is Status.DONE
    assert not second.state.unsent and second.hub.read(REPO, "README.md", kind="dataset") == b"# mine"


def test_a_record_whose_file_is_gone_is_not_sent_for_ever(alone: Machine, hub: Faulty) -> None:
    alone.take()
    saved = alone.records.queue(job("a"), "a run")
    alone.records.store.path(saved.id).unlink()
    alone.state.turn()
    assert not alone.state.unsent and alone.state.turn() > 1.0


# ---- unfinished work


def test_small_files_are_kept_for_a_job_and_dropped(machine: Callable[..., Machine], tmp_path: Path) -> None:
    first = machine("one")
    first.take()
    files = {"one": b"GGUF" * 500, "two": b"GGUF2", "three": b"GGUF3"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    first.state.keep("a-1", {"1.gguf": tmp_path / "one", "2.gguf": tmp_path / "two"})
    first.state.keep("b-1", {"1.gguf": tmp_path / "three"})
    assert sorted(first.state.kept("a-1")) == ["1.gguf", "2.gguf"] and first.state.held
    assert first.state.kept("a-1")["1.gguf"].holds(tmp_path / "one")
    first.state.fetch("a-1", "1.gguf", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == files["one"]
    first.state.drop("a-1", ["1.gguf", "none.gguf"])
    assert sorted(first.state.kept("a-1")) == ["2.gguf"], "at once, for who asks here"
    first.state.turn()
    with pytest.raises(HubError, match="has no file"):
        first.state.fetch("a-1", "1.gguf", tmp_path / "back again")
    first.state.drop("a-1", ["2.gguf"])
    first.state.keep("a-1", {"2.gguf": tmp_path / "three"})  # once more, before it was deleted
    assert first.state.kept("a-1")["2.gguf"].holds(tmp_path / "three")
    first.state.drop("a-1", ["2.gguf"])
    first.leave()
    second = machine("two")
    assert second.take() and second.state.kept("a-1") == {} and list(second.state.kept("b-1")) == ["1.gguf"]


def test_keeping_fails_at_once_while_nothing_gets_through(
    alone: Machine, hub: Faulty, tmp_path: Path, clock: HandClock
) -> None:
    (tmp_path / "one").write_bytes(b"GGUF")
    alone.take()
    hub.fails["commit"] = raising(HubAway("the Hub is away."))
    alone.records.queue(job("a"), "a run")
    alone.state.turn()
    before, hub.calls = clock.time, []
    with pytest.raises(HubAway, match="the Hub is away"):
        alone.state.keep("a-1", {"1.gguf": tmp_path / "one"})
    assert clock.time == before and hub.calls == []
    hub.fails.clear()
    clock.time += 60
    alone.state.turn()
    alone.state.keep("a-1", {"1.gguf": tmp_path / "one"})
    assert list(alone.state.kept("a-1")) == ["1.gguf"]


@pytest.mark.parametrize("error", [HubAway("away."), QuotaError("too much.", 500.0), HubError("a riddle.")])
def test_who_keeps_a_file_hears_what_became_of_it(
    alone: Machine, hub: Faulty, tmp_path: Path, error: HubError
) -> None:
    (tmp_path / "one").write_bytes(b"GGUF")
    alone.take()
    hub.fails["commit"] = raising(error)
    with pytest.raises(type(error)) as caught:
        alone.state.keep("a-1", {"1.gguf": tmp_path / "one"})
    assert caught.value is error
    stops = itertools.count()
    hub.fails.clear()
    alone.clock.time += 600
    alone.state.turn()
    alone.clock.meanwhile = lambda: None  # the thread is busy
    with pytest.raises(Cancelled):
        alone.state.keep("a-1", {"1.gguf": tmp_path / "one"}, stopped=lambda: next(stops) > 3)


# ---- the Hub is away, full of commits, or the repo is gone


@only_remote
def test_a_hub_that_is_away_ends_nothing_and_gets_the_records_later(
    machine: Callable[..., Machine], local_hub: Server, clock: HandClock
) -> None:
    runner = machine("one")
    runner.take()
    local_hub.fault(".*", status=503, times=1000)
    saved = [runner.save(job(name, Status.RUNNING)) for name in ("a", "b")]
    saved[0] = runner.save(saved[0].evolve(status=Status.DONE))
    assert runner.records.all() == saved and runner.state.unsent and runner.state.trouble
    clock.time += 100
    runner.state.turn()
    assert runner.state.held, "it has not run out"
    local_hub.mend()
    local_hub.clear()
    clock.time += 60
    runner.state.turn()
    assert not runner.state.unsent and runner.state.held and not runner.state.trouble
    assert len(local_hub.log("/commit/")) == 1, "lease and two records are one commit"
    runner.leave()
    other = machine("two")
    other.take()
    assert other.records.all() == saved


@only_remote
def test_records_share_a_commit_when_commits_run_short(
    machine: Callable[..., Machine], local_hub: Server, clock: HandClock
) -> None:
    budget = CommitBudget(limit=10, reserve=5, burst=2, clock=clock)
    runner = machine("one", budget)
    runner.take()
    local_hub.clear()
    for number in range(20):
        runner.save(job("a", artifacts=number))
    assert len(local_hub.log("/commit/")) <= 2 and runner.state.unsent
    made = len(local_hub.log("/commit/"))
    clock.time += 70
    runner.state.turn()  # the renewal, which has a commit of its own, takes them along
    assert len(local_hub.log("/commit/")) == made + 1 and not runner.state.unsent
    runner.save(job("a", artifacts=3))
    assert runner.state.unsent, "it is neither due nor time for an ordinary commit"
    assert 0 < runner.state.turn() <= runner.state.wait_s()
    clock.time += 720
    runner.state.turn()
    assert not runner.state.unsent


def test_what_is_asked_for_too_often_waits_as_long_as_the_hub_says(
    alone: Machine, hub: Faulty, clock: HandClock
) -> None:
    alone.take()
    hub.fails["commit"] = raising(QuotaError("too much.", 500.0))
    alone.records.queue(job("a"), "a run")
    assert alone.state.turn() == pytest.approx(500.0)
    hub.calls.clear()
    clock.time += 499
    assert 0 < alone.state.turn() <= 1.0 and hub.calls == []
    hub.fails.clear()
    clock.time += 2
    alone.state.turn()
    assert not alone.state.unsent


@only_remote
@pytest.mark.parametrize("how", ["a record", "a renewal"])
def test_a_state_repo_that_was_deleted_is_made_again_with_all_records(
    machine: Callable[..., Machine], clock: HandClock, how: str
) -> None:
    runner = machine("one")
    runner.take()
    saved = [runner.save(job(name)) for name in ("a", "b")]
    hub = runner.hub
    assert isinstance(hub, HuggingFaceHub)
    hub._api.delete_repo(REPO, repo_type="dataset")
    if how == "a record":
        saved[1] = runner.save(saved[1].evolve(status=Status.DONE))
    else:
        clock.time += 100
        runner.state.turn()
    assert hub._api.repo_info(REPO, repo_type="dataset").private and runner.state.held
    runner.leave()
    other = machine("two")
    assert other.take() and other.records.all() == saved


@only_remote
def test_a_token_that_expires_is_told_to_who_waits_and_nothing_is_lost(
    machine: Callable[..., Machine], local_hub: Server, clock: HandClock
) -> None:
    runner = machine("one")
    runner.take()
    saved = runner.save(job("a"))
    lease = runner.state.lease
    assert lease is not None
    lease.hub = runner.state._hub = remote(local_hub, token=ALICE_READ)
    runner.save(saved.evolve(status=Status.DONE))
    assert runner.state.unsent and [known.status for known in runner.records.all()] == [Status.DONE]
    clock.time += 1000
    for _ in range(2):  # each time that somebody asks, it is tried again
        local_hub.clear()
        with pytest.raises(TokenError, match="set HF_TOKEN"):
            runner.take(30)
        assert local_hub.log()
    lease.hub = runner.state._hub = remote(local_hub)
    assert runner.take(30) and not runner.state.unsent
    assert [known.status for known in runner.records.all()] == [Status.DONE]


@only_remote
def test_the_token_is_in_no_file_and_no_error(
    machine: Callable[..., Machine],
    local_hub: Server,
    tmp_path: Path,
    clock: HandClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = remote(local_hub)
    runner = Machine(tmp_path / "one", hub, clock, Account.of_token(hub.user, ALICE))
    with caplog.at_level(logging.DEBUG, "ggufy"):
        runner.take()
        runner.save(job("a"))
        local_hub.fault(COMMIT, status=403, times=9)
        runner.save(job("b"))
        clock.time += 1000
        with pytest.raises(GgufyError) as error:
            runner.take(30)
    assert ALICE not in f"{error.value!r} {error.value.__cause__!r} {runner.state.trouble} {caplog.text}"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (tmp_path / "one" / "ggufy-state" / "owner.txt") in files
    assert not [path for path in files if ALICE.encode() in path.read_bytes()]


# ---- who waits


def test_waiting_says_for_what_and_goes_on(tmp_path: Path, hub: Faulty, clock: HandClock) -> None:
    first, second = (Machine(tmp_path / name, hub, clock) for name in ("one", "two"))
    first.take()
    said: list[str] = []
    away = clock.time + 100

    def meanwhile() -> None:
        if clock.time > away:
            hub.fails["all"] = raising(HubAway("the Hub is away."))
        if clock.time > away + 100:
            hub.fails.clear()
            first.leave()
        second.state.turn()

    clock.meanwhile = meanwhile
    second.state.acquire(say=said.append)
    assert second.state.held
    assert said == [
        f"another runner is at work on {REPO}: this one waits for it.",
        "the Hub is away.",
        *said[2:-1],
        "",
    ]
    assert "" not in said[:-1]


def test_who_waits_for_a_record_to_arrive_hears_that_the_lease_is_lost(alone: Machine, clock: HandClock) -> None:
    """Found by the state-machine test: an upload waited for a record that nobody was going to send any more."""
    assert alone.take()
    saved = alone.records.queue(job("a"), "a run")
    assert "goes to the Hub first" in alone.state.misses(saved.id)
    alone.records.begin(saved, "a run")
    alone.state.turn()
    assert alone.state.misses(saved.id) == ""
    clock.time += 10_000
    with pytest.raises(LeaseLost):
        alone.state.misses(saved.id)


def test_a_repo_that_is_deleted_between_two_questions_is_made_again(alone: Machine, hub: Faulty) -> None:
    """Found by the state-machine test: the newest commit was asked for, and there was no repo to write to any more."""

    def gone() -> None:
        del hub.fails["commit"]
        raise RepoMissing("there is no repo: it was deleted just now.")

    hub.fails["commit"] = gone
    assert alone.take(30.0)


def test_a_lease_that_is_lost_just_when_it_is_asked_for_is_taken_again(alone: Machine, hub: Faulty) -> None:
    """The state-machine test found a runner that waited for ever: the lease was held when it asked, and lost then."""
    assert alone.take()

    class LostThen(StateRepo):
        looks = 0

        @property
        def held(self) -> bool:
            held, self.looks = super().held, self.looks + 1
            if self.looks == 1:
                assert self.lease is not None
                self.lease._lost, self._ready = "another runner has had the lease.", False
            return held

    alone.state.__class__ = LostThen
    hub.commit(REPO, kind="dataset", message="steal and let go", add={LEASE_FILE: LeaseRecord(nonce="x").to_bytes()})
    began = alone.clock.time
    alone.take(60.0)
    assert alone.clock.time < began + 30.0, "who waits for a lease that nobody asks for waits for ever"
    assert alone.take(60.0)


def test_nothing_is_said_if_nothing_is_waited_for(alone: Machine, clock: HandClock) -> None:
    said: list[str] = []
    clock.meanwhile = alone.state.turn
    alone.state.acquire(say=said.append)
    alone.state.acquire(say=said.append)
    assert said == []


def test_a_question_without_an_answer_is_told(alone: Machine, clock: HandClock) -> None:
    """It is an error only after a minute, and more than once."""
    said: list[str] = []
    answers = clock.time + 100
    clock.meanwhile = lambda: alone.state.turn() if clock.time > answers else 0.0
    alone.state.acquire(say=said.append)
    assert said == ["the Hub was asked, and has not answered yet.", ""]


@pytest.mark.parametrize("error", [TokenError("a new token."), HubError("it is public.")])
def test_what_somebody_must_act_on_is_raised_and_tried_again(alone: Machine, hub: Faulty, error: HubError) -> None:
    hub.fails["commit"] = raising(error)
    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            alone.take(30)
        assert caught.value is error and alone.state.trouble == str(error)
    hub.fails.clear()
    assert alone.take(30) and not alone.state.trouble


# ---- whose it is


class Ask:
    """What the Hub says of a token; it may be away."""

    def __init__(self, name: str = "", error: Exception | None = None):
        self.name, self.error = name, error

    def __call__(self) -> str:
        if self.error:
            raise self.error
        return self.name


def test_the_owner_is_remembered_for_a_start_while_the_hub_is_away(
    tmp_path: Path, hub: Faulty, clock: HandClock
) -> None:
    def start(ask: Ask, token: str) -> StateRepo:
        runner = Machine(tmp_path / "out", hub, clock, Account.of_token(ask, token))
        runner.state.turn()
        return runner.state

    away = HubAway("the Hub is away.")
    assert start(Ask(error=away), "hf_one").owner == ""
    assert start(Ask("alice"), "hf_one").repo_id == REPO
    known = start(Ask(error=away), "hf_one")
    assert known.owner == "alice" and not known.held and known.trouble == "the Hub is away."
    assert start(Ask(error=away), "hf_two").owner == "", "another token may be another's"
    assert start(Ask("bob"), "hf_two").owner == "bob"
    assert start(Ask(error=away), "hf_one").owner == "", "only the last one is remembered"
    (tmp_path / "out" / "ggufy-state" / "owner.txt").write_bytes(b"\xff")
    assert start(Ask(error=away), "hf_two").owner == ""
    assert start(Ask("carol"), "hf_two").owner == "carol" == start(Ask(error=away), "hf_two").owner


def test_an_account_that_was_renamed_is_noticed(tmp_path: Path, hub: Faulty, clock: HandClock) -> None:
    for name in ("alice", "alice-new"):
        runner = Machine(tmp_path / "out", hub, clock, Account.of_token(Ask(name), "hf_one"))
        runner.state.turn()
        assert runner.state.repo_id == f"{name}/ggufy-state"


# ---- the thread itself


class SlowClock(HandClock):
    """The machine's own, that notes for how long somebody waits."""

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        self.waits.append(seconds)
        condition.wait(seconds)


@pytest.fixture
def threaded(tmp_path: Path, hub: Faulty) -> Iterator[Machine]:
    """A runner whose thread is at work."""
    runner = Machine(tmp_path / "out", hub, SlowClock())
    runner.state.start()
    yield runner
    hub.fails.clear()
    runner.state.close(30)
    assert not runner.state._thread.is_alive()


def test_the_thread_takes_the_lease_sends_records_and_rests(threaded: Machine, hub: Faulty) -> None:
    threaded.state.acquire()
    saved = threaded.records.queue(job("a"), "a run")
    wait_for(lambda: not threaded.state.unsent)
    assert hub.read(REPO, f"jobs/{saved.id}.json", kind="dataset") == to_json(saved).encode()
    wait_for(lambda: threaded.clock.waits[-1:] == [3600.0])


def test_it_lets_go_at_the_end_and_takes_along_what_waits(tmp_path: Path, hub: Faulty) -> None:
    clock = SlowClock()
    first, second = (Machine(tmp_path / name, hub, clock) for name in ("one", "two"))
    first.state.start()
    first.state.acquire()
    hub.fails["wait_s"] = raising(HubAway("no commit to spare."))
    saved = first.records.queue(job("a"), "a run")
    hub.fails.clear()
    first.state.close(30)
    second.state.start()
    second.state.acquire()
    assert second.records.all() == [saved]
    second.state.close(30)


def test_the_end_waits_no_longer_than_it_may_for_a_hub_that_hangs(tmp_path: Path, hub: Faulty) -> None:
    hangs, called = threading.Event(), threading.Event()
    hub.fails["commit"] = lambda: (called.set(), hangs.wait(60))
    runner = Machine(tmp_path / "out", hub, SlowClock())
    runner.state.start()
    waiter = threading.Thread(target=expect_cancelled, args=(runner,))
    waiter.start()
    assert called.wait(60)
    runner.state.close(0.05)
    assert runner.state._thread.is_alive(), "it still hangs, and nobody waits for it"
    waiter.join(60)
    assert not waiter.is_alive(), "nor does a job that waited for the lease"
    hangs.set()
    runner.state._thread.join(60)
    assert not runner.state._thread.is_alive()


def expect_cancelled(runner: Machine) -> None:
    with pytest.raises(Cancelled):
        runner.state.acquire()


def test_closing_what_never_started_is_nothing(alone: Machine) -> None:
    alone.state.close(30)


def test_a_bug_is_logged_told_and_does_not_end_the_thread(
    threaded: Machine, hub: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fails["commit"] = raising(ZeroDivisionError("a bug in the hub"))
    with pytest.raises(HubError, match="please report it: ZeroDivisionError: a bug in the hub"):
        threaded.state.acquire()
    assert "Traceback" in caplog.text
    hub.fails.clear()
    threaded.state.acquire()
    assert threaded.state.held and threaded.state._thread.is_alive()


def test_who_writes_a_record_never_waits_for_who_reads_all(alone: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer holds the lock of the records when it marks one; whoever needs both takes them in that order."""
    real, stuck = alone.records.all, list[bool]()

    def read_all() -> list[Job]:
        other = threading.Thread(target=alone.state._mirror.mark, args=("a-1",), daemon=True)
        other.start()
        other.join(30)
        stuck.append(other.is_alive())
        return real()

    monkeypatch.setattr(alone.records, "all", read_all)
    alone.take()
    shutil.rmtree(alone.hub.root / "ggufy-state")  # type: ignore[attr-defined]
    alone.save(job("a"))
    assert stuck == [False, False] and alone.state.held


def test_a_lease_is_renewed_by_itself_through_failures_and_given_up_when_it_is_lost(
    tmp_path: Path, hub: Faulty
) -> None:
    clock = SlowClock()
    runner = Machine(tmp_path / "out", hub, clock)
    runner.state.start(interval_s=0.05)
    runner.state.acquire()
    lease = runner.state.lease
    assert lease is not None

    def renewed(before: float) -> bool:
        clock.time += 60  # half of its interval
        return lease._written > before

    def fails() -> None:
        if failures.pop() == 0:
            hub.fails.clear()
        raise HubAway("the Hub is away.")

    failures = [0, 1]
    hub.fails["commit"] = fails
    for _ in range(3):
        now = lease._written
        wait_for(lambda now=now: renewed(now))  # type: ignore[misc]
    assert runner.state.held and not failures and not runner.state.trouble
    thief = LeaseRecord(boot_id="thief", nonce="other", since="today", expires_s=99)
    hub.commit(REPO, kind="dataset", message="stolen", add={LEASE_FILE: thief.to_bytes()})
    clock.time += 60
    wait_for(lambda: bool(runner.state.trouble))
    assert "another runner has had the lease since today" in runner.state.trouble and not runner.state.held
    runner.state.close(30)
    assert LeaseRecord.from_bytes(hub.read(REPO, LEASE_FILE, kind="dataset")) == thief


def test_a_record_that_was_deleted_here_is_deleted_there_and_does_not_come_back(
    machine: Callable[..., Machine], clock: HandClock
) -> None:
    first = machine("first")
    assert first.take()
    gone, kept = first.save(job("gone", Status.DONE)), first.save(job("kept", Status.DONE))
    first.records.remove(gone.id)
    first.state._mirror.refresh(REPO, but=first.state._work.stale)  # as when the lease is taken again
    assert [one.id for one in first.records.all()] == [kept.id]
    first.state.turn()
    first.leave()
    second = machine("second")
    assert second.take()
    assert [one.id for one in second.records.all()] == [kept.id]
    second.records.remove(kept.id)
    again = second.save(kept)  # asked for anew before the commit
    second.leave()
    third = machine("third")
    assert third.take()
    assert [one.id for one in third.records.all()] == [again.id]

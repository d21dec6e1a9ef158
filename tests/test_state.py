"""Job records: in a folder alone, and over a hub with a lease: the Hub away, the disk wiped, another runner."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggufy.errors import GgufyError, HubAway, HubError, LeaseLost, TokenError
from ggufy.hub.budget import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.hub.lease import Lease
from ggufy.hub.protocol import Hub
from ggufy.hub.state import JobStore
from ggufy.job import Artifact, Job, Request, Source, Status, to_json
from ggufy.sources import hub_session
from tests.folder_hub import LocalHub
from tests.hub_fixture import ALICE, ALICE_READ, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.hub_fixture import LocalHub as Server

NUMBERS = itertools.count()
COMMIT = "POST .*/commit/"


def job(name: str, status: Status = Status.QUEUED, artifacts: int = 0) -> Job:
    source = Source(kind="checkpoint", path="/m.pth", size=10, sha256="ab" * 32)
    made = tuple(Artifact(name=f"{name}-{n}.gguf", size=n, sha256="cd" * 32) for n in range(artifacts))
    return Job(
        request=Request(name=name, source=source, quant_types=("Q8_0",), outtype="f16"),
        status=status,
        artifacts=made,
    )


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """One runner: its disk, its lease, its records."""

    def __init__(self, out: Path, hub: Hub, repo: str, clock: Clock):
        self.out, self.repo = out, repo
        self.lease = Lease(hub, repo, clock=clock, process="")
        self.store = JobStore(out, hub=hub, repo_id=repo, lease=self.lease)

    def start(self) -> bool:
        taken = self.lease.try_acquire()
        self.store.refresh()
        return taken


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["local", "huggingface"])
def machine(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    clock: Clock,
    local_hub: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Machine]]:
    """Runners that share one state repo."""
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    repo = f"alice/state-{next(NUMBERS)}"

    def make(name: str, budget: CommitBudget | None = None) -> Machine:
        if request.param == "local":
            return Machine(tmp_path / name, LocalHub(tmp_path / "shared"), repo, clock)
        budget = budget or CommitBudget(limit=1000, reserve=0, burst=1000)
        hub = HuggingFaceHub(token=ALICE, endpoint=local_hub.endpoint, budget=budget)
        return Machine(tmp_path / name, hub, repo, clock)

    yield make
    local_hub.mend()


only_remote = pytest.mark.parametrize("machine", ["huggingface"], indirect=True)


# ---- a folder alone


def test_without_a_hub_a_record_is_a_file_and_nothing_else(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "out")
    assert store.jobs() == [] and not (tmp_path / "out").exists()
    saved = store.save(job("a"))
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        f"out/ggufy-state/jobs/{saved.id}.json"
    ]
    assert saved.created and store.load(saved.id) == saved and store.jobs() == [saved]
    assert store.log_folder(saved.id) == tmp_path / "out" / "ggufy-state" / "logs" / saved.id
    store.refresh()
    store.flush()
    store.beat()
    assert not store.unsaved and store.jobs() == [saved]


def test_a_local_hub_in_the_same_folder_keeps_the_same_files(tmp_path: Path, clock: Clock) -> None:
    out = tmp_path / "out"
    old = JobStore(out).save(job("old"))  # from before there was a hub
    runner = Machine(out, LocalHub(out), "local/ggufy-state", clock)
    assert runner.start()
    saved = runner.store.save(job("new"))
    assert runner.store.jobs() == [old, saved] == JobStore(out).jobs()
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert names == sorted(
        [
            ".ggufy-hub/ggufy-state.json",
            ".ggufy-hub/ggufy-state.lock",
            f"ggufy-state/jobs/{old.id}.json",
            f"ggufy-state/jobs/{saved.id}.json",
            "ggufy-state/lease.json",
        ]
    )


# ---- over a hub


def test_records_come_back_when_the_disk_is_wiped(machine: Callable[..., Machine]) -> None:
    first = machine("one")
    assert first.start()
    saved = [first.store.save(job(name, artifacts=2)) for name in ("b", "a")]
    done = first.store.save(saved[0].evolve(status=Status.DONE))
    shutil.rmtree(first.out)
    assert first.store.jobs() == []
    first.store.refresh()
    assert first.store.jobs() == [done, saved[1]]
    first.lease.release()
    second = machine("two")
    assert second.start() and second.store.jobs() == [done, saved[1]]


def test_reading_asks_nobody(machine: Callable[..., Machine], local_hub: Server) -> None:
    runner = machine("one")
    runner.start()
    saved = runner.store.save(job("a"))
    local_hub.clear()
    assert runner.store.load(saved.id) == saved and runner.store.jobs() == [saved]
    assert local_hub.log() == []


def test_a_runner_that_lost_its_lease_cannot_write_a_record(machine: Callable[..., Machine], clock: Clock) -> None:
    first, second = machine("one"), machine("two")
    assert first.start() and not second.start()
    running = first.store.save(job("a", Status.RUNNING))
    with pytest.raises(LeaseLost, match="does not hold the lease"):
        second.store.save(job("b"))
    assert not second.start()
    clock.now = 600
    assert second.start()
    done = second.store.save(running.evolve(status=Status.DONE))
    with pytest.raises(LeaseLost, match="another runner has had the lease"):
        first.store.save(running)
    with pytest.raises(LeaseLost):
        first.store.save(running)
    first.store.refresh()
    assert first.store.jobs() == second.store.jobs() == [done]


def test_the_later_record_stays_and_one_that_never_arrived_is_sent(
    machine: Callable[..., Machine], clock: Clock
) -> None:
    first = machine("one")
    first.start()
    kept = first.store.save(job("a", Status.RUNNING))
    other = first.store.save(job("b", Status.RUNNING))
    newer = kept.evolve(status=Status.DONE, updated="2999-01-01T00:00:00.000+00:00")
    older = other.evolve(status=Status.FAILED, updated="1999-01-01T00:00:00.000+00:00")
    lost = job("c").evolve(created="2998", updated="2998")
    for record in (newer, older, lost):
        (first.store.root / "jobs" / f"{record.id}.json").write_text(to_json(record))
    (first.store.root / "jobs" / "broken.json").write_text("{")
    first.store.refresh()
    assert first.store.jobs() == [newer, other, lost] and first.store.unsaved
    first.store.flush()
    first.lease.release()
    second = machine("two")
    second.start()
    assert second.store.jobs() == [newer, other, lost]


def test_a_record_made_by_hand_in_the_repo_does_no_harm(machine: Callable[..., Machine]) -> None:
    first = machine("one")
    first.start()
    saved = first.store.save(job("a"))
    bad = {"jobs/bad.json": b"\xff{", "jobs/notes.txt": b"x", "jobs/sub/deep.json": b"{}", "README.md": b"# mine"}
    first.lease.hub.commit(first.repo, kind="dataset", message="by hand", add=bad)
    shutil.rmtree(first.out)
    first.store.refresh()
    assert first.store.jobs() == [saved]
    assert first.store.save(saved.evolve(status=Status.DONE)).status is Status.DONE
    assert first.lease.hub.read(first.repo, "README.md", kind="dataset") == b"# mine"


def test_small_files_are_kept_for_a_job_and_dropped(machine: Callable[..., Machine], tmp_path: Path) -> None:
    first = machine("one")
    first.start()
    (tmp_path / "segment").write_bytes(b"GGUF" * 500)
    first.store.keep("a-1", {"1.gguf": tmp_path / "segment", "2.gguf": b"GGUF2"})
    first.store.keep("b-1", {"1.gguf": b"other"})
    assert sorted(first.store.kept("a-1")) == ["1.gguf", "2.gguf"] and first.lease.held
    assert first.store.kept("a-1")["1.gguf"].holds(tmp_path / "segment")
    first.store.fetch("a-1", "1.gguf", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"GGUF" * 500
    first.store.keep("a-1", {"3.gguf": b"GGUF3"}, drop=["1.gguf"])
    assert sorted(first.store.kept("a-1")) == ["2.gguf", "3.gguf"]
    first.store.keep("a-1", {}, drop=["2.gguf", "3.gguf", "none.gguf"])
    assert first.store.kept("a-1") == {} and list(first.store.kept("b-1")) == ["1.gguf"]
    with pytest.raises(HubError, match="has no file"):
        first.store.fetch("a-1", "1.gguf", tmp_path / "back")


def test_without_a_hub_small_files_are_kept_too(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "out")
    store.keep("a-1", {"1.gguf": b"GGUF"})
    assert list(JobStore(tmp_path / "out").kept("a-1")) == ["1.gguf"] and store.jobs() == []
    store.keep("a-1", {}, drop=["1.gguf"])
    assert store.kept("a-1") == {} and store.wait_s() == 0


# ---- the Hub is away, full of commits, or the repo is gone


@only_remote
def test_a_hub_that_is_away_ends_nothing_and_gets_the_records_later(
    machine: Callable[..., Machine], local_hub: Server, clock: Clock
) -> None:
    runner = machine("one")
    runner.start()
    local_hub.fault(".*", status=503, times=1000)
    saved = [runner.store.save(job(name, Status.RUNNING)) for name in ("a", "b")]
    saved[0] = runner.store.save(saved[0].evolve(status=Status.DONE))
    assert runner.store.jobs() == saved and runner.store.unsaved
    with pytest.raises(HubAway):
        runner.store.flush()
    clock.now += 100
    with pytest.raises(HubAway):
        runner.store.beat()
    local_hub.mend()
    local_hub.clear()
    runner.store.beat()
    assert not runner.store.unsaved and runner.lease.held
    assert len(local_hub.log("/commit/")) == 1, "lease and two records are one commit"
    runner.lease.release()
    other = machine("two")
    other.start()
    assert other.store.jobs() == saved


@only_remote
def test_records_share_a_commit_when_commits_run_short(
    machine: Callable[..., Machine], local_hub: Server, clock: Clock
) -> None:
    budget = CommitBudget(limit=10, reserve=5, burst=2, clock=clock)
    runner = machine("one", budget)
    runner.start()
    local_hub.clear()
    for number in range(20):
        runner.store.save(job("a", artifacts=number))
    assert len(local_hub.log("/commit/")) == 2 and runner.store.unsaved
    clock.now += 120
    runner.store.beat()  # the renewal, which has a commit of its own, takes them along
    assert len(local_hub.log("/commit/")) == 3 and not runner.store.unsaved
    runner.store.save(job("a", artifacts=3))
    assert runner.store.unsaved
    runner.store.beat()
    assert runner.store.unsaved, "it is neither due nor time for an ordinary commit"
    clock.now += 600
    runner.store.flush()
    assert not runner.store.unsaved
    stranger = machine("two", budget)
    budget.pause(100)
    with pytest.raises(LeaseLost):  # nothing waits for a lease that was never had
        stranger.store.save(job("a"))
    assert not stranger.store.unsaved and stranger.store.jobs() == []


@only_remote
@pytest.mark.parametrize("how", ["save", "beat"])
def test_a_state_repo_that_was_deleted_is_made_again_with_all_records(
    machine: Callable[..., Machine], clock: Clock, how: str
) -> None:
    runner = machine("one")
    runner.start()
    saved = [runner.store.save(job(name)) for name in ("a", "b")]
    hub = runner.lease.hub
    assert isinstance(hub, HuggingFaceHub)
    hub._api.delete_repo(runner.repo, repo_type="dataset")
    if how == "save":
        saved[1] = runner.store.save(saved[1].evolve(status=Status.DONE))
    else:
        clock.now += 100
        runner.store.beat()
    assert hub._api.repo_info(runner.repo, repo_type="dataset").private and runner.lease.held
    runner.lease.release()
    other = machine("two")
    assert other.start() and other.store.jobs() == saved


@only_remote
def test_a_token_that_expires_is_told_and_nothing_is_lost(
    machine: Callable[..., Machine], local_hub: Server, clock: Clock
) -> None:
    runner = machine("one")
    runner.start()
    saved = runner.store.save(job("a"))
    reader = HuggingFaceHub(token=ALICE_READ, endpoint=local_hub.endpoint)
    runner.lease.hub = runner.store._hub = reader
    with pytest.raises(TokenError, match="set HF_TOKEN"):
        runner.store.save(saved.evolve(status=Status.DONE))
    assert runner.store.unsaved and [known.status for known in runner.store.jobs()] == [Status.DONE]
    runner.lease.hub = runner.store._hub = HuggingFaceHub(token=ALICE, endpoint=local_hub.endpoint)
    runner.store.flush()
    runner.store.refresh()
    assert [known.status for known in runner.store.jobs()] == [Status.DONE]


@only_remote
def test_the_token_is_in_no_file_and_no_error(
    machine: Callable[..., Machine], local_hub: Server, tmp_path: Path
) -> None:
    runner = machine("one")
    runner.start()
    runner.store.save(job("a"))
    local_hub.fault(COMMIT, status=403)
    with pytest.raises(GgufyError) as error:
        runner.store.save(job("b"))
    assert ALICE not in f"{error.value!r} {error.value.__cause__!r}"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if ALICE.encode() in path.read_bytes()]

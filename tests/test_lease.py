"""One runner at a time: leases that are taken, kept, lost and given back."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ggufy.core.errors import HubAway, HubError, LeaseLost, RepoMissing, TokenError
from ggufy.hub import lease as lease_module
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.hub.lease import LEASE_FILE, Lease
from ggufy.hub.lease_record import LeaseRecord
from ggufy.net import session as hub_session
from tests.folder_hub import LocalHub
from tests.hub_fixture import ALICE, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.hub_fixture import LocalHub as Server

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parent.parent
STATE = "alice/ggufy-state"
NUMBERS = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Faulty(LocalHub):
    """A hub whose next commits fail: before they are made, or after, so that only the answer is lost."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.before = self.after = 0

    def commit(self, *arguments: object, **options: object) -> str:
        if self.before:
            self.before -= 1
            raise HubAway("cut off before the commit.")
        made = super().commit(*arguments, **options)  # type: ignore[arg-type]
        if self.after:
            self.after -= 1
            raise HubAway("cut off after the commit.")
        return made


@pytest.fixture
def hub(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path / "hub")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(hub: Faulty, clock: Clock) -> Callable[..., Lease]:
    """Leases of one state repo that nobody can take for dead."""

    def lease(**options: object) -> Lease:
        return Lease(hub, STATE, **({"clock": clock, "process": ""} | options))  # type: ignore[arg-type]

    return lease


def written(hub: LocalHub) -> LeaseRecord:
    return LeaseRecord.from_bytes(hub.read(STATE, LEASE_FILE, kind="dataset"))


# ---- who holds it


def test_one_holds_it_the_other_waits_until_it_is_released(make: Callable[..., Lease]) -> None:
    first, second = make(), make()
    assert first.try_acquire() and first.held and not second.try_acquire() and not second.held
    assert second.other is not None and second.other.boot_id == first.boot_id
    assert first.try_acquire(), "who holds it takes it again"
    first.release()
    assert not first.held and second.try_acquire() and second.held and second.other is None
    assert not first.try_acquire()


@pytest.mark.parametrize("round_", range(3))
def test_of_those_that_start_at_once_one_gets_it(make: Callable[..., Lease], round_: int) -> None:
    leases, gate = [make() for _ in range(6)], threading.Barrier(6)

    def take(lease: Lease) -> None:
        gate.wait()
        lease.try_acquire()

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease.held for lease in leases) == 1


def test_a_silent_one_is_taken_over_after_its_time_and_not_before(make: Callable[..., Lease], clock: Clock) -> None:
    first, second = make(), make(expires_s=10)  # the time is that of the holder
    assert first.try_acquire()
    for clock.now in (0, 1, 300, 599):
        assert not second.try_acquire()
    clock.now = 600
    assert second.try_acquire() and second.held and not first.held


def test_each_renewal_starts_the_watchers_time_anew(make: Callable[..., Lease], clock: Clock) -> None:
    first, second = make(), make()
    assert first.try_acquire()
    for _ in range(20):
        clock.now += 500
        first.renew()
        assert not second.try_acquire() and first.held
    clock.now += 599
    assert not second.try_acquire()
    clock.now += 1
    assert second.try_acquire()


def test_wall_clocks_are_never_compared(make: Callable[..., Lease], clock: Clock, hub: Faulty) -> None:
    first = make(now=lambda: datetime(1990, 1, 1, tzinfo=UTC))
    second = make(now=lambda: datetime(2090, 1, 1, tzinfo=UTC), clock=lambda: clock.now + 1e6)
    assert first.try_acquire() and written(hub).renewed.startswith("1990")
    assert not second.try_acquire()
    clock.now += 590
    first.renew()
    assert not second.try_acquire() and first.held
    clock.now += 600
    assert second.try_acquire() and written(hub).since.startswith("2090")
    assert not first.try_acquire(), "one that lives a hundred years earlier"
    clock.now += 599
    second.renew()
    assert not first.try_acquire() and second.held


@pytest.mark.parametrize("seed", range(10))
def test_two_never_hold_it_at_the_same_time(make: Callable[..., Lease], hub: Faulty, clock: Clock, seed: int) -> None:
    """Runners that are cut off, come back, pause and start anew, at random; each believes only its own clock."""
    chance, leases, took = random.Random(seed), list[Lease](), 0
    for _ in range(400):
        clock.now += chance.expovariate(1 / 40)
        if len(leases) < 3:
            offset = chance.uniform(-1e6, 1e6)
            leases.append(make(clock=lambda offset=offset: clock.now + offset, expires_s=chance.choice([120, 600])))
        lease = chance.choice(leases)
        hub.before, hub.after = chance.choice([(0, 0), (0, 0), (1, 0), (0, 1)])
        with contextlib.suppress(HubError):
            if lease.held:
                lease.commit({"job.json": str(chance.random()).encode()}, message="work")
            elif lease.try_acquire():
                took += 1
        assert sum(lease.held for lease in leases) <= 1
        if chance.random() < 0.02:
            leases.remove(lease)  # killed
        elif chance.random() < 0.02:
            lease.release()
    assert took > 5


def test_a_holder_that_cannot_renew_stops_before_another_may_take_over(
    make: Callable[..., Lease], hub: Faulty, clock: Clock
) -> None:
    first, second = make(), make()
    assert first.try_acquire()
    assert not second.try_acquire()  # sees it at the earliest possible moment
    hub.before = 1
    clock.now = 590
    with pytest.raises(HubAway):
        first.renew()
    first.check()
    clock.now = 600
    with pytest.raises(LeaseLost, match="could not be renewed for 600 s"):
        first.check()
    assert second.try_acquire()
    with pytest.raises(LeaseLost, match="another runner has had the lease since"):
        first.commit({"job.json": b"old"}, message="too late")
    assert hub.read(STATE, "job.json", kind="dataset") is None
    with pytest.raises(LeaseLost, match="another runner"):
        first.check()


def test_a_holder_that_nobody_replaced_goes_on_when_the_hub_is_back(
    make: Callable[..., Lease], hub: Faulty, clock: Clock
) -> None:
    lease = make()
    assert lease.try_acquire()
    clock.now = 2000
    assert not lease.held
    lease.renew()
    assert lease.held
    clock.now = 4000
    assert not lease.held and lease.try_acquire() and lease.held


def test_a_lease_that_was_taken_and_given_back_meanwhile_is_lost_too(
    make: Callable[..., Lease], hub: Faulty, clock: Clock
) -> None:
    """Else a container that was asleep would write over what the other one has finished."""
    first, second = make(), make()
    assert first.try_acquire() and not second.try_acquire()
    clock.now = 600
    assert second.try_acquire()
    second.commit({"job.json": b"done"}, message="work")
    second.release()
    with pytest.raises(LeaseLost):
        first.commit({"job.json": b"running"}, message="too late")
    assert hub.read(STATE, "job.json", kind="dataset") == b"done"
    assert first.try_acquire(), "it may begin anew"


# ---- answers that are lost, and commits of others


def test_a_lost_answer_is_no_lost_lease(make: Callable[..., Lease], hub: Faulty, clock: Clock) -> None:
    lease, other = make(), make()
    hub.after = 1
    with pytest.raises(HubAway):
        lease.try_acquire()
    assert not lease.held and lease.try_acquire() and lease.held
    hub.after = 1
    with pytest.raises(HubAway):
        lease.commit({"job.json": b"1"}, message="work")
    lease.commit({"job.json": b"2"}, message="work")
    assert lease.held and hub.read(STATE, "job.json", kind="dataset") == b"2" and not other.try_acquire()


def test_a_file_that_somebody_else_changed_is_no_lost_lease(make: Callable[..., Lease], hub: Faulty) -> None:
    lease = make()
    assert lease.try_acquire()
    hub.commit(STATE, kind="dataset", message="by hand", add={"README.md": b"mine"})
    lease.commit({"job.json": b"1"}, message="work")
    hub.commit(STATE, kind="dataset", message="by hand", delete=[LEASE_FILE])
    lease.commit({"job.json": b"2"}, message="work")
    hub.squash(STATE, kind="dataset", message="by hand")
    lease.release()
    assert written(hub).boot_id == "" and hub.read(STATE, "job.json", kind="dataset") == b"2"


def test_a_repo_that_changes_all_the_time_is_given_up_for_now(
    make: Callable[..., Lease], hub: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, real = make(), LocalHub.commit
    assert lease.try_acquire()

    def beaten(self: LocalHub, *arguments: object, **options: object) -> str:
        real(self, STATE, kind="dataset", message="x", add={"x": random.randbytes(9)})
        return real(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalHub, "commit", beaten)
    with pytest.raises(HubAway, match="changed by somebody all the time"):
        lease.commit({"job.json": b"1"}, message="work")
    assert lease.held


def test_a_state_repo_that_was_deleted_is_told_and_made_anew(make: Callable[..., Lease], hub: Faulty) -> None:
    lease = make()
    assert lease.try_acquire()
    for path in (hub.root / "ggufy-state").iterdir():
        path.unlink()
    (hub.root / "ggufy-state").rmdir()
    with pytest.raises(RepoMissing):
        lease.commit({"job.json": b"1"}, message="work")
    assert make().try_acquire(), "whoever comes makes it anew"
    with pytest.raises(LeaseLost):
        lease.commit({"job.json": b"1"}, message="work")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"expires_s": "soon"}', b"\xff", b'{"boot_id": null}'])
def test_a_lease_that_cannot_be_read_is_free(make: Callable[..., Lease], hub: Faulty, data: bytes) -> None:
    hub.create_repo(STATE, kind="dataset")
    hub.commit(STATE, kind="dataset", message="broken", add={LEASE_FILE: data})
    assert make().try_acquire()
    assert LeaseRecord.from_bytes(data).nonce == ""


# ---- renewing it, squashing, and the end


def test_a_commit_that_has_just_been_made_is_the_renewal(
    make: Callable[..., Lease], hub: Faulty, clock: Clock
) -> None:
    lease = make()
    assert lease.try_acquire()
    clock.now = 100
    lease.commit({"job.json": b"1"}, message="work")
    head = hub.head(STATE, kind="dataset")
    clock.now = 159
    assert not lease.due
    lease.renew()
    assert hub.head(STATE, kind="dataset") == head
    clock.now = 160
    assert lease.due
    lease.renew()
    assert hub.head(STATE, kind="dataset") != head


def test_the_history_is_squashed_now_and_then_by_the_holder(
    make: Callable[..., Lease], hub: Faulty, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "SQUASH_EVERY", 5)
    squashed: list[str] = []
    monkeypatch.setattr(Faulty, "squash", lambda self, *a, **k: squashed.append(LocalHub.squash(self, *a, **k)))
    first = make()
    assert first.try_acquire()
    for number in range(2):
        first.commit({"job.json": b"%d" % number}, message="work")
    first.release()
    second = make()
    assert second.try_acquire() and written(hub).commits == 5 and not squashed
    second.squash()
    assert len(squashed) == 1
    second.commit({"job.json": b"new"}, message="work")
    assert second.held and written(hub).commits == 1
    second.squash()
    clock.now += 700
    for number in range(9):
        hub.commit(STATE, kind="dataset", message="by hand", add={"x": b"%d" % number})
    assert len(squashed) == 1


def test_a_lease_that_was_never_had_writes_and_releases_nothing(make: Callable[..., Lease], hub: Faulty) -> None:
    first, second = make(), make()
    assert first.try_acquire() and not second.try_acquire() and second.term == 0
    for forbidden in (
        second.check,
        second.check_taken,
        second.follow,
        lambda: second.commit({"job.json": b"1"}, message="work"),
    ):
        with pytest.raises(LeaseLost, match="does not hold the lease"):
            forbidden()
    second.squash()
    assert not second.release() and first.held and hub.read(STATE, "job.json", kind="dataset") is None


def test_an_end_that_cannot_be_written_is_told_and_what_goes_along_arrives_with_one_that_can(
    make: Callable[..., Lease], hub: Faulty
) -> None:
    first, second = make(), make()
    assert first.try_acquire()
    hub.before = 9
    assert not first.release({"job.json": b"1"}) and not first.held and not first.release()
    hub.before = 0
    assert second.try_acquire(least_term=7) is False
    assert first.try_acquire() and first.release({"job.json": b"2"}, delete=["none.json"]) and not first.held
    assert hub.read(STATE, "job.json", kind="dataset") == b"2"
    assert second.try_acquire(least_term=7) and second.term == 8


def test_the_term_grows_with_each_holder_even_if_the_file_was_deleted(make: Callable[..., Lease], hub: Faulty) -> None:
    first, second, third = make(), make(), make()
    assert first.try_acquire() and first.term == 1
    first.renew()
    first.release()
    assert first.try_acquire() and first.term == 2, "somebody else may have had it in between"
    first.release()
    assert second.try_acquire() and second.term == 3
    second.commit({"job.json": b"1"}, message="work")
    assert second.term == written(hub).term == 3
    hub.commit(STATE, kind="dataset", message="by hand", delete=[LEASE_FILE])
    assert third.try_acquire(second.term) and third.term == 4


# ---- the same on the Hugging Face Hub


@pytest.fixture
def remote(local_hub: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HuggingFaceHub, str]]:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    budget = CommitBudget(limit=1000, reserve=0, burst=1000)
    yield HuggingFaceHub(token=ALICE, endpoint=local_hub.endpoint, budget=budget), f"alice/state-{next(NUMBERS)}"
    local_hub.mend()


def test_on_the_hub_a_lost_answer_or_a_412_is_no_lost_lease(
    remote: tuple[HuggingFaceHub, str], local_hub: Server, clock: Clock
) -> None:
    hub, repo = remote
    first, second = (Lease(hub, repo, clock=clock, process="") for _ in range(2))
    assert first.try_acquire() and not second.try_acquire()
    clock.now = 500
    local_hub.fault("POST .*/commit/", status=500, after=True)
    first.renew()
    assert first.held and not second.try_acquire()
    local_hub.put(repo, "README.md", b"by hand", type="dataset", lfs=0)
    local_hub.clear()
    first.commit({"jobs/a.json": b"1"}, message="work")
    assert first.held and hub.read(repo, "jobs/a.json", kind="dataset") == b"1"
    local_hub.fault("POST .*/commit/", status=503, times=4)
    with pytest.raises(HubAway):
        first.commit({"jobs/a.json": b"2"}, message="work")
    local_hub.fault("POST .*/commit/", status=412)  # and it was not even somebody else
    first.commit({"jobs/a.json": b"2"}, message="work")
    assert not second.try_acquire()
    clock.now = 1100
    assert not first.held and second.try_acquire()
    with pytest.raises(LeaseLost):
        first.commit({"jobs/a.json": b"3"}, message="too late")
    assert hub.read(repo, "jobs/a.json", kind="dataset") == b"2"
    second.release()
    assert first.try_acquire()


def test_on_the_hub_a_lease_asks_for_a_private_repo_and_a_token(
    remote: tuple[HuggingFaceHub, str], local_hub: Server
) -> None:
    hub, repo = remote
    assert Lease(hub, repo).try_acquire()
    assert hub._api.repo_info(repo, repo_type="dataset").private
    stranger = HuggingFaceHub(token=None, endpoint=local_hub.endpoint)
    with pytest.raises(TokenError):
        Lease(stranger, repo).try_acquire()


def test_a_renewal_has_a_commit_left_when_the_others_are_used_up(local_hub: Server, clock: Clock) -> None:
    hub = HuggingFaceHub(token=ALICE, endpoint=local_hub.endpoint, budget=CommitBudget(limit=6, reserve=3, burst=9))
    repo = f"alice/state-{next(NUMBERS)}"
    lease = Lease(hub, repo, clock=clock)
    assert lease.try_acquire()
    for number in range(3):
        lease.commit({"jobs/a.json": b"%d" % number}, message="work")
    with pytest.raises(HubError, match="commits an hour are enough"):
        lease.commit({"jobs/a.json": b"9"}, message="work")
    for clock.now in (200, 400):
        lease.renew()
    record = json.loads(hub.read(repo, LEASE_FILE, kind="dataset") or b"")
    assert record["commits"] == 6 and lease.held

"""The writer of job records: which run has a say in a job, a disk that is full, and records of other machines."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ggufy.core.errors import DiskError, HubError
from ggufy.core.job import FrontierPoint, Job, Status
from ggufy.core.job_merge import merged
from ggufy.core.job_sharing import was_at_work
from ggufy.records.records import JobRecords
from ggufy.records.store import JobStore
from ggufy.system import files
from tests.jobs import artifact, figures, job

pytestmark = pytest.mark.fast


@pytest.fixture
def records(tmp_path: Path) -> JobRecords:
    return JobRecords(JobStore(tmp_path))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Says whether the disk has no room."""
    now, put = [False], JobStore.put

    def writes(store: JobStore, record: Job) -> None:
        if now[0]:
            raise DiskError(f"the disk is full while writing {record.id}: free some space and run it again.")
        put(store, record)

    monkeypatch.setattr(JobStore, "put", writes)
    return now


def on_disk(records: JobRecords, job_id: str) -> Job | None:
    return JobStore(records.store.root.parent).load(job_id)


# ---- whose say it is


def test_a_run_from_its_queue_to_its_end(records: JobRecords) -> None:
    told: list[str] = []
    records.changed = told.append
    queued = records.queue(job("a"), "run 1")
    assert queued.status is Status.QUEUED and records.is_newest(queued.id, "run 1")
    assert records.begin(queued, "run 1").status is Status.RUNNING
    records.add_artifacts(queued.id, [artifact("a-F16.gguf"), artifact("a-Q8_0.gguf")])
    records.add_evaluation(queued.id, figures("a-Q8_0.gguf"))
    records.set_frontier(queued.id, (FrontierPoint(size=1, bpw=4.0, kld=0.1),))
    ended = records.end(queued, Status.DONE, "run 1")
    assert ended.status is Status.DONE and ended.created == queued.created
    assert [one.name for one in ended.artifacts] == ["a-F16.gguf", "a-Q8_0.gguf"]
    assert ended.evaluations and ended.frontier
    assert records.latest(queued.id) == on_disk(records, queued.id) == ended
    assert told == [queued.id] * 6 and ended.serial == 6


def test_a_job_that_was_queued_again_is_not_ended_by_the_run_before(records: JobRecords) -> None:
    first = records.queue(job("a"), "run 1")
    records.begin(first, "run 1")
    records.queue(first, "run 2")
    for status in (Status.CANCELLED, Status.DONE, Status.FAILED):
        assert records.end(first, status, "run 1", HubError("too late")).status is Status.QUEUED
    assert records.begin(first, "run 1").status is Status.QUEUED, "nor taken for running"
    records.begin(first, "run 2")
    assert records.end(first, Status.PAUSED, "run 1").status is Status.RUNNING
    assert records.end(first, Status.FAILED, "run 2", HubError("a bug")).error == "a bug"


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.PAUSED])
def test_what_a_person_decided_is_not_undone_by_a_run_that_still_ends(records: JobRecords, status: Status) -> None:
    first = records.queue(job("a"), "run 1")
    records.begin(first, "run 1")
    decided = records.decide(first.id, status)
    assert decided is not None and decided.status is status
    assert records.end(first, Status.DONE, "run 1") == decided == records.begin(first, "run 1")
    again = records.queue(first, "run 2")
    assert again.status is Status.QUEUED
    assert records.end(first, Status.DONE, "run 2").status is Status.DONE
    assert records.decide("nobody-1", status) is None


def test_what_a_run_has_found_counts_whatever_became_of_it(records: JobRecords) -> None:
    first = records.queue(job("a"), "run 1")
    records.begin(first, "run 1")
    records.queue(first, "run 2")
    records.add_artifacts(first.id, [artifact("a-Q8_0.gguf")])
    records.add_evaluation(first.id, figures("a-Q8_0.gguf"))
    known = records.latest(first.id)
    assert known is not None and known.artifacts and known.evaluations and known.status is Status.QUEUED
    assert records.queue(first, "run 3").artifacts == known.artifacts, "nor forgotten when it is queued once more"
    records.add_artifacts("nobody-1", [artifact("a")])
    assert records.latest("nobody-1") is None


def test_a_run_that_was_never_queued_has_its_say(records: JobRecords) -> None:
    """On the command line, and for jobs that are taken up again."""
    begun = records.begin(job("a"), "run 1")
    assert begun.status is Status.RUNNING
    assert records.end(begun, Status.FAILED, "run 1", HubError("no")).status is Status.FAILED
    assert records.begin(begun, "run 1b").status is Status.RUNNING, "and so has the one after it"
    assert records.end(begun, Status.FAILED, "run 1b", HubError("no")).status is Status.FAILED
    records.expect(begun.id, "run 2")
    assert records.end(begun, Status.DONE, "run 1").status is Status.FAILED
    assert records.end(begun, Status.DONE, "run 2").status is Status.DONE


def test_a_job_s_time_is_that_of_its_runs(records: JobRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("ggufy.records.records.time.monotonic", lambda: now)
    first = records.queue(job("a"), "run 1")
    now = 100.0  # it waited for its turn
    records.begin(first, "run 1")
    now = 107.0
    records.begin(first, "run 1")  # its second try
    now = 110.0
    assert records.end(first, Status.FAILED, "run 1", HubError("no")).took_s == 10
    records.queue(first, "run 2")
    assert records.end(first, Status.CANCELLED, "run 2").took_s == 10  # it had not begun
    records.queue(first, "run 3")
    records.begin(first, "run 3")
    now = 112.5
    assert records.end(first, Status.DONE, "run 3").took_s == 12.5
    theirs = first.evolve(term=9, serial=9, took_s=20.0)
    assert records.take_over(theirs, unsent=False).took_s == 20


def test_an_error_is_of_the_last_run(records: JobRecords) -> None:
    first = records.queue(job("a"), "run 1")
    records.end(first, Status.FAILED, "run 1", HubError("no"))
    assert records.queue(first, "run 2").error == ""
    records.end(first, Status.PAUSED, "run 2", "a token")
    cancelled = records.decide(first.id, Status.CANCELLED)
    assert cancelled is not None and cancelled.error == ""


def test_many_threads_lose_nothing(records: JobRecords) -> None:
    first = records.queue(job("a"), "run 1")

    def find(number: int) -> None:
        for n in range(10):
            records.add_artifacts(first.id, [artifact(f"{number}-{n}.gguf")])

    threads = [threading.Thread(target=find, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = records.latest(first.id)
    assert known is not None and len(known.artifacts) == 60 and known.serial == 61


# ---- a full disk


def test_the_end_is_known_though_the_disk_is_full_and_written_when_there_is_room(
    records: JobRecords, full: list[bool]
) -> None:
    told: list[str] = []
    first = records.queue(job("a"), "run 1")
    records.begin(first, "run 1")
    records.changed = told.append
    full[0] = True
    ended = records.end(first, Status.FAILED, "run 1", "the disk is full")
    records.add_artifacts(first.id, [artifact("a-Q8_0.gguf")])
    (shown,) = records.all()
    assert shown == records.latest(first.id) and (shown.status, shown.error) == (Status.FAILED, ended.error)
    assert shown.artifacts and told == []
    old = on_disk(records, first.id)
    assert old is not None and old.status is Status.RUNNING
    full[0] = False
    (shown,) = records.all()
    assert shown == on_disk(records, first.id) and shown.status is Status.FAILED and shown.artifacts
    assert told == [first.id], "and the Hub hears of it"


def test_a_job_that_could_never_be_written_is_known(records: JobRecords, full: list[bool]) -> None:
    full[0] = True
    records.begin(job("a"), "run 1")
    (shown,) = records.all()
    assert shown.status is Status.RUNNING and on_disk(records, shown.id) is None


def test_who_queues_a_job_hears_that_the_disk_is_full(records: JobRecords, full: list[bool]) -> None:
    full[0] = True
    with pytest.raises(DiskError, match="free some space"):
        records.queue(job("a"), "run 1")
    assert records.all() == [] and records.latest(job("a").id) is None


def test_a_write_that_fails_leaves_the_record_before(records: JobRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the error is: one of the system is none of ours."""
    first = records.queue(job("a"), "run 1")

    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "replace", broken)
    monkeypatch.setattr(Path, "replace", broken)
    assert records.end(first, Status.DONE, "run 1").status is Status.DONE
    assert on_disk(records, first.id) == first


# ---- two records of one job


def made(status: Status, term: int, serial: int, *names: str, **changes: object) -> Job:
    known = job("a", status).evolve(term=term, serial=serial, **changes)
    for name in names:
        known = known.with_artifact(artifact(name))
    return known


Q, R, D, F, C, P = Status.QUEUED, Status.RUNNING, Status.DONE, Status.FAILED, Status.CANCELLED, Status.PAUSED


@pytest.mark.parametrize(
    ("own", "theirs", "unsent", "expected"),
    [
        (made(D, 1, 5), made(R, 1, 4), False, D),  # who wrote last
        (made(R, 1, 4), made(D, 1, 5), False, D),
        (made(R, 1, 9), made(D, 2, 1), False, D),  # under the later lease, however often the other wrote
        (made(D, 2, 1), made(R, 1, 9), True, D),
        (made(R, 0, 0, updated="2020"), made(F, 0, 0, updated="2019"), False, R),  # of older versions: the time
        (made(R, 0, 0, updated="2019"), made(F, 0, 0, updated="2020"), False, F),
        (made(C, 1, 4), made(R, 2, 9), True, C),  # what a person decided here, and nobody knows there
        (made(P, 1, 4), made(R, 2, 9), True, P),
        (made(Q, 1, 4), made(C, 2, 9), True, Q),
        (made(Q, 1, 4), made(D, 2, 9), True, Q),  # once more, although it was done
        (made(C, 1, 4), made(D, 2, 9), True, D),  # too late
        (made(P, 1, 4), made(D, 2, 9), True, D),
        (made(C, 1, 4), made(R, 2, 9), False, R),  # known there, and queued again since
        (made(R, 1, 4), made(C, 2, 9), True, C),  # a run decides nothing
        (made(F, 1, 4), made(R, 2, 9), True, R),
        (made(D, 1, 4), made(R, 1, 4), False, R),  # the same age: theirs, which others have seen
    ],
)
def test_which_status_counts(own: Job, theirs: Job, unsent: bool, expected: Status) -> None:
    assert merged(own, theirs, unsent=unsent).status is expected


@pytest.mark.parametrize("own_is_newer", [True, False])
def test_nothing_that_only_one_of_them_knows_is_lost(own_is_newer: bool) -> None:
    points = (FrontierPoint(size=1, bpw=4.0, kld=0.1),)
    old = made(R, 1, 1, "both", "old", created="2019", frontier=points).with_evaluation(figures("old"))
    new = made(R, 1, 2, "both", "new", created="2020").with_evaluation(figures("new"))
    new = new.with_artifact(artifact("both", 7))
    found = merged(new, old, unsent=False) if own_is_newer else merged(old, new, unsent=False)
    assert sorted(one.name for one in found.artifacts) == ["both", "new", "old"]
    assert next(one.size for one in found.artifacts if one.name == "both") == 7, "of the newer record"
    assert {one.quant for one in found.evaluations} == {"old", "new"}
    assert found.frontier == points and found.created == "2019" and (found.term, found.serial) == (1, 2)


def test_a_record_of_the_state_repo_is_taken_over_as_it_is(records: JobRecords) -> None:
    theirs = made(D, 4, 7, "a-Q8_0.gguf", created="2020", updated="2021")
    assert records.take_over(theirs, unsent=False) == theirs == on_disk(records, theirs.id)
    assert records.term == 4
    assert records.queue(theirs, "run 1").term == 4, "what is written from now on is newer"


def test_the_own_record_stays_if_it_knows_more(records: JobRecords) -> None:
    records.term = 4
    own = records.queue(made(Q, 0, 0, "a-Q8_0.gguf"), "run 1")
    told: list[str] = []
    records.changed = told.append
    assert records.take_over(made(R, 1, 7, created=own.created), unsent=False) == own and told == []
    joined = records.take_over(made(R, 1, 7, "other.gguf", created=own.created), unsent=False)
    assert len(joined.artifacts) == 2 and joined.serial == own.serial + 1
    assert told == [own.id] and on_disk(records, own.id) == joined


def test_a_later_record_of_the_repo_replaces_what_could_not_be_written(records: JobRecords, full: list[bool]) -> None:
    first = records.queue(job("a"), "run 1")
    full[0] = True
    records.begin(first, "run 1")
    full[0] = False
    theirs = first.evolve(term=5, serial=9, status=D, begun=True)
    assert records.take_over(theirs, unsent=False) == theirs == records.latest(first.id)


def test_a_job_that_has_been_at_work_is_known_for_it(records: JobRecords) -> None:
    """An upload whose answer was lost, then Pause and Resume: no product is in the record, and one is in the repo."""
    queued = records.queue(job("a"), "run 1")
    assert not was_at_work(queued)
    begun = records.begin(queued, "run 1")
    records.end(begun, Status.PAUSED, "run 1")
    again = records.queue(begun, "run 2")
    assert again.status is Status.QUEUED and not again.artifacts and was_at_work(again)
    older = job("a").evolve(status=Status.CANCELLED, serial=99)
    assert was_at_work(merged(again, older, unsent=False))

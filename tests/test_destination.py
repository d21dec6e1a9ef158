"""The output folder as a run's destination, and whose files it may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufy.core.errors import UsageError
from ggufy.core.job import Job, Status
from ggufy.publish.destination import Destination, LocalFolder
from ggufy.records.records import JobRecords
from ggufy.records.store import JobStore
from ggufy.steps import plan
from tests.jobs import artifact, job

pytestmark = pytest.mark.fast


@pytest.fixture
def records(tmp_path: Path) -> JobRecords:
    return JobRecords(JobStore(tmp_path / "out"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "m-GGUF"
    folder.mkdir(parents=True)
    return folder


def test_what_lies_in_the_folder_has_arrived_and_is_noted(records: JobRecords, folder: Path) -> None:
    known = records.queue(job("m"), "a run")
    there: Destination = LocalFolder(records, known, folder)
    there.start(resumed=False)
    step = next(step for step in plan(known.request) if step.quant_type)
    assert not there.has(step.product) and there.keeps_all and there.safe is None
    (folder / step.product).write_bytes(b"GGUF")
    there.accept(step, artifact(step.product))
    there.accept(step, None)  # it was there before
    assert there.has(step.product)
    there.make_room(1 << 60)  # the forecast has seen to it
    there.finish(measured=True)
    for _ in range(2):
        there.close()
    noted = records.latest(known.id)
    assert noted is not None and [one.name for one in noted.artifacts] == [step.product]


OTHER = job("m", content="cd")  # of the same name, made from something else


@pytest.mark.parametrize(
    ("owner", "fits"),
    [
        (job("m", Status.DONE, 1), True),
        (job("m", Status.RUNNING), True),  # killed before its first product was noted
        (job("m", Status.CANCELLED, 2), True),
        (OTHER.evolve(status=Status.DONE, artifacts=job("m", artifacts=1).artifacts), False),
        (OTHER.evolve(status=Status.RUNNING), False),
        (OTHER, False),  # it never worked: the files are nobody's
        (job("n", Status.DONE, 1), False),  # another's
        (None, False),
    ],
)
def test_a_folder_holds_files_of_one_source_and_one_set_of_options(
    records: JobRecords, folder: Path, owner: Job | None, fits: bool
) -> None:
    if owner:
        records.store.save(owner)
    (folder / "notes.txt").write_text("mine")
    there = LocalFolder(records, job("m"), folder)
    there.start(resumed=False)  # no model lies in it
    (folder / "m-Q8_0.gguf").write_bytes(b"GGUF")
    if fits:
        there.start(resumed=False)
        return
    with pytest.raises(UsageError, match="another --name or --out"):
        there.start(resumed=False)
    assert (folder / "m-Q8_0.gguf").read_bytes() == b"GGUF"


def test_the_one_that_worked_there_last_owns_it(records: JobRecords, folder: Path) -> None:
    (folder / "m-Q8_0.gguf").write_bytes(b"GGUF")
    ours, theirs = (one.evolve(artifacts=(artifact("m-Q8_0.gguf"),)) for one in (job("m"), OTHER))
    records.store.put(theirs.evolve(updated="2020"))
    records.store.put(ours.evolve(updated="2021"))
    LocalFolder(records, ours, folder).start(resumed=False)
    records.store.put(theirs.evolve(updated="2022"))
    with pytest.raises(UsageError):
        LocalFolder(records, ours, folder).start(resumed=False)


def test_a_folder_that_is_not_there_yet_is_free(records: JobRecords, tmp_path: Path) -> None:
    LocalFolder(records, job("m"), tmp_path / "nowhere").start(resumed=False)

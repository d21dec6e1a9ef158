"""Job records in the output folder: files, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ggufy.core.job import Status
from ggufy.core.job_record import to_json
from ggufy.records import store as state
from ggufy.records.store import JobStore
from tests.jobs import job

pytestmark = pytest.mark.fast


def test_a_record_is_a_file_and_nothing_else(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "out")
    assert store.jobs() == [] and not (tmp_path / "out").exists()
    saved = store.save(job("a"))
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        f"out/ggufy-state/jobs/{saved.id}.json"
    ]
    assert saved.created and store.load(saved.id) == saved and store.jobs() == [saved]
    assert store.log_folder(saved.id) == tmp_path / "out" / "ggufy-state" / "logs" / saved.id


def test_each_writing_counts_and_the_greatest_term_stays(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    first = store.save(job("a"), term=3)
    second = store.save(first.evolve(status=Status.DONE), term=2)
    assert (first.term, first.serial, second.term, second.serial) == (3, 1, 3, 2)
    assert second.created == first.created and second.updated >= first.updated
    store.put(first)
    assert store.load(first.id) == first, "as it is"


def test_the_oldest_comes_first_and_the_unreadable_is_left_aside(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    new, old = (job(name).evolve(created=created) for name, created in (("a", "2999"), ("b", "1999")))
    store.put(new)
    store.put(old)
    for name, data in {"broken.json": b"{", "binary.json": b"\xff", "notes.txt": b"x"}.items():
        (store.root / "jobs" / name).write_bytes(data)
    assert store.jobs() == [old, new]
    assert store.load("broken") is store.load("nobody") is None


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = JobStore(tmp_path), list[str]()
    saved = [store.save(job(name)) for name in "abc"]
    parse = state.from_json
    monkeypatch.setattr(state, "from_json", lambda text: (read.append(text), parse(text))[1])
    assert store.jobs() == store.jobs() == saved and len(read) == 3
    assert all(one is other for one, other in zip(store.jobs(), store.jobs(), strict=True))
    changed = saved[0].evolve(status=Status.DONE)
    path = store.path(changed.id)
    path.with_suffix(".part").write_text(to_json(changed))  # by somebody else
    os.utime(path.with_suffix(".part"), ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
    path.with_suffix(".part").replace(path)
    assert store.jobs()[0] == changed and len(read) == 4
    store.path(saved[1].id).unlink()
    assert store.jobs() == [changed, saved[2]] and store.load(saved[1].id) is None and len(read) == 4
    assert len(store._parsed) == 2, "what is gone is forgotten"

"""What is finished of a quant survives the loss of the disk: it waits in the state repo until it is published."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ggufy.core.errors import Cancelled, HubAway
from ggufy.core.job import Status
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.llama.install import Llama
from ggufy.publish import hub_repo
from ggufy.quantize import engine, journal
from ggufy.quantize.task import Made, QuantizeTask
from ggufy.records.run_state import RunState
from ggufy.records.store import JobStore
from ggufy.steps import partial_backup as backup
from ggufy.steps.partial_backup import PartialBackup
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from tests import tiny
from tests.folder_hub import LocalHub, connected

STATE = "me/ggufy-state"


class Memory:
    """A safe that is a folder; it may be away."""

    def __init__(self, folder: Path):
        self.folder, self.away = folder, False
        folder.mkdir()

    def names(self) -> list[str]:
        if self.away:
            raise HubAway("the Hub is away: try again later.")
        return sorted(path.name for path in self.folder.iterdir())

    def put(self, path: Path, drop: object = ()) -> None:
        self.names()
        (self.folder / path.name).write_bytes(path.read_bytes())

    def get(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((self.folder / name).read_bytes())

    def wait_s(self) -> float:
        return 0.0


def begin(folder: Path, chunks: dict[int, bytes], key: str = "a key") -> Path:
    """A file in the making, with these chunks at these places."""
    folder.mkdir(exist_ok=True)
    part = folder / "m-Q4_K_M.gguf.part"
    with part.open("r+b" if part.exists() else "wb") as file:
        for offset, data in chunks.items():
            file.seek(offset)
            file.write(data)
    lines = [journal.journal_line("ab" * 32, offset, len(data)) for offset, data in chunks.items()]
    journal.journal_of(part).write_text("".join([f"{key}\n", *lines]))
    return part


def save(saver: PartialBackup) -> None:
    saver._cpu_s, saver._saved_at = 1e9, float("-inf")
    saver.looked()
    saver._sending.join()


@pytest.mark.parametrize("other", ["a key", "another key"])
def test_chunks_come_back_to_their_places(tmp_path: Path, other: str) -> None:
    """In several files, each chunk once; those that were made of another base are not mixed in."""
    memory = Memory(tmp_path / "safe")
    chunks = {64: b"one\n\n", 512: b"two", 100: bytes(range(256))}
    part = begin(tmp_path / "here", chunks)
    saver = PartialBackup(memory, part, tmp_path / "work", lambda: 1.0)
    saver.restore()
    save(saver)
    save(saver)  # nothing new
    assert memory.names() == ["m-Q4_K_M.gguf.0001.chunks"]
    chunks |= {1024: b"three"}
    begin(tmp_path / "here", chunks, other)
    save(saver)
    assert memory.names() == ["m-Q4_K_M.gguf.0001.chunks", "m-Q4_K_M.gguf.0002.chunks"]
    again = tmp_path / "there" / part.name
    saver = PartialBackup(memory, again, tmp_path / "work", lambda: 1.0)
    saver.restore()
    key, back = journal.read_journal(journal.journal_of(again))
    wanted = chunks if other == "a key" else {1024: b"three"}
    assert (key, set(back)) == (other, set(wanted))
    data = again.read_bytes()
    assert all(data[offset : offset + len(chunk)] == chunk for offset, chunk in wanted.items())
    save(saver)
    assert len(memory.names()) == 2  # all of that is safe already
    assert not list((tmp_path / "work").iterdir())


def test_this_disk_goes_first_and_the_hub_may_be_away(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "safe")
    part = begin(tmp_path / "here", {64: b"one"})
    saver = PartialBackup(memory, part, tmp_path / "work", lambda: 1.0)
    save(saver)
    begin(tmp_path / "here", {64: b"ONE", 512: b"two"})
    PartialBackup(memory, part, tmp_path / "work", lambda: 1.0).restore()
    assert part.read_bytes()[64:67] == b"ONE"
    memory.away = True
    save(saver)
    PartialBackup(memory, tmp_path / "there" / part.name, tmp_path / "work", lambda: 1.0).restore()
    memory.away = False
    save(saver)
    assert len(memory.names()) == 2  # what could not be saved went along the next time


def test_seconds_of_work_count_not_those_of_waiting(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "safe")
    saver = PartialBackup(memory, begin(tmp_path / "here", {64: b"one"}), tmp_path / "work", lambda: 0.0)
    saver._saved_at = saver._looked_at = float(-10_000)
    saver.looked()
    saver.looked()
    assert not saver._sending.is_alive() and not memory.names()


@pytest.mark.tools
def test_a_quant_goes_on_with_what_the_lost_disk_had_finished(
    tmp_path: Path, llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "WORTH_S", 0.0)
    monkeypatch.setattr(backup, "LEAST_S", 0.0)
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=512, layers=3)
    job_options = JobOptions(
        source=str(checkpoint), vocab=str(vocab), quant_types=("IQ3_S",), imatrix="none", owner="me"
    )
    hub = LocalHub(tmp_path / "hub")
    made: list[Made] = []
    real, stop = engine.quantize, threading.Event()

    def quantize(*arguments: object, **options: object) -> Made:
        made.append(real(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(engine, "quantize", quantize)
    looked = PartialBackup.looked

    def look(saver: PartialBackup) -> None:
        looked(saver)
        if not stop.is_set():
            saver._sending.join()
            if any(name.endswith(".chunks") for name in hub.list_files(STATE, kind="dataset")):
                stop.set()

    monkeypatch.setattr(PartialBackup, "looked", look)

    def start(out: Path, live: RunState) -> Status:
        folders = {"GGUFY_OUT": str(out), "GGUFY_CACHE": str(Settings.from_env().cache), "HOME": str(tmp_path)}
        settings = Settings.from_env(folders | {"GGUFY_CPU_PERCENT": "10" if not stop.is_set() else "100"})
        with connected(out, hub, "me") as workspace:
            runner = Runner(settings=settings, llama=llama, workspace=workspace)
            return runner.run(make_job(job_options, settings), live).status

    live = RunState()
    live.stop.shutdown = stop
    with pytest.raises(Cancelled):
        start(tmp_path / "first disk", live)
    assert not made
    assert start(tmp_path / "second disk", RunState()) is Status.DONE
    assert made[0].resumed > 0 and made[0].computed
    assert not any("files/" in name for name in hub.list_files(STATE, kind="dataset"))
    published = hub.list_files("me/tiny-v7-GGUF", kind="model")["tiny-v7-IQ3_S.gguf"]
    plain = JobOptions(source=str(checkpoint), vocab=str(vocab), quant_types=("IQ3_S",), imatrix="none")
    settings = Settings.from_env({"GGUFY_OUT": str(tmp_path / "o"), "HOME": str(tmp_path)} | _cache())
    assert Runner(settings=settings, llama=llama).run(make_job(plain, settings)).status is Status.DONE
    assert published.sha256 in (None, sha256(tmp_path / "o" / "tiny-v7-GGUF" / "tiny-v7-IQ3_S.gguf"))


def _cache() -> dict[str, str]:
    return {"GGUFY_CACHE": str(Settings.from_env().cache)}


@pytest.mark.tools
def test_a_full_disk_keeps_the_quant_that_another_copies_from(
    tmp_path: Path, llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two quants: Q4_K_S takes its tensors from Q4_K_M, so it is Q8_0 that goes when both are published."""
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=512, layers=3)
    hub, out = LocalHub(tmp_path / "hub"), tmp_path / "out"
    folder = out / "tiny-v7-GGUF"
    made: dict[str, Made] = {}
    real = engine.quantize

    def quantize(order: QuantizeTask, *arguments: object, **options: object) -> Made:
        made[order.target.stem.rpartition("-")[2]] = real(order, *arguments, **options)  # type: ignore[arg-type]
        return made[order.target.stem.rpartition("-")[2]]

    def free(path: Path) -> int:
        """Once all that is finished is published, what two quants and a base leave of a small disk."""
        here = {path.name: path.stat().st_size for path in folder.glob("*.gguf")}
        deadline = time.monotonic() + 60
        while not here.keys() <= {artifact.name for job in store.jobs() for artifact in job.artifacts}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        most = 2 if len(made) == 2 else 9
        return 10**9 if sum(name.endswith(("M.gguf", "S.gguf", "0.gguf")) for name in here) < most else 0

    monkeypatch.setattr(engine, "quantize", quantize)
    monkeypatch.setattr(hub_repo, "free_bytes", free)
    folders = {"GGUFY_OUT": str(out), "HOME": str(tmp_path)} | _cache()
    settings = Settings.from_env(folders)
    store = JobStore(out)
    job_options = JobOptions(
        source=str(checkpoint),
        vocab=str(vocab),
        quant_types=("Q4_K_M", "Q8_0", "Q4_K_S"),
        imatrix="none",
        mix="stock",  # whose Q4_K_S is Q4_K_M
        owner="me",
    )
    with connected(out, hub, "me") as workspace:
        runner = Runner(settings=settings, llama=llama, workspace=workspace)
        assert runner.run(make_job(job_options, settings)).status is Status.DONE
    assert {path.name for path in folder.glob("*Q*.gguf")} == {"tiny-v7-Q4_K_M.gguf", "tiny-v7-Q4_K_S.gguf"}
    assert made["Q4_K_S"].copied and not made["Q4_K_S"].computed
    assert len(hub.list_files("me/tiny-v7-GGUF", kind="model").keys() & {f"tiny-v7-{t}.gguf" for t in made}) == 3

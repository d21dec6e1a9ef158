"""Leases between real processes, which are killed and stopped."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggufy.core.errors import BusyError
from ggufy.hub.lease import Lease
from ggufy.hub.lease_record import identity, process_is_dead
from ggufy.system.locks import lock
from tests.folder_hub import LocalHub
from tests.hub_client import wait_for
from tests.hub_fixture import LocalHub as Server
from tests.hub_fixture import local_hub, no_request_elsewhere  # noqa: F401 - fixtures

ROOT = Path(__file__).parent.parent
STATE = "alice/ggufy-state"


def test_only_a_process_of_this_container_that_is_no_more_is_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        alive = identity(child.pid)
        assert not process_is_dead(alive) and not process_is_dead(identity())
        child.kill()
        wait_for(lambda: process_is_dead(alive))  # a zombie, which nobody has waited for yet
    assert process_is_dead(alive)
    container, pid, start = alive.split()
    assert process_is_dead(f"{container} {os.getpid()} {start}"), "another process has the number now"
    assert not process_is_dead(f"{'0' * 16} {pid} {start}"), "of another container"
    assert (
        not process_is_dead("")
        and not process_is_dead("x")
        and not process_is_dead(f"{container} x y")
        and not process_is_dead(container)
    )


RUNNER = """
import sys, time
from pathlib import Path
from ggufy.core.errors import LeaseLost
from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.hub.lease import Lease
from ggufy.records.store import JobStore
from ggufy.records import state_repo
from ggufy.records.records import JobRecords
from ggufy.records.account import Account
from ggufy.records.state_repo import StateRepo
from tests.folder_hub import LocalHub

state_repo._POLL_S = 0.1
place, name, known, out = sys.argv[1], sys.argv[2], sys.argv[3] == "known", Path(sys.argv[4])
if place.startswith("http"):
    budget = CommitBudget(limit=10_000, reserve=0, burst=10_000)
    hub = HuggingFaceHub(token="hf_alice", endpoint=place, budget=budget)
else:
    hub = LocalHub(Path(place))

def make_lease(hub, repo_id):
    return Lease(hub, repo_id, interval_s=0.4, expires_s=2.0, process=None if known else "")

state = StateRepo(JobRecords(JobStore(out)), hub, Account(ask=lambda: "alice"), make_lease)
state.start(interval_s=0.4)
state.acquire()
print("holds", flush=True)
number = 0
try:
    while True:
        state.check()
        work = out / "work.txt"
        work.write_text(str(number))
        state.keep(name, {"work.txt": work})
        number += 1
        time.sleep(0.05)
except LeaseLost as error:
    print("lost", number, flush=True)
"""


class Process:
    def __init__(self, place: str, name: str, known: bool, out: Path):
        out.mkdir()
        command = [sys.executable, "-c", RUNNER, place, name, "known" if known else "unknown", str(out)]
        self.popen = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                self.said.append(line.strip())

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.killpg(self.popen.pid, number)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(name: str, *, known: bool = False, place: str = "") -> Process:
        started.append(Process(place or str(tmp_path / "hub"), name, known, tmp_path / name))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.popen.wait()
        process.reader.join()


@pytest.mark.parametrize("where", ["local", "huggingface"])
def test_of_two_processes_one_works_and_the_other_goes_on_when_it_is_killed(
    run: Callable[..., Process], local_hub: Server, where: str
) -> None:
    place = local_hub.endpoint if where == "huggingface" else ""
    both = [run("a", place=place), run("b", place=place)]
    wait_for(lambda: any(process.said for process in both))
    time.sleep(3)  # longer than the lease lasts: it is renewed
    (holder,) = [process for process in both if process.said]
    (waiter,) = [process for process in both if not process.said]
    holder.kill()
    killed = time.monotonic()
    wait_for(lambda: waiter.said)
    assert waiter.said == ["holds"] and time.monotonic() - killed > 1.0
    time.sleep(0.5)
    assert waiter.popen.poll() is None and len(waiter.said) == 1


def test_nobody_waits_for_a_process_of_this_container_that_was_killed(
    run: Callable[..., Process], tmp_path: Path
) -> None:
    first = run("a", known=True)
    wait_for(lambda: first.said)
    first.kill()
    first.popen.wait()
    hub = LocalHub(tmp_path / "hub")
    assert Lease(hub, STATE).try_acquire()


def stopped_between_writes(process: Process, hub: Path) -> bool:
    """Stops a process, unless it is just writing: the folder that stands for the Hub would stay locked for all."""
    process.kill(signal.SIGSTOP)
    try:
        for path in hub.rglob("*.lock"):
            with lock(path):
                pass
    except BusyError:
        process.kill(signal.SIGCONT)
        return False
    return True


def test_a_process_that_comes_back_finds_its_lease_lost_and_touches_nothing(
    run: Callable[..., Process], tmp_path: Path
) -> None:
    first = run("a")
    wait_for(lambda: first.said)
    second = run("b")
    time.sleep(0.5)
    hub = LocalHub(tmp_path / "hub")
    wait_for(lambda: stopped_between_writes(first, tmp_path / "hub"))
    wait_for(lambda: second.said)
    before = hub.read(STATE, "files/a/work.txt", kind="dataset")
    first.kill(signal.SIGCONT)
    wait_for(lambda: len(first.said) == 2)
    assert first.said[1].startswith("lost") and second.said == ["holds"]
    assert hub.read(STATE, "files/a/work.txt", kind="dataset") == before

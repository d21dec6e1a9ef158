"""The middle of a job, under whatever may happen: clicks, restarts with the disk kept or lost, two runners,
a hub that is away, slow, forgetful or full, repos that vanish, steps that fail. Nothing finished is lost or made anew,
and every job ends in a state that its buttons fit.

`make soak` makes many more steps of it (GGUFY_TEST_STEPS).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ggufy.core.errors import DiskError, TokenError, ToolError
from ggufy.core.job import RESTING, Artifact, Job, Request, Status
from ggufy.core.metrics import Evaluation, Quality
from ggufy.core.source import Source
from ggufy.formats.gguf import GgufHead, TensorInfo
from ggufy.hub.lease import LEASE_FILE, Lease
from ggufy.hub.lease_record import LeaseRecord
from ggufy.jobs.queue import Worker
from ggufy.jobs.runner import Runner
from ggufy.jobs.workspace import Workspace
from ggufy.llama.install import Llama
from ggufy.records.account import Account
from ggufy.records.records import JobRecords
from ggufy.records.state_repo import StateRepo
from ggufy.records.store import JobStore
from ggufy.steps import Makers, files_made
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.local_step import LocalStep
from ggufy.steps.measure import EvaluateStep
from ggufy.system.clock import sleep
from ggufy.system.files import partial
from ggufy.system.settings import Settings
from tests.fakes import Cloud, HandClock, Handle

pytestmark = pytest.mark.fast
STEPS = int(os.environ.get("GGUFY_TEST_STEPS", "2000"))
EACH = 50  # rule steps of an example
STATE = "alice/ggufy-state"
LEASE_S = 600.0
MOODS = ("away", "lost", "slow", "hangs", "quota", "token")
QUALITY = Quality(**dict.fromkeys(Quality.__dataclass_fields__, 1.0))
NAMES = ("a", "b", "c")


class Forecast(JobForecast):
    """Sizes of nothing in particular."""

    def work(self, types: object) -> dict[str, float]:
        return {}

    @property
    def sizes(self) -> dict[str, int]:
        return {"Q8_0": 100, "Q4_K_M": 100}


def head() -> GgufHead:
    tensor = TensorInfo(name="t", shape=(4, 4), type="F16", offset=0, size=32)
    return GgufHead(metadata={}, tensors={"t": tensor}, metadata_end=10, data_start=20, file_size=100)


def request(name: str, repo_id: str) -> Request:
    return Request(
        name=name,
        source=Source(kind="checkpoint", path=f"/{name}.pth", size=10, sha256=name * 64),
        quant_types=("Q8_0", "Q4_K_M"),
        outtype="f16",
        imatrix="none",
        evaluate=True,
        evaluation_sha256="e" * 64,
        evaluation_chunks=4,
        repo_id=repo_id,
    )


def content(product: str) -> bytes:
    return f"what {product} is".encode()


class World:
    """What all machines share, and what is expected of it."""

    def __init__(self, root: Path):
        self.root, self.clock = root, HandClock()
        self.cloud = Cloud(self.clock)
        self.repos_deleted = self.records_deleted = False
        self.failing: list[Exception] = []  # of the next steps
        self.failed: set[str] = set()  # names of jobs that met one

    def wrong(self, what: str) -> None:
        self.cloud.violations.append(what)

    def make(self, machine: Machine, ctx: Context, step: LocalStep) -> Artifact | None:
        if self.failing and not ctx.stopped():
            self.failed.add(ctx.request.name)
            raise self.failing.pop()
        if isinstance(step, EvaluateStep):
            return self.measure(ctx, step)
        target = ctx.path(step.product)
        if target.exists():
            self.wrong(f"{step.product} is made where it is")
        there = self.cloud.files(ctx.request.repo_id) if ctx.request.repo_id else {}
        if step.product in there and not self.repos_deleted and machine.holds():
            self.wrong(f"{step.product} is made although the repo has it")
        sleep(15.0, ctx.stopped, self.clock)
        with partial(target) as part:
            part.write_bytes(content(step.product))
        return artifact_of(target)

    def measure(self, ctx: Context, step: LocalStep) -> None:
        quant = ctx.path(step.reads[1])
        sleep(5.0, ctx.stopped, self.clock)
        ctx.measured(
            Evaluation(
                quant=quant.name,
                quant_sha256=artifact_of(quant).sha256,
                size=1,
                bpw=8.0,
                base="base",
                base_sha256="",
                text="text",
                text_sha256="e" * 64,
                llama="x",
                chunks=4,
                tokens=100,
                quality=QUALITY,
            )
        )


class Machine:
    """One process of the program, with its disk."""

    def __init__(self, world: World, name: str, *, hub: bool):
        self.world, self.out, self.hub = world, world.root / name, hub
        self.clicks: dict[str, str] = {}  # job id -> the last one
        self.boot()

    def boot(self) -> None:
        clock = self.world.clock
        self.handle = Handle(self.world.cloud, self.locks)
        records = JobRecords(JobStore(self.out))
        state = None
        if self.hub:
            state = StateRepo(
                records,
                self.handle,
                Account(ask=self.handle.user, key="k"),
                make_lease=lambda hub, repo: Lease(hub, repo, expires_s=LEASE_S, clock=clock.now, process=""),
                clock=clock,
            )
        self.workspace = Workspace(records=records, hub=self.handle if self.hub else None, state=state)
        self.worker = Worker(records=records, make_runner=self._runner, wanted=self.workspace.ours)
        self.stopping, self.has_runner, self.knows_all = threading.Event(), False, False
        self.real_take_up = self.worker._take_up
        self.worker._take_up = self.take_up  # type: ignore[method-assign]
        self.workspace.start()
        self.worker.start()

    def _runner(self) -> Runner:
        while not self.holds():
            try:
                self.workspace.acquire(self.stopping.is_set)
            except TokenError:  # the page says so, and asks again after a while
                sleep(60.0, self.stopping.is_set, self.world.clock)
        self.has_runner = True
        return Runner(
            settings=Settings.from_env({"GGUFY_OUT": str(self.out), "GGUFY_CACHE": str(self.out), "HOME": "/none"}),
            llama=Llama(bin=Path("/none"), source=None, version="0", commit="0" * 9),
            workspace=self.workspace,
            makers=Makers(
                run=lambda step, ctx: self.world.make(self, ctx, step),
                check=lambda step, ctx: None,
                forecast=lambda ctx, step: Forecast(base=head(), quants={}, same_as={}),
            ),
            clock=self.world.clock,
        )

    def take_up(self) -> list[Job]:
        """Once there is a runner, the records of the state repo are here, and all that is unfinished is queued now."""
        taken = self.real_take_up()
        self.knows_all = self.has_runner
        return taken

    def locks(self) -> Iterator[str]:
        """The product's locks that the calling thread holds."""
        state = self.workspace.state
        for name, lock in (
            ("the records", self.workspace.records._lock),
            ("the queue", self.worker._changed),
            ("the state repo", state._changed if state else None),
        ):
            if lock is not None and lock._is_owned():  # type: ignore[attr-defined]
                yield name

    def holds(self) -> bool:
        return self.workspace.state is None or self.workspace.state.held

    def request(self, name: str) -> Request:
        return request(name, f"alice/{name}-GGUF" if self.hub else "")

    def jobs(self) -> dict[str, Job]:
        return {job.id: job for job in self.worker.jobs()}

    def shut_down(self, *, killed: bool) -> None:
        if killed:
            self.handle.dead = True
        self.stopping.set()
        self.worker.shutdown(0.0)
        self.lets_end(self.worker._thread)
        self.workspace.close(0.0)
        if self.workspace.state:
            self.lets_end(self.workspace.state._thread)

    def lets_end(self, thread: threading.Thread) -> None:
        """Time passes meanwhile: a hub that does not answer is waited for so long as the client waits."""
        until = time.monotonic() + 30.0
        while thread.is_alive():
            if time.monotonic() > until:
                self.world.wrong(f"{thread.name} does not end")
                return
            self.world.clock.advance(10.0)
            thread.join(0.001)

    def restart(self, *, killed: bool, wiped: bool) -> None:
        self.shut_down(killed=killed)
        if wiped:
            saved = self.world.cloud.files(STATE, "dataset")
            for job_id in list(self.clicks):  # what no other disk has heard of is forgotten with this one
                record = self.workspace.store.path(job_id)
                if not record.is_file() or saved.get(f"jobs/{job_id}.json") != record.read_bytes():
                    del self.clicks[job_id]
            shutil.rmtree(self.out, ignore_errors=True)
        self.boot()

    @property
    def idle(self) -> bool:
        return self.knows_all and not self.worker._live

    def agrees(self) -> list[str]:
        """Jobs whose record and queue do not fit; to be asked when nothing goes on."""
        live = set(self.worker._live)
        mine = {job.id: job for job in self.worker.jobs() if self.workspace.ours(job)}
        return [i for i, job in mine.items() if (job.status in (Status.QUEUED, Status.RUNNING)) != (i in live)]


class Middle(RuleBasedStateMachine):
    """Clicks and faults."""

    machines: list[Machine]

    @initialize(hub=st.booleans(), two=st.booleans())
    def begin(self, hub: bool, two: bool) -> None:
        place = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(dir=place if place.is_dir() else None))
        self.world = World(self.root)
        self.one_left = False  # of two machines
        names = ("one", "two") if hub and two else ("one",)
        self.machines = [Machine(self.world, name, hub=hub) for name in names]

    def machine(self, number: int) -> Machine:
        return self.machines[number % len(self.machines)]

    number = st.integers(0, 1)

    @rule(number=number, name=st.sampled_from(NAMES))
    def submit(self, number: int, name: str) -> None:
        """Start, Retry and Resume."""
        machine = self.machine(number)
        job = machine.worker.submit(Job(request=machine.request(name)))
        machine.clicks[job.id] = "submit"

    @rule(number=number, name=st.sampled_from(NAMES), click=st.sampled_from(["cancel", "pause"]))
    def click(self, number: int, name: str, click: str) -> None:
        machine = self.machine(number)
        job_id = machine.request(name).job_id
        if getattr(machine.worker, click)(job_id):
            machine.clicks[job_id] = click

    @rule(number=number, killed=st.booleans(), wiped=st.booleans())
    def restart(self, number: int, killed: bool, wiped: bool) -> None:
        self.machine(number).restart(killed=killed, wiped=wiped)

    @rule(mood=st.sampled_from(("",) * 12 + MOODS))
    def change_mood(self, mood: str) -> None:
        self.world.cloud.mood = mood

    @rule(calls=st.lists(st.sampled_from(("", *MOODS)), max_size=6))
    def next_calls(self, calls: list[str]) -> None:
        with self.world.cloud.lock:
            self.world.cloud.then = list(calls)

    @rule(seconds=st.sampled_from([1.0, 10.0, 30.0, 100.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        time.sleep(0.001)
        for machine in self.machines:
            if machine.workspace.state:
                machine.workspace.state.wake()

    @rule(rounds=st.integers(1, 30))
    def work_goes_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self.time_passes(20.0)

    @rule(number=number, name=st.sampled_from(NAMES), rounds=st.integers(1, 30), then=st.booleans())
    def work_and_lose_the_disk(self, number: int, name: str, rounds: int, then: bool) -> None:
        """What is done is somewhere else."""
        self.submit(number, name)
        self.work_goes_on(rounds)
        self.restart(number, killed=then, wiped=True)
        self.work_goes_on(rounds)

    @rule(number=number, name=st.sampled_from(NAMES), click=st.sampled_from(["cancel", "pause"]), killed=st.booleans())
    def change_ones_mind(self, number: int, name: str, click: str, killed: bool) -> None:
        """The run that was told to end has not ended yet when the job is queued again, and the program ends then."""
        self.submit(number, name)
        self.time_passes(20.0)
        self.click(number, name, click)
        self.submit(number, name)
        self.restart(number, killed=killed, wiped=False)

    @precondition(lambda self: self.machines[0].hub)
    @rule()
    def another_takes_the_lease(self) -> None:
        """Somebody who is never heard of again."""
        with self.world.cloud.lock:
            if repo := self.world.cloud.repos.get(("dataset", STATE)):
                lease_record = LeaseRecord(
                    boot_id="other", nonce=str(self.world.clock.now()), expires_s=LEASE_S, term=1
                )
                repo.commits.append({**repo.files, LEASE_FILE: lease_record.to_bytes()})

    @precondition(lambda self: self.machines[0].hub)
    @rule(name=st.sampled_from(NAMES), kind=st.sampled_from(["model", "dataset"]))
    def a_repo_is_deleted(self, name: str, kind: str) -> None:
        with self.world.cloud.lock:
            self.world.repos_deleted = True
            self.world.records_deleted |= kind == "dataset"
            self.world.cloud.repos.pop((kind, f"alice/{name}-GGUF" if kind == "model" else STATE), None)

    @rule(
        error=st.sampled_from(
            [ToolError("the tool failed: look."), DiskError("the disk is full: free some."), ValueError("a bug")]
        )
    )
    def the_next_step_fails(self, error: Exception) -> None:
        self.world.failing = [error]

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert not self.world.cloud.violations, self.world.cloud.violations

    # ---- the end

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.cloud.mood, self.world.cloud.then, self.world.failing = "", [], []
            self.settle(lambda: all(machine.idle for machine in self.machines))
            self.look_at_the_end()
        finally:
            for machine in self.machines:
                machine.shut_down(killed=False)
            shutil.rmtree(self.root, ignore_errors=True)
        self.nothing_is_wrong()
        left = [t.name for t in threading.enumerate() if t.name.startswith("ggufy-") and not self.ends(t)]
        assert not left, left

    @staticmethod
    def ends(thread: threading.Thread) -> bool:
        thread.join(10.0)
        return not thread.is_alive()

    def settle(self, done: Callable[[], bool]) -> None:
        """Lets time pass until everything has come to an end; with two machines, the first one leaves when it has
        nothing to do, so that the other gets its turn."""
        until, quiet = time.monotonic() + 60.0, 0
        while (quiet := quiet + 1 if done() else 0) < 3:
            assert time.monotonic() < until, self.state_of_things()
            self.time_passes(20.0)
            if len(self.machines) == 2 and self.machines[0].idle != self.machines[1].idle:
                idle = self.machines[0 if self.machines[0].idle else 1]
                idle.shut_down(killed=False)
                self.machines.remove(idle)
                self.one_left = True

    def state_of_things(self) -> str:
        return "\n".join(
            f"{m.out.name}: {[(j.id, str(j.status), j.error) for j in m.worker.jobs()]} live {list(m.worker._live)} "
            f"trouble {m.connection.state and m.connection.state.trouble!r} "
            f"waits {[live.progress.snapshot().waiting for live in m.worker._live.values()]}"
            for m in self.machines
        )

    def look_at_the_end(self) -> None:
        for machine in self.machines:
            assert not machine.agrees(), f"{machine.agrees()}\n{self.state_of_things()}"
            for job in machine.jobs().values():
                self.look_at(machine, job)

    def is_saved(self, machine: Machine, job: Job) -> None:
        """The state repo has the record that is here."""
        path = machine.workspace.store.path(job.id)
        if machine.hub and path.is_file():
            until = time.monotonic() + 30.0
            while self.world.cloud.files(STATE, "dataset").get(f"jobs/{job.id}.json") != path.read_bytes():
                assert time.monotonic() < until, self.state_of_things()
                self.time_passes(60.0)

    def look_at(self, machine: Machine, job: Job) -> None:
        assert job.status in RESTING, self.state_of_things()
        if not self.one_left and len(self.machines) == 1 and job.id in machine.clicks:
            click = machine.clicks[job.id]
            usual = {"submit": Status.DONE, "cancel": Status.CANCELLED, "pause": Status.PAUSED}[click]
            allowed = {usual, Status.DONE}
            if job.request.name in self.world.failed:
                allowed.add(Status.FAILED)
            if job.error:  # paused by what it met: a token that has expired, or a repo that is gone again and again
                allowed.add(Status.PAUSED)
            if self.world.records_deleted and "already holds" in job.error:  # and the disk lost
                allowed.add(Status.FAILED)
            assert job.status in allowed, f"{click} {job.status}\n{self.state_of_things()}"
        if job.status is not Status.DONE:
            return
        products = [step.product for step in files_made(job.request)]
        if machine.hub:
            there = self.world.cloud.files(job.request.repo_id)
            if not self.world.repos_deleted:
                assert there.keys() >= set(products), (job.id, sorted(there))
        else:
            folder = machine.out / job.request.folder
            assert {path.name for path in folder.glob("*.gguf")} == set(products)
            there = {path.name: path.read_bytes() for path in folder.glob("*.gguf")}
        assert all(there[name] == content(name) for name in products if name in there)
        if machine.holds():
            self.is_saved(machine, job)
            assert {a.name for a in job.artifacts} == set(products), job
            assert len(job.evaluations) == len(job.request.quant_types)


def test_the_middle_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufy.publish.card_facts.gather", lambda job, jobs, **rest: None)  # it reads heads of GGUFs
    monkeypatch.setattr(
        "ggufy.publish.output_repo.pages",
        lambda job, facts, repo, readme=None: {"README.md": f"---\nquantized_by: ggufy\n---\n{job.status}"},
    )
    run_state_machine_as_test(
        Middle,
        settings=settings(
            max_examples=max(1, STEPS // EACH),
            stateful_step_count=EACH,
            deadline=None,
            derandomize=STEPS <= 2000,  # `make test` walks the same way each time, `make soak` new ones
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
            report_multiple_bugs=False,
            print_blob=True,
        ),
    )

"""Claims of quants by several Jobs, and what each makes of them, with a hub in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufy.core.job import Job, Making, Status
from ggufy.core.plan import UPLOADED, Products, Step, pending
from ggufy.hub.commit_rate import CommitBudget
from ggufy.jobs.parts import everything
from ggufy.jobs.sharing import SharedParts, alone, can_be_helped
from ggufy.records.patience import Patience
from ggufy.records.records import JobRecords
from ggufy.records.shares import Claim, Shares
from ggufy.records.store import JobStore
from ggufy.steps import plan
from tests.fakes import Cloud, HandClock, Handle
from tests.jobs import artifact, figures, job

pytestmark = pytest.mark.fast
STATE = "alice/ggufy-state"


@pytest.fixture
def cloud() -> Cloud:
    cloud = Cloud(HandClock())
    Handle(cloud).create_repo(STATE, kind="dataset")
    return cloud


def shared(*quants: str) -> Job:
    one = job("m", Status.RUNNING, repo_id="alice/m-GGUF")
    return replace(one, request=replace(one.request, quant_types=quants, imatrix="none"), begun=True)


class Place:
    """Stands for a run's place: a repo that all share, and records of its own."""

    def __init__(self, records: JobRecords, wanted: Job, repo: set[str]):
        self.records, self.wanted, self.repo = records, wanted, repo
        self.ctx = self.destination = self
        self.request, self.patience = wanted.request, Patience()
        self.looks = 0

    def stopped(self) -> bool:
        return False

    def look_again(self) -> None:
        self.looks += 1

    def steps(self, wanted: Any) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
        products = Products(
            job=self.records.latest(self.wanted.id) or self.wanted,
            here=lambda product: False,
            arrived=lambda name: name in self.repo,
        )
        steps = tuple(step if wanted(step) else replace(step, final=False) for step in plan(self.request))
        return steps, pending(steps, lambda step: step.done(products))

    def make(self, wanted: Any) -> list[str]:
        """What a run would make and upload now."""
        _, due = self.steps(wanted)
        made = [step.file_name for step in due if step.product.startswith(UPLOADED)]
        self.repo.update(made)
        self.records.add_artifacts(self.wanted.id, [replace(artifact(name), making=Making()) for name in made])
        return made


class Runners:
    """Several that share one job; each Job lives as long as its name is counted."""

    def __init__(self, cloud: Cloud, folder: Path, wanted: Job):
        self.cloud, self.folder, self.wanted = cloud, folder, wanted
        self.alive: Counter[str] = Counter()
        self.repo: set[str] = set()

    def one(self, worker: str, *, leads: bool = False) -> tuple[Place, SharedParts, Shares]:
        self.alive[worker] += 1
        records = JobRecords(JobStore(self.folder / f"{worker}{self.alive.total()}"))
        records.take_over(self.wanted, unsent=False)
        shares = Shares(Handle(self.cloud), STATE, self.wanted.id, worker)
        stands_in = None if leads else lambda: False
        parts = SharedParts(shares, records, lambda: self.alive, stands_in=stands_in, poll_s=0.0)
        return Place(records, self.wanted, self.repo), parts, shares


@pytest.fixture
def runners(cloud: Cloud, tmp_path: Path) -> Runners:
    return Runners(cloud, tmp_path, shared("Q8_0", "Q6_K", "Q4_K_M"))


def test_each_makes_what_nobody_else_has_claimed(runners: Runners) -> None:
    leader, leads, shares = runners.one("a", leads=True)
    helper, helps, _ = runners.one("b")
    first, second = leads.turns(leader), helps.turns(helper)  # type: ignore[arg-type]
    assert leader.make(next(first)) == ["m-F16.gguf"]
    assert leader.make(next(first)) == ["m-Q8_0.gguf"]
    assert helper.make(next(second)) == ["m-Q6_K.gguf"]
    assert helper.make(next(second)) == ["m-Q4_K_M.gguf"]
    with ThreadPoolExecutor() as pool:  # each waits for what the other says
        left = pool.submit(next, second, None)
        rest = next(first)
    assert left.result() is None
    assert rest is everything and leader.make(rest) == []
    known = leader.records.latest(runners.wanted.id)
    assert known and {one.name for one in known.artifacts if one.making} == runners.repo
    assert all(claim.made for claim in shares.claims().values()) and leads.all_made and helps.all_made


def test_what_a_dead_one_has_claimed_is_made_by_others(runners: Runners) -> None:
    dead, parts, _ = runners.one("a")
    turns = parts.turns(dead)  # type: ignore[arg-type]
    next(turns)
    runners.alive["a"] = 0
    helper, helps, _ = runners.one("b")
    made = [name for wanted in helps.turns(helper) for name in helper.make(wanted)]  # type: ignore[arg-type]
    assert made == ["m-Q8_0.gguf", "m-Q6_K.gguf", "m-Q4_K_M.gguf"]


def test_a_job_that_is_begun_again_goes_on_with_its_own_claims_but_not_with_those_of_a_twin(runners: Runners) -> None:
    first, parts, shares = runners.one("a")
    next(parts.turns(first))  # type: ignore[arg-type]
    assert shares.claims()["Q8_0"].made is None
    twin, others, _ = runners.one("a")  # two Jobs of one name are at work
    assert twin.make(next(others.turns(twin))) == ["m-Q6_K.gguf"]  # type: ignore[arg-type]
    runners.alive["a"] = 0
    again, fresh, _ = runners.one("a")
    assert again.make(next(fresh.turns(again))) == ["m-Q8_0.gguf"]  # type: ignore[arg-type]


def test_of_two_that_claim_at_once_one_is_refused_and_reads_again(cloud: Cloud) -> None:
    one, two = (Shares(Handle(cloud), STATE, "m-1", name) for name in "ab")
    seen: list[Collection[str]] = []

    def second(claims: Mapping[str, Claim]) -> Mapping[str, Claim]:
        seen.append(claims.keys())
        if len(seen) == 1:
            one.commit(lambda claims: {"Q8_0": one.own})  # between its reading and its commit
        return {} if "Q8_0" in claims else {"Q8_0": two.own}

    assert two.commit(second) == ()
    assert [list(claims) for claims in seen] == [[], ["Q8_0"]]
    assert two.claims()["Q8_0"] == one.own


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"version": 2}', b'{"version": 1, "worker": "a"}', b"\xff"])
def test_what_cannot_be_read_claims_nothing(data: bytes) -> None:
    assert Claim.from_bytes(data) == Claim()


def test_a_claim_keeps_what_was_made() -> None:
    quant = artifact("m-Q8_0.gguf")
    found = shared("Q8_0").with_artifact(artifact("m-F16.gguf")).with_artifact(quant)
    claim = Claim(worker="a", run="1", made=alone(found.with_evaluation(figures("m-Q8_0.gguf")), "m-Q8_0.gguf"))
    assert Claim.from_bytes(claim.to_bytes()) == claim
    assert claim.made and claim.made.artifacts == (quant,) and len(claim.made.evaluations) == 1
    assert json.loads(claim.to_bytes())["made"]["request"]["name"] == "m"


def test_helpers_begin_when_there_is_something_to_make_quants_from() -> None:
    base, imatrix = artifact("m-F16.gguf"), artifact("m-imatrix.gguf")
    found = shared("Q8_0")
    assert not can_be_helped(found) and can_be_helped(found.with_artifact(base))
    measured = replace(found, request=replace(found.request, imatrix="auto")).with_artifact(base)
    assert not can_be_helped(measured) and can_be_helped(measured.with_artifact(imatrix))
    assert can_be_helped(replace(measured, request=replace(measured.request, rounding="compensated")))


def test_each_of_several_counts_its_own_commits_alone() -> None:
    budget = CommitBudget(limit=10, reserve=5, burst=5, part_of_several=True, clock=lambda: 0.0)
    budget.seed([1.0] * 100)
    assert budget.wait_s() == 0

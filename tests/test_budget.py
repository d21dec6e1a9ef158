"""The budget of commits: never more than the limit in any window, leases first, the others spread."""

from __future__ import annotations

import itertools
import random
import threading

import pytest

from ggufy.core.errors import QuotaError
from ggufy.hub.commit_rate import CommitBudget

pytestmark = pytest.mark.fast


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def most_in_an_hour(made: list[float]) -> int:
    return max((sum(start <= other < start + 3600 for other in made) for start in made), default=0)


@pytest.mark.parametrize("seed", range(20))
def test_no_hour_has_more_commits_than_the_limit_whatever_is_asked(clock: Clock, seed: int) -> None:
    chance, budget, made = random.Random(seed), CommitBudget(clock=clock), list[float]()
    pace = chance.choice([1, 10, 60, 300])
    for _ in range(1500):
        clock.now += chance.expovariate(1 / pace)
        urgent = chance.random() < chance.choice([0.05, 0.5])
        try:
            budget.take(urgent=urgent)
            made.append(clock.now)
        except QuotaError as error:
            assert error.retry_after > 0
            if chance.random() < 0.1:
                clock.now += error.retry_after + 0.001
                budget.take(urgent=urgent)  # the time that was named is enough
                made.append(clock.now)
    assert 30 < most_in_an_hour(made) <= 60 if pace < 60 else most_in_an_hour(made) <= 60


def test_a_lease_can_always_be_renewed_every_two_minutes(clock: Clock) -> None:
    budget = CommitBudget(clock=clock)
    for second in range(4 * 3600):
        clock.now += 1
        if second % 120 == 0:
            budget.take(urgent=True)
        if budget.wait_s() <= 0:
            budget.take()


def test_a_burst_is_let_through_and_the_rest_comes_at_even_distances(clock: Clock) -> None:
    budget, times = CommitBudget(clock=clock), list[float]()
    for _ in range(30):
        clock.now += budget.wait_s()
        budget.take()
        times.append(clock.now - 1000)
    assert times[:10] == [0.0] * 10
    assert [after - before for before, after in itertools.pairwise(times[9:])] == [120.0] * 20
    clock.now += 3600
    assert budget.wait_s() == 0


def test_a_short_wait_ends_a_tiny_job_soon(clock: Clock) -> None:
    """29 files that are made within seconds: ten commits at once, and all the others in one."""
    budget = CommitBudget(clock=clock)
    for _ in range(10):
        budget.take()
    assert budget.wait_s() == 120.0
    clock.now += 120.0
    budget.take()


def test_a_pause_holds_for_all_and_ends(clock: Clock) -> None:
    budget = CommitBudget(clock=clock)
    budget.pause(900)
    budget.pause(10)
    assert budget.wait_s() == budget.wait_s(urgent=True) == 900
    with pytest.raises(QuotaError, match="the next one may be made in 900 s") as error:
        budget.take(urgent=True)
    assert error.value.retry_after == 900
    clock.now += 900
    budget.take()


def test_commits_of_others_delay_files_and_never_a_lease(clock: Clock) -> None:
    budget = CommitBudget(clock=clock)
    budget.seed([10.0 * number for number in range(200)])
    assert budget.wait_s() > 0
    for _ in range(60):
        assert budget.wait_s(urgent=True) == 0
        budget.take(urgent=True)
    assert budget.wait_s(urgent=True) == pytest.approx(3600), "only what this process makes counts for that"


def test_commits_of_others_spread_the_files_until_they_are_old(clock: Clock) -> None:
    budget = CommitBudget(clock=clock)
    budget.seed([3000.0 - number for number in range(29)])
    budget.take()  # the last of thirty that are not urgent
    assert budget.wait_s() == pytest.approx(600)
    clock.now += 601 + 28
    assert budget.wait_s() == 0
    for number in range(9):
        budget.take()
        assert bool(budget.wait_s()) == (number == 8), "then nine more at once"


def test_an_age_that_cannot_be_is_taken_for_none(clock: Clock) -> None:
    budget = CommitBudget(clock=clock)
    budget.seed([3600.0, 5000.0, -5.0])  # too old; or made by a clock that is ahead of ours
    assert len(budget._made) == 3 and budget.wait_s() == 0
    assert len(budget._made) == 1


def test_the_own_commits_stay_in_their_order_when_others_are_counted(clock: Clock) -> None:
    budget = CommitBudget(limit=4, reserve=2, burst=9, clock=clock)
    budget.take()
    clock.now += 1800
    budget.seed([2000.0, 900.0])
    assert budget.wait_s() == pytest.approx(1800), "the own one and the later of the others are the last two"
    clock.now += 1801
    assert budget.wait_s() == 0


def test_threads_share_one_budget(clock: Clock) -> None:
    budget, taken = CommitBudget(limit=50, reserve=0, burst=50, clock=clock), list[int]()

    def take() -> None:
        for _ in range(20):
            try:
                budget.take()
                taken.append(1)
            except QuotaError:
                pass

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 50

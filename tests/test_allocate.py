"""The solver against all choices there are, against an exact count over bytes, and on tables like a real model's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ggufy.core.errors import UsageError
from ggufy.quantize.search.allocate import Allocation, Option, Options, allocate, frontier

# Bits a weight and the relative error of random normal weights, by type.
TYPES = {
    "IQ2_XXS": (2.0625, 0.0885), "IQ2_XS": (2.3125, 0.0678), "IQ2_S": (2.5625, 0.0510), "Q2_K": (2.625, 0.0563),
    "IQ3_XXS": (3.0625, 0.0236), "Q3_K": (3.4375, 0.0181), "IQ3_S": (3.4375, 0.0144), "IQ4_XS": (4.25, 0.00507),
    "Q4_K": (4.5, 0.00421), "Q5_K": (5.5, 0.00109), "Q6_K": (6.5625, 0.00026), "Q8_0": (8.5, 0.00003),
}  # fmt: skip


def small(random: np.random.Generator, *, tensors: int, types: int) -> Options:
    return {
        f"t{t}": [
            Option(type=f"q{i}", size=32 * int(size), cost=float(cost))
            for i, (size, cost) in enumerate(
                zip(random.integers(1, 400, types), random.random(types) * 100, strict=True)
            )
        ]
        for t in range(tensors)
    }


def realistic(seed: int, *, tensors: int = 200) -> Options:
    """Sizes of a 1.6B RWKV, sensitivities over three orders of magnitude, errors that differ a little by tensor."""
    random = np.random.default_rng(seed)
    options = {}
    for t in range(tensors):
        weights = int(random.choice([2048 * 2048, 2048 * 7168, 65536 * 2048], p=[0.7, 0.29, 0.01]))
        sensitivity = math.exp(random.normal(0, 1.7)) * 1e-9
        options[f"t{t}"] = [
            Option(
                type=kind,
                size=-(-int(weights * bits / 8) // 32) * 32,
                cost=sensitivity * weights * error * math.exp(random.normal(0, 0.15)),
            )
            for kind, (bits, error) in TYPES.items()
        ]
    return options


def limits(options: Options) -> tuple[int, int]:
    rows = [[option.size for option in row] for row in options.values()]
    return sum(map(min, rows)), sum(map(max, rows))


def budgets(options: Options, count: int) -> list[int]:
    return [int(size) for size in np.linspace(*limits(options), count)]


def checked(options: Options, budget: int) -> Allocation:
    """Solves, and adds up size and cost again."""
    made = allocate(options, budget)
    taken = [next(o for o in row if o.type == made.recipe[name]) for name, row in options.items()]
    assert made.size == sum(option.size for option in taken) <= budget
    assert made.cost == pytest.approx(sum(option.cost for option in taken), rel=1e-12)
    assert made.bound <= made.cost * (1 + 1e-9)
    return made


def best_of_all(options: Options, budget: int) -> float:
    choices = itertools.product(*options.values())
    return min(sum(o.cost for o in choice) for choice in choices if sum(o.size for o in choice) <= budget)


def best_by_bytes(options: Options, budget: int) -> float:
    """Least cost for every number of 32-byte units, tensor by tensor."""
    best = np.zeros(budget // 32 + 1)
    for row in options.values():
        following = np.full_like(best, np.inf)
        for option in row:
            units = option.size // 32
            if units < len(best):
                following[units:] = np.minimum(following[units:], best[: len(best) - units] + option.cost)
        best = following
    return float(best[-1])


def greedy(options: Options, budget: int) -> float:
    """From the smallest choice upwards, the single change with the most gain for a byte first."""
    chosen = {name: min(row, key=lambda o: (o.size, o.cost)) for name, row in options.items()}
    while True:
        room = budget - sum(option.size for option in chosen.values())
        steps = [
            ((chosen[name].cost - option.cost) / max(1, option.size - chosen[name].size), name, option)
            for name, row in options.items()
            for option in row
            if option.cost < chosen[name].cost and option.size - chosen[name].size <= room
        ]
        if not steps:
            return sum(option.cost for option in chosen.values())
        _, name, option = max(steps, key=lambda step: step[:2])
        chosen[name] = option


def test_small_cases_reach_the_optimum() -> None:
    random = np.random.default_rng(1)
    gaps = []
    for _ in range(300):
        options = small(random, tensors=int(random.integers(1, 6)), types=int(random.integers(1, 6)))
        budget = int(random.uniform(*limits(options)))
        made, best = checked(options, budget), best_of_all(options, budget)
        assert made.bound <= best * (1 + 1e-9)
        assert made.cost <= greedy(options, budget) * (1 + 1e-12)
        gaps.append(made.cost / best - 1)
    assert max(gaps) < 1e-9, f"{sum(gap > 1e-9 for gap in gaps)} of {len(gaps)} missed, the worst by {max(gaps):.2%}"


@pytest.mark.parametrize("seed", range(4))
def test_larger_cases_reach_the_optimum(seed: int) -> None:
    options = small(np.random.default_rng(seed), tensors=25, types=8)
    for budget in budgets(options, 9)[:-1]:
        assert checked(options, budget).cost == pytest.approx(best_by_bytes(options, budget), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_real_table_is_filled_and_close_to_the_bound(seed: int) -> None:
    options = realistic(seed)
    for budget in budgets(options, 25)[:-1]:
        made = checked(options, budget)
        assert made.size > budget * 0.995
        assert made.cost <= made.bound * 1.005


def test_never_worse_than_greedy() -> None:
    options = realistic(9, tensors=40)
    for budget in budgets(options, 9)[:-1]:
        assert checked(options, budget).cost <= greedy(options, budget) * (1 + 1e-12)


def test_more_bytes_never_cost_more() -> None:
    for options in (small(np.random.default_rng(5), tensors=7, types=6), realistic(7)):
        costs = [allocate(options, budget).cost for budget in budgets(options, 40)]
        assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(costs))
        assert costs[-1] == pytest.approx(sum(min(o.cost for o in row) for row in options.values()))


def test_a_size_of_the_slider_costs_no_more_than_the_slider_says_and_less_than_all_below() -> None:
    """Also where one tensor, as the embedding of a small model, is most of the file."""
    table = realistic(5, tensors=40)
    sizes = {kind: int(7e8 * bits / 8) // 32 * 32 for kind, (bits, _) in TYPES.items()}
    table["embedding"] = [Option(type=k, size=sizes[k], cost=0.7 * error) for k, (_, error) in TYPES.items()]
    points = frontier(table, most=12)
    assert [p.cost for p in points] == sorted((p.cost for p in points), reverse=True)
    orders = [allocate(table, point.size) for point in points]
    assert all(order.cost <= point.cost * (1 + 1e-12) for order, point in zip(orders, points, strict=True))
    between = [allocate(table, (a.size + b.size) // 2) for a, b in itertools.pairwise(points)]
    costs = [order.cost for pair in itertools.zip_longest(orders, between) for order in pair if order]
    assert costs == sorted(costs, reverse=True)


def test_the_order_of_the_options_does_not_matter() -> None:
    options = realistic(3, tensors=40)
    turned = {name: list(reversed(row)) for name, row in reversed(options.items())}
    budget = budgets(options, 3)[1]
    assert allocate(options, budget) == allocate(turned, budget)


def test_an_option_off_the_hull_is_used_where_it_fits() -> None:
    row = [Option(type="a", size=0, cost=10), Option(type="b", size=64, cost=9), Option(type="c", size=96, cost=0)]
    assert allocate({"t": row}, 95).recipe == {"t": "b"}
    assert allocate({"t": row}, 96).recipe == {"t": "c"}


def test_one_downgrade_pays_for_one_upgrade() -> None:
    options = {
        "large": [Option(type="a", size=0, cost=100), Option(type="b", size=64, cost=40)],
        "small": [Option(type="a", size=0, cost=50), Option(type="b", size=32, cost=0)],
    }
    assert allocate(options, 95).recipe == {"large": "b", "small": "a"}


def test_the_smallest_choice_and_below() -> None:
    options = realistic(2, tensors=20)
    smallest = limits(options)[0]
    assert checked(options, smallest).size == smallest
    with pytest.raises(UsageError, match=rf"at least .* \({smallest} bytes\): ask for more"):
        allocate(options, smallest - 1)


@pytest.mark.parametrize("cost", [math.nan, math.inf, -1.0])
def test_costs_must_be_numbers(cost: float) -> None:
    with pytest.raises(ValueError, match="t as q"):
        allocate({"t": [Option(type="q", size=32, cost=cost)]}, 100)


def test_there_must_be_something_to_choose() -> None:
    with pytest.raises(ValueError, match="t has no options"):
        allocate({"t": []}, 100)
    with pytest.raises(ValueError, match="no tensor"):
        allocate({}, 100)


def test_equal_options_and_free_tensors() -> None:
    same = Option(type="a", size=32, cost=0.0)
    made = allocate({"x": [same, Option(type="b", size=32, cost=0.0)], "y": [same]}, 64)
    assert (made.recipe, made.size, made.cost) == ({"x": "a", "y": "a"}, 64, 0.0)


def test_the_frontier_goes_from_the_smallest_to_the_best() -> None:
    options = realistic(4, tensors=60)
    points = frontier(options, most=10_000)
    assert points[0].size == limits(options)[0]
    assert points[-1].cost == pytest.approx(sum(min(o.cost for o in row) for row in options.values()))
    for earlier, later in itertools.pairwise(points):
        assert earlier.size < later.size and earlier.cost > later.cost
    slopes = [(b.cost - a.cost) / (b.size - a.size) for a, b in itertools.pairwise(points)]
    assert all(later >= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(slopes))
    for point in points[:: len(points) // 20]:  # nothing of that size is better
        assert allocate(options, point.size).cost == pytest.approx(point.cost, rel=1e-9)


def test_the_frontier_is_thinned() -> None:
    options = realistic(4)
    points, every = frontier(options, most=50), frontier(options, most=10_000)
    assert 25 < len(points) <= 50
    assert (points[0], points[-1]) == (every[0], every[-1])
    assert all(point in every for point in points)

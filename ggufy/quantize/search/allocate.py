"""Chooses a type for every tensor: the least cost that fits into a number of bytes.

Every tensor has a few options, each a type with its exact bytes and its cost (how much the output suffers, on any
scale that can be summed). Costs and bytes add up, so this is the multiple-choice knapsack problem:

1. of each tensor's options only those on the lower convex hull of (bytes, cost) can be best for some price of a byte;
2. bisection finds the price at which the best options just fit;
3. greedy fill spends what is left, the most gain for a byte first;
4. swap repair lets one tensor's downgrade pay for another's upgrade, options beside the hull included;
5. what the price proves to be no part of any better choice is ruled out, and the few choices that are left are gone
   through. So the result is the optimum, unless more than `_MOST_STATES` ways to choose would have to be remembered.

The price gives a lower bound of the cost as well, which tells how far from the optimum a result can be. Nothing is
random: the same options and budget give the same choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggufy.core.errors import UsageError
from ggufy.core.words import human_size

_MOST_STATES = 20_000
_MOST_SWAPS = 2_000
_ROUNDING = 1e-12  # relative; costs that differ by less are the same

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One type that a tensor can have."""

    type: str  # ggml type, upper case
    size: int  # bytes in the file, padding included
    cost: float  # finite and not negative


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A type for every tensor."""

    recipe: dict[str, str]  # tensor name -> ggml type
    size: int  # bytes of all these tensors
    cost: float
    bound: float = 0.0  # no choice of this size or smaller costs less


Options = Mapping[str, Sequence[Option]]  # tensor name -> its options


def allocate(options: Options, budget: int) -> Allocation:
    """The cheapest choice of at most `budget` bytes. Raises UsageError when even the smallest choice is larger."""
    table = _Table(options)
    smallest = int(table.sizes.min(axis=1).sum())
    if smallest > budget:
        raise UsageError(
            "{asked} ({bytes} bytes) is too small for these tensors, which take at least {least} ({count} bytes): "
            "ask for more, or allow smaller types.",
            asked=human_size(budget),
            bytes=budget,
            least=human_size(smallest),
            count=smallest,
        )
    price = _price(table, budget)
    reduced = table.costs + price * table.sizes
    choice = np.asarray(np.argmin(reduced, axis=1), dtype=np.int64)
    if table.total(choice)[0] > budget:  # the price was rounded
        choice = _smallest(table)
    choice = _swapped(table, _filled(table, choice, budget), budget)
    bound = float(reduced.min(axis=1).sum() - price * budget)
    choice = _searched(table, choice, budget, price)
    return table.allocation(choice, bound=bound)


def frontier(options: Options, *, most: int = 256) -> list[Allocation]:
    """The choices that are best for some price of a byte, from the smallest to the best one, at most `most` of them.

    Each costs less than the one before. Thinned evenly over the logarithm of the size; both ends stay.
    """
    table = _Table(options)
    steps = sorted(_hull_steps(table))
    choice = _smallest(table)
    sizes = np.cumsum([table.total(choice)[0], *(step.size for step in steps)])
    kept = set(range(len(sizes)))
    if len(sizes) > most:
        even = np.geomspace(sizes[0], sizes[-1], most)
        kept = {0, len(sizes) - 1, *(int(i) for i in np.searchsorted(sizes, even[1:-1], side="right") - 1)}
    points = [table.allocation(choice)] if 0 in kept else []
    for number, step in enumerate(steps, start=1):
        choice[step.tensor] = step.option
        if number in kept:
            points.append(table.allocation(choice))
    return points


@dataclass(frozen=True, order=True)
class _Step:
    """From one corner of a tensor's hull to the next larger one."""

    slope: float  # cost for a byte, negative; first, so that steps sort by it
    tensor: int
    option: int  # the larger one
    size: int  # bytes more


class _Table:
    """Options as arrays [tensors, options], each row by size and without options that another one beats in both; rows
    are filled up with the last option."""

    def __init__(self, options: Options):
        self.names = sorted(options)
        rows = [_worthwhile(name, options[name]) for name in self.names]
        width = max((len(row) for row in rows), default=0)
        self.rows = [row + row[-1:] * (width - len(row)) for row in rows]
        shape = (len(rows), width)
        self.sizes: Integers = np.array([[o.size for o in row] for row in self.rows], dtype=np.int64).reshape(shape)
        self.costs: Floats = np.array([[o.cost for o in row] for row in self.rows], dtype=np.float64).reshape(shape)
        self.each = np.arange(len(rows))
        if not rows:
            raise ValueError("there is no tensor to choose a type for")

    def total(self, choice: Integers) -> tuple[int, float]:
        """Bytes and cost."""
        return int(self.sizes[self.each, choice].sum()), math.fsum(self.costs[self.each, choice])

    def allocation(self, choice: Integers, bound: float = 0.0) -> Allocation:
        size, cost = self.total(choice)
        recipe = {name: row[i].type for name, row, i in zip(self.names, self.rows, choice, strict=True)}
        return Allocation(recipe=recipe, size=size, cost=cost, bound=bound)


def _worthwhile(name: str, options: Sequence[Option]) -> list[Option]:
    """By size, each cheaper than all smaller ones."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.size, o.cost, o.type)):
        if not (math.isfinite(option.cost) and option.cost >= 0 and option.size >= 0):
            raise ValueError(f"{name} as {option.type} has the size {option.size} and the cost {option.cost}")
        if not kept or option.cost < kept[-1].cost:
            kept.append(option)
    if not kept:
        raise ValueError(f"{name} has no options")
    return kept


def _hull_steps(table: _Table) -> list[_Step]:
    """The steps of all hulls; along one hull the slopes rise, so sorting keeps each tensor's order."""
    steps = []
    for tensor, (sizes, costs) in enumerate(zip(table.sizes, table.costs, strict=True)):
        corners: list[int] = []
        for i in range(len(sizes)):
            if i and sizes[i] == sizes[i - 1]:
                break  # from here on the row is filled up
            while len(corners) > 1 and _slope(sizes, costs, corners[-2], corners[-1]) >= _slope(
                sizes, costs, corners[-1], i
            ):
                corners.pop()
            corners.append(i)
        for a, b in zip(corners, corners[1:], strict=False):
            slope = _slope(sizes, costs, a, b)
            steps.append(_Step(slope=slope, tensor=tensor, option=b, size=int(sizes[b] - sizes[a])))
    return steps


def _slope(sizes: Integers, costs: Floats, a: int, b: int) -> float:
    return float((costs[b] - costs[a]) / (sizes[b] - sizes[a]))


def _smallest(table: _Table) -> Integers:
    return np.zeros(len(table.names), dtype=np.int64)


def _price(table: _Table, budget: int) -> float:
    """The smallest price of a byte (cost for a byte) at which the cheapest options fit, up to rounding."""
    steps = sorted(_hull_steps(table))
    prices = [0.0, *(-step.slope * (1 + _ROUNDING) for step in reversed(steps))]  # only here does the choice change
    low, high = 0, len(prices) - 1
    while low < high:
        middle = (low + high) // 2
        choice = np.argmin(table.costs + prices[middle] * table.sizes, axis=1)
        if table.total(choice)[0] <= budget:
            high = middle
        else:
            low = middle + 1
    return prices[low]


def _filled(table: _Table, choice: Integers, budget: int) -> Integers:
    """Larger options as long as one fits, the most gain for a byte first."""
    choice = choice.copy()
    while True:
        size, cost = _moves(table, choice)
        room = budget - table.total(choice)[0]
        gain = np.where((size > 0) & (size <= room), cost / np.maximum(size, 1), 0.0)
        best = int(np.argmin(gain))
        if gain.flat[best] >= 0:
            return choice
        choice[best // size.shape[1]] = best % size.shape[1]


def _moves(table: _Table, choice: Integers) -> tuple[Integers, Floats]:
    """How many bytes and how much cost each single change would add."""
    now = choice[:, None]
    sizes = table.sizes - np.take_along_axis(table.sizes, now, axis=1)
    costs = table.costs - np.take_along_axis(table.costs, now, axis=1)
    return sizes, costs


def _swapped(table: _Table, choice: Integers, budget: int) -> Integers:
    """Pairs of changes of two tensors that fit and lower the cost, the best pair first, until there is none."""
    choice = choice.copy()
    width = table.sizes.shape[1]
    for _ in range(_MOST_SWAPS):
        more_size, more_cost = _moves(table, choice)
        sizes, costs = more_size.ravel(), more_cost.ravel()
        room, total = budget - table.total(choice)[0], table.total(choice)[1]
        ups = np.flatnonzero(costs < 0)
        downs = np.flatnonzero(sizes < 0)
        downs = downs[np.lexsort((downs, costs[downs], sizes[downs]))]
        first, second = _two_best(costs[downs], downs // width)
        # How many of the downgrades save enough for each upgrade; they are sorted by what they save.
        enough = np.searchsorted(sizes[downs], room - sizes[ups], side="right") - 1
        gains, partners = np.zeros(len(ups)), np.full(len(ups), -1)
        for candidates in (first, second):
            if not len(downs):
                break
            partner = np.where(enough >= 0, candidates[enough], -1)
            usable = (partner >= 0) & (downs[partner] // width != ups // width)
            gain = np.where(usable, costs[ups] + costs[downs[partner]], 0.0)
            better = gain < gains
            gains, partners = np.where(better, gain, gains), np.where(better, downs[partner], partners)
        alone = (sizes[ups] <= room) & (costs[ups] <= gains)
        gains, partners = np.where(alone, costs[ups], gains), np.where(alone, -1, partners)
        best = int(np.argmin(gains)) if len(ups) else -1
        if best < 0 or gains[best] >= -_ROUNDING * total:
            break
        for move in (ups[best], partners[best]):
            if move >= 0:
                choice[move // width] = move % width
    return choice


def _two_best(costs: Floats, tensors: Integers) -> tuple[Integers, Integers]:
    """For each beginning of the list, where its least cost is, and where the least cost of another tensor (or -1)."""
    first, second = np.full(len(costs), -1), np.full(len(costs), -1)
    a = b = -1
    for i in range(len(costs)):
        if a < 0 or costs[i] < costs[a]:
            if a >= 0 and tensors[a] != tensors[i]:
                b = a
            a = i
        elif tensors[i] != tensors[a] and (b < 0 or costs[i] < costs[b]):
            b = i
        first[i], second[i] = a, b
    return first, second


def _searched(table: _Table, choice: Integers, budget: int, price: float) -> Integers:
    """Goes through all choices that could be better than this one.

    With r = cost + price × bytes of an option, less the least r of its tensor, any choice costs
    bound + sum of its r + price × unused bytes. So no option whose r is above this choice's distance to the bound can
    be part of a better choice, and a partial choice whose r add up to more can be dropped.
    """
    reduced = table.costs + price * table.sizes
    least = reduced.min(axis=1)
    reduced = reduced - least[:, None]
    cost = table.total(choice)[1]
    gap = cost - (math.fsum(least) - price * budget)
    if gap <= _ROUNDING * cost:
        return choice
    possible = []  # for each tensor its options that are not ruled out
    for t in table.each:
        distinct = np.unique(table.sizes[t], return_index=True)[1]
        possible.append(distinct[reduced[t, distinct] <= gap])
    # Tensors that are settled come first, then the largest differences: what is left to the end is fine adjustment.
    order = sorted(table.each, key=lambda t: (len(possible[t]) > 1, -int(np.ptp(table.sizes[t, possible[t]]))))
    ranges = [(table.sizes[t, possible[t]].min(), table.sizes[t, possible[t]].max()) for t in order]
    least_after, most_after = np.cumsum(ranges[::-1], axis=0)[::-1].T
    sizes, waste = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[tuple[Integers, Integers]] = []  # for each tensor: every state's option, and the state before it
    for t, after in zip(order, zip([*least_after[1:], 0], [*most_after[1:], 0], strict=True), strict=True):
        kept = possible[t]
        grown = (sizes[:, None] + table.sizes[t, kept]).ravel()
        wasted = (waste[:, None] + reduced[t, kept]).ravel()
        unused = np.maximum(budget - grown - after[1], 0)
        alive = np.flatnonzero((grown + after[0] <= budget) & (wasted + price * unused < gap))
        alive = alive[_undominated(grown[alive], wasted[alive], price)]
        sizes, waste = grown[alive], wasted[alive]
        trail.append((kept[alive % len(kept)], alive // len(kept)))
    if not len(sizes):
        return choice
    better = choice.copy()
    state = int(np.argmin(waste + price * (budget - sizes)))
    for t, (taken, parents) in zip(reversed(order), reversed(trail), strict=True):
        better[t] = taken[state]
        state = int(parents[state])
    return better if table.total(better)[1] < cost else choice


def _undominated(sizes: Integers, waste: Floats, price: float) -> Integers:
    """The states that cost less than all that are no larger, by size; of too many, those of least waste."""
    order = np.lexsort((waste, sizes))
    spent = (waste - price * sizes)[order]  # the cost, but for a constant
    before = np.concatenate(([np.inf], np.minimum.accumulate(spent)))[:-1]
    order = order[spent < before]
    if len(order) > _MOST_STATES:
        order = order[np.sort(np.argsort(waste[order], kind="stable")[:_MOST_STATES])]
    return order

"""Finds what every size of a model is worth, by measuring the model, and hands it over for the job's record."""

from __future__ import annotations

from ggufy.core.job import FrontierPoint, Request
from ggufy.core.plan import Products, Step, Workload, made_with
from ggufy.llama import ggml
from ggufy.quantize.search.target import SIZE, Target, metadata
from ggufy.steps.context import Context
from ggufy.steps.local_step import LocalStep
from ggufy.steps.recipe_search import RecipeSearch
from ggufy.steps.target_size import FRONTIER, STAGES_OF_ANALYSIS, Stages, mixer_of, recipes_seconds

MOST_BPW = 9.0  # Q8_0 has 8.5
_USUAL = Target(kind=SIZE, amount=1, text="1.234MB")  # as the page orders them


class AnalyseStep(LocalStep):
    """Comes after the quant types, which people wait for, and before the sizes to order, which use what it finds."""

    kind = "analyse"
    makes_file = False

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if not request.analysed:
            return steps
        ordered = (place for place, step in enumerate(steps) if step.quant_type in request.targets)
        place = next(ordered, len(steps))
        reads = made_with(request, FRONTIER)
        return (*steps[:place], cls(product=FRONTIER, reads=reads), *steps[place:])

    def done(self, products: Products) -> bool:
        return bool(products.job.frontier)

    def seconds(self, load: Workload) -> float:
        return 0.2 + 0.1 * load.weights / 1e6 / load.threads + recipes_seconds(self, load)

    def check(self, ctx: Context) -> None:
        ggml.load(ctx.llama.bin)

    def run(self, ctx: Context) -> None:
        """Leaves no file; what was measured stays in the cache, and a run that was killed goes on there."""
        mode = ctx.request.mode
        report = Stages(STAGES_OF_ANALYSIS[mode], lambda fraction: ctx.report(self, fraction))
        with mixer_of(ctx, self, report) as recipe_search:
            ctx.found(frontier(recipe_search, mode))


def frontier(recipe_search: RecipeSearch, mode: str) -> tuple[FrontierPoint, ...]:
    """The best files for their size, smallest first. Each is expected to be better than the one before. Above
    MOST_BPW there is nothing to choose: all are as good as the base."""
    head, weights = recipe_search.head_size(metadata(_USUAL, bpw=10.0)), recipe_search.head.elements
    return tuple(
        FrontierPoint(size=head + tensors, bpw=tensors * 8 / weights, kld=kld)
        for tensors, kld in recipe_search.frontier(mode)
        if tensors * 8 <= MOST_BPW * weights
    )

"""Sizes to order: from a target to a recipe, for the command line and for jobs; and the Mixer of a job.

A job's measurements are kept where those of `python -m ggufy mix` are, so either goes on with what the other has
found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ggufy.core.errors import BusyError, UsageError
from ggufy.core.job import Request
from ggufy.core.metrics import PROBE_CHUNKS
from ggufy.core.plan import Step, Workload, imatrix_name, quant_name
from ggufy.core.words import human_size
from ggufy.formats.gguf import read_head, tensor_bytes
from ggufy.quantize.search.target import FAST, STANDARD, THOROUGH, Target, metadata, nearest
from ggufy.steps.awq import RECIPES
from ggufy.steps.context import Context
from ggufy.steps.covariance import covariances_of
from ggufy.steps.evaluate import EvaluationConfig
from ggufy.steps.evaluation_text import check_text
from ggufy.steps.recipe_search import PROBES, FoundRecipe, RecipeSearch
from ggufy.system import resources
from ggufy.system.files import sha256
from ggufy.system.locks import lock
from ggufy.system.settings import Settings
from ggufy.texts.calibration import ensure_texts, texts_named

FRONTIER = "frontier"  # stands for the sizes that can be ordered, and what each is worth
LOCK_NAME = ".mix.lock"  # in the folder of a base's measurements; held by the run that adds to them
# What is reported one after the other: the analysis, then each measurement.
STAGES_OF_ANALYSIS = {mode: 2 + probes for mode, probes in PROBES.items()}
STAGES_OF_A_SIZE = {FAST: 1, STANDARD: 4, THOROUGH: 10}


def recipes_measured(request: Request) -> dict[str, int]:
    """How many recipes the steps of a job make and measure at most, by product."""
    most = {quant_name(request, t): STAGES_OF_A_SIZE[request.mode] - 1 for t in request.targets}
    if request.awq:
        most = {name: most.get(name, 0) + RECIPES for name in map(request.file_of, request.quants)}
    return most | ({FRONTIER: STAGES_OF_ANALYSIS[request.mode] - 1} if request.analysed else {})


def recipes_seconds(step: Step, load: Workload) -> float:
    """How long a step makes and measures recipes, roughly. Most of each recipe is copied from another one."""
    tokens = PROBE_CHUNKS * 512
    each = 1.0 + (0.02 * load.weights / 1e6 + tokens * 2 * load.weights / 56e9) / load.threads
    return load.recipes.get(step.product, 0) * each


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A recipe for a target, and what its file says of itself."""

    mix: FoundRecipe
    limit: int  # bytes of the file, at most
    label: str  # the quant type of about that size
    facts: dict[str, str]  # metadata


def sized(recipe_search: RecipeSearch, target: Target, mode: str, *, like: str = "", prune: bool = False) -> Sized:
    """The best recipe for a target; `like` is the stock quant type to compare it with instead of the nearest one.

    Raises UsageError when the target is too small, and what `RecipeSearch.mix` raises.
    """
    head = recipe_search.head_size(metadata(target, bpw=10.0))  # two digits: never too short
    weights = recipe_search.head.elements
    limit, budget = target.file_budget(weights=weights, head=head), target.tensor_budget(weights=weights, head=head)
    if budget < (least := recipe_search.least(mode)):
        mix = _smaller_than_any_mix(recipe_search, target, limit, least + head, mode)
    else:
        against = like or (recipe_search.rival(limit) if mode != FAST else "")
        mix = recipe_search.mix(budget, mode, against=against, prune=prune)
    tensors = recipe_search.head.tensors.items()
    bpw = sum(tensor_bytes(t.shape, mix.recipe.get(name, t.type)) for name, t in tensors) * 8 / weights
    facts = metadata(target, bpw=bpw)
    if (
        mix.stock
        and recipe_search.stock_size(mix.stock) + recipe_search.head_size(facts) - recipe_search.head_size({}) > limit
    ):
        facts = {}  # the very file of llama-quantize
    return Sized(mix=mix, limit=limit, label=like or nearest(8 * budget / weights), facts=facts)


def _smaller_than_any_mix(
    recipe_search: RecipeSearch, target: Target, limit: int, least: int, mode: str
) -> FoundRecipe:
    """The largest stock file that fits: it may have types of one bit, which mixes leave out."""
    fitting = recipe_search.stock_that_fits(limit)
    if not fitting:
        raise UsageError(
            "{target} is too small for this model, whose smallest mix takes {size}: ask for more.",
            target=target.text,
            size=human_size(least),
        )
    best = max(fitting, key=lambda name: fitting[name])
    return FoundRecipe(recipe=recipe_search.stock(best), stock=best, mode=mode, predicted=None, sensitivities={})


def folder_of(settings: Settings, base_sha256: str) -> Path:
    """Where the measurements of a base are kept."""
    return settings.cache / "mixes" / base_sha256[:16]


def calibrations_of(imatrix: Path | None, settings: Settings) -> list[Path]:
    """The texts that an imatrix was made from, if they are known: the probe text must share nothing with them."""
    names = read_head(imatrix).metadata.get("imatrix.datasets", []) if imatrix else []
    named = [str(name) for name in names] if isinstance(names, list) else []
    return [path for name in named for path in texts_named(settings.cache, name)]


class Stages:
    """Reports of many things, one after the other, as one fraction that never falls."""

    def __init__(self, total: int, report: Callable[[float], None]):
        self._total, self._report = total, report
        self._what, self._number, self._most = "", -1, 0.0

    def __call__(self, what: str, fraction: float) -> None:
        if what != self._what:
            self._what, self._number = what, self._number + 1
        self._tell(self._number, fraction)

    def last(self, fraction: float) -> None:
        """How far the last one is."""
        self._tell(self._total - 1, fraction)

    def _tell(self, number: int, fraction: float) -> None:
        self._most = max(self._most, min(1.0, (number + fraction) / self._total))
        self._report(self._most)


def imatrix_of(ctx: Context, step: Step) -> Path | None:
    """That a step reads."""
    name = imatrix_name(ctx.request)
    return ctx.path(name) if name in step.reads else None


@contextlib.contextmanager
def mixer_of(ctx: Context, step: Step, report: Callable[[str, float], None]) -> Iterator[RecipeSearch]:
    """The Mixer of a job's base and imatrix, for one step. Waits while another run adds to the same measurements.

    Raises CalibrationError if the imatrix was made from the probe text; Cancelled.
    """
    base, imatrix = ctx.path(step.reads[0]), imatrix_of(ctx, step)
    digest = ctx.digests.get(base.absolute()) or sha256(base, stopped=ctx.stopped)
    run = ctx.tool_run(step)
    config = EvaluationConfig(
        text=ensure_texts(ctx.settings.cache, stopped=ctx.stopped).probe,
        folder=folder_of(ctx.settings, digest),
        environment=resources.child_environment(threads=ctx.threads, home=ctx.settings.home),
        llama=ctx.llama,
        threads=ctx.threads,
        chunks=PROBE_CHUNKS,
        calibrations=calibrations_of(imatrix, ctx.settings),
        digests={**ctx.digests, base.absolute(): digest},
        log=run.log,
        limit=ctx.limit,
        share=ctx.share,
        report=report,
        stopped=ctx.stopped,
    )
    check_text(config.text, config.calibrations)
    with contextlib.ExitStack() as stack:
        while not stack.enter_context(_alone(config.folder)):
            ctx.check_stopped()
        recipe_search = RecipeSearch(
            base=base, imatrix_path=imatrix, config=config, covariances=covariances_of(ctx, step)
        )
        try:
            yield recipe_search
        finally:
            recipe_search.close()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """True with the lock, False where another run has it still after a second."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(folder / LOCK_NAME, 1.0))
        except BusyError:
            yield False
        else:
            yield True

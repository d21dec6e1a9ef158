"""Activation-aware scales in a job: a quant is made with and without them, both are measured over the job's first
evaluation text, and the one with the lower KL divergence is kept.

    <work>/awq/plain/<quant>     without scales, until it is known which one is kept
    <work>/awq/scaled/<quant>    with them

Nothing is folded into a base: the engine multiplies while it reads, in F32, so no weight is rounded one more time, and
the imatrix is scaled by the same factors. A run that is killed goes on with what the engine and the measuring keep.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ggufy.core.metrics import Evaluation
from ggufy.core.plan import Step
from ggufy.llama.ggml import load
from ggufy.quantize import engine
from ggufy.quantize.awq.scales import find_scales, scaling_of
from ggufy.quantize.factors import scaled_imatrix
from ggufy.quantize.task import QuantizeTask
from ggufy.steps.context import Context
from ggufy.system.control import Control
from ggufy.system.files import finish

FOLDER = "awq"  # in a job's work folder
RECIPES = 2  # that are made and measured of each quant
STAGES = 3 + RECIPES  # what `make_better` reports one after the other
Measure = Callable[[Path, Callable[[float], None]], Evaluation]  # a quant, and who is told how far it is


@dataclass(frozen=True, kw_only=True)
class AwqChoice:
    """Which of the two was kept."""

    kept: bool  # the one with scales
    plain_kld: float | None = None  # nats a token; None where no matrix gained, so that there is no other file
    awq_kld: float | None = None


def make_better(
    ctx: Context, step: Step, order: QuantizeTask, measure: Measure, report: Callable[[str, float], None]
) -> AwqChoice:
    """Leaves the target of `order`, which has an imatrix, with scales or without.

    Raises what the engine, `find_scales` and the measuring raise, and leaves no target then.
    """
    ggml = load(ctx.llama.bin)

    def control(what: str) -> Control:
        told = lambda fraction: report(what, fraction)  # noqa: E731
        return Control(limit=ctx.limit, duty=ctx.share, stopped=ctx.stopped, report=told)

    scaling = scaling_of(find_scales(order, ggml=ggml, control=control("scales")))
    if not scaling:
        engine.quantize(order, control("plain"), ggml=ggml)
        return AwqChoice(kept=False)
    assert order.imatrix is not None
    folder, name = ctx.work / FOLDER, order.target.name
    orders = {
        "plain": replace(order, target=folder / "plain" / name),
        "scaled": replace(
            order,
            target=folder / "scaled" / name,
            scaling=scaling,
            imatrix=scaled_imatrix(order.imatrix, scaling),
            siblings=(),
        ),
    }
    klds = {}
    for what, one in orders.items():
        if not one.target.exists():
            engine.quantize(one, control(what), ggml=ggml)
        told = lambda fraction, what=what: report(f"measure {what}", fraction)  # noqa: E731
        klds[what] = measure(one.target, told).quality.kld
    kept = "scaled" if klds["scaled"] < klds["plain"] else "plain"
    order.target.parent.mkdir(parents=True, exist_ok=True)
    finish(orders[kept].target, order.target)
    shutil.rmtree(folder)
    return AwqChoice(kept=kept == "scaled", plain_kld=klds["plain"], awq_kld=klds["scaled"])

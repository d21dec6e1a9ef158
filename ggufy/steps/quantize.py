"""Makes one quant from the base GGUF with the engine, and goes on with what an earlier run left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufy.core.catalog import BY_NAME
from ggufy.core.job import Artifact
from ggufy.core.plan import QUANTIZE, Step, plan
from ggufy.formats.gguf import read_head
from ggufy.llama import ggml
from ggufy.quantize import engine
from ggufy.quantize.imatrix import read_imatrix, with_embedding
from ggufy.quantize.recipe import stock_recipe
from ggufy.quantize.search.mixes import RWKV, has_recipes, mixed, rescaling
from ggufy.quantize.search.target import of_label
from ggufy.quantize.task import Control, QuantizeTask
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.making import of_recipe, with_quant
from ggufy.steps.partial_backup import PartialBackup
from ggufy.steps.target_size import STAGES_OF_A_SIZE, Stages, mixer_of, sized
from ggufy.system.files import PART_SUFFIX

Report = Callable[[float], None]


def run(ctx: Context, step: Step) -> Artifact:
    """Leaves `<Model>-<quant type>.gguf`, by the recipe that the job asks for, and no local path in its metadata; of a
    size to order, `<Model>-<size>-<label>.gguf`."""
    target = ctx.path(step.product)

    def told(fraction: float) -> None:
        ctx.report(step, fraction)

    report: Report = told
    if step.quant_type in ctx.request.targets:
        stages = Stages(STAGES_OF_A_SIZE[ctx.request.mode] + 1, told)
        order, report = _to_order(ctx, step, stages), stages.last
    else:
        order = _of_type(ctx, step)
    backup = None
    if ctx.safe is not None:
        part = target.with_name(target.name + PART_SUFFIX)
        backup = PartialBackup(ctx.safe, part, ctx.work / "quantize", lambda: ctx.limit() * ctx.share())
        backup.restore()

    def reported(fraction: float) -> None:
        report(fraction)
        if backup:
            backup.looked()

    control = Control(limit=ctx.limit, duty=ctx.share, stopped=ctx.stopped, report=reported)
    engine.quantize(order, control, ggml=ggml.load(ctx.llama.bin))
    made = of_recipe(order.recipe, read_head(order.base), ctx.request, step.quant_type, llama=ctx.llama.commit)
    return with_quant(artifact_of(target), target, replace(made, rescaled=bool(order.scales)))


def _to_order(ctx: Context, step: Step, stages: Stages) -> QuantizeTask:
    """By the best recipe for its size."""
    target, label = of_label(step.quant_type)
    with mixer_of(ctx, step, stages) as recipe_search:
        found = sized(recipe_search, target, ctx.request.mode)
        return recipe_search.order(found.mix, ctx.path(step.product), found.facts, label)


def _of_type(ctx: Context, step: Step) -> QuantizeTask:
    """By the recipe of a quant type."""
    base = ctx.path(step.reads[0])
    imatrix = ctx.path(step.reads[1]) if len(step.reads) > 1 else None
    head = read_head(base)
    ours = ctx.request.mix == RWKV and has_recipes(head)
    stock = stock_recipe(
        ctx.llama.tool("llama-quantize"),
        ctx.tool_run(step),
        base,
        step.quant_type,
        imatrix=str(imatrix.absolute()) if imatrix else "",
    )
    measured = read_imatrix(imatrix) if imatrix else None
    quants = [ctx.path(s.product) for s in plan(ctx.request) if s.kind == QUANTIZE and s.quant_type in BY_NAME]
    return QuantizeTask(
        base=base,
        target=ctx.path(step.product),
        recipe=mixed(head, step.quant_type, stock=stock, mix=ctx.request.mix),
        ftype=BY_NAME[step.quant_type].ftype,
        imatrix=measured and with_embedding(measured, head) if ours else measured,
        scales=rescaling(head) if ours else {},
        siblings=[path for path in quants if path.exists()],
        identity=ctx.digests.get(base.absolute(), ""),
    )

"""Makes one quant from the base GGUF with the engine, and goes on with what an earlier run left of it."""

from __future__ import annotations

from ggufy.catalog import BY_NAME
from ggufy.files import PART_SUFFIX
from ggufy.job import Artifact
from ggufy.llama import ggml
from ggufy.plan import QUANTIZE, Step, plan
from ggufy.quantize import engine
from ggufy.quantize.imatrix import read_imatrix, with_embedding
from ggufy.quantize.mixes import RWKV, is_rwkv, mixed, rescaling
from ggufy.quantize.recipe import stock_recipe
from ggufy.sources.gguf import read_head
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.salvage import Salvage


def run(ctx: Context, step: Step) -> Artifact:
    """Leaves `<Model>-<quant type>.gguf`, by the recipe that the job asks for, and no local path in its metadata."""
    base, target = ctx.path(step.reads[0]), ctx.path(step.product)
    imatrix = ctx.path(step.reads[1]) if len(step.reads) > 1 else None
    head = read_head(base)
    ours = ctx.request.mix == RWKV and is_rwkv(head)
    stock = stock_recipe(
        ctx.llama.tool("llama-quantize"),
        ctx.tool_run(step),
        base,
        step.quant_type,
        imatrix=str(imatrix.absolute()) if imatrix else "",
    )
    measured = read_imatrix(imatrix) if imatrix else None
    order = engine.Order(
        base=base,
        target=target,
        recipe=mixed(head, step.quant_type, stock=stock, mix=ctx.request.mix),
        ftype=BY_NAME[step.quant_type].ftype,
        imatrix=measured and with_embedding(measured, head) if ours else measured,
        scales=rescaling(head) if ours else {},
        siblings=[
            ctx.path(s.product) for s in plan(ctx.request) if s.kind == QUANTIZE and ctx.path(s.product).exists()
        ],
        identity=ctx.digests.get(base.absolute(), ""),
    )
    salvage = None
    if ctx.safe is not None:
        part = target.with_name(target.name + PART_SUFFIX)
        salvage = Salvage(ctx.safe, part, ctx.work / "quantize", lambda: ctx.limit() * ctx.share())
        salvage.restore()

    def report(fraction: float) -> None:
        ctx.report(step, fraction)
        if salvage:
            salvage.looked()

    control = engine.Control(limit=ctx.limit, duty=ctx.share, stopped=ctx.stopped, report=report)
    engine.quantize(order, control, ggml=ggml.load(ctx.llama.bin))
    return artifact_of(target)

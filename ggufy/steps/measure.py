"""Measures one quant of a job against its base, and hands the figures over for the job's record."""

from __future__ import annotations

from pathlib import Path

from ggufy.core.errors import CalibrationError
from ggufy.core.plan import Step
from ggufy.steps.context import Context
from ggufy.steps.evaluate import FOLDER, EvaluationConfig, evaluate
from ggufy.system import resources as throttle
from ggufy.texts import calibration


def run(ctx: Context, step: Step) -> None:
    """Leaves no file: the base's predictions stay in the work folder for the next quant, and go with it."""
    base, quant = (ctx.path(product) for product in step.reads)
    threads = ctx.threads
    run = ctx.tool_run(step)
    config = EvaluationConfig(
        text=_pinned_text(ctx),
        folder=ctx.work / FOLDER,
        environment=throttle.child_environment(threads=threads, home=ctx.settings.home),
        llama=ctx.llama,
        threads=threads,
        chunks=ctx.request.evaluation_chunks,
        keep_logits=True,
        all_chunks=True,
        digests=ctx.digests,
        log=run.log,
        limit=run.limit,
        share=ctx.share,
        report=lambda what, fraction: ctx.report(step, fraction),
        stopped=ctx.stopped,
    )
    ctx.measured(evaluate(base, [quant], config)[0])


def _pinned_text(ctx: Context) -> Path:
    request, settings = ctx.request, ctx.settings
    text = calibration.find_again(
        request.evaluation_text,
        request.evaluation_sha256,
        settings.cache,
        token=settings.hf_token,
        use="evaluation",
        stopped=ctx.stopped,
    )
    if text is None:
        raise CalibrationError(
            "the evaluation text that this job was made with is gone from the cache: {ANEW}, which fetches it."
        )
    return text

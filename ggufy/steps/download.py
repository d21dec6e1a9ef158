"""Fetches the source from the Hub into the cache, where a cut download goes on, and checks its digest."""

from __future__ import annotations

from ggufy.plan import Step
from ggufy.sources import hub
from ggufy.steps.context import Context


def run(ctx: Context, step: Step) -> None:
    """Leaves the source file at `ctx.source`; it is no product of the job."""
    source = ctx.request.source
    ctx.source.parent.mkdir(parents=True, exist_ok=True)
    hub.download(
        source,
        ctx.source,
        token=ctx.settings.hf_token,
        progress=lambda done: ctx.report(step, done / max(1, source.size)),
        stopped=ctx.stopped,
    )

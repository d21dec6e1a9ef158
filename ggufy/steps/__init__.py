"""The steps: each turns products into one more product, and may run twice without harm.

One file for each kind, and one line of `STEPS`. A step says itself where it stands in a plan, what it reads, whether
it is done, how long it takes and how much it leaves; runner, progress, forecast, card and page ask it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ggufy.core.job import Artifact, Request
from ggufy.core.plan import Step, with_uploads
from ggufy.steps.analyse import AnalyseStep
from ggufy.steps.context import Context
from ggufy.steps.convert import ConvertStep
from ggufy.steps.covariance import CovarianceStep
from ggufy.steps.download import DownloadStep
from ggufy.steps.forecast import forecast_job
from ggufy.steps.imatrix import ImatrixStep
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.local_step import LocalStep
from ggufy.steps.lora import LoraStep
from ggufy.steps.measure import EvaluateStep
from ggufy.steps.mmproj import MmprojStep, MtpStep
from ggufy.steps.quantize import QuantizeStep
from ggufy.steps.tokenizer import TokenizerStep

# Each kind adds its steps to those of the kinds before it.
STEPS: dict[str, type[LocalStep]] = {
    step.kind: step
    for step in (
        DownloadStep,
        MmprojStep,
        MtpStep,
        LoraStep,
        ConvertStep,
        TokenizerStep,
        CovarianceStep,
        ImatrixStep,
        QuantizeStep,
        AnalyseStep,
        EvaluateStep,
    )
}


def plan(request: Request, *, streamed: bool | None = None) -> tuple[Step, ...]:
    """All steps, in the order of making. `streamed` says if the source is; None: if it can be."""
    if streamed is None:
        streamed = request.source.can_stream
    steps: tuple[Step, ...] = ()
    for kind in STEPS.values():
        if not (streamed and kind is DownloadStep):  # converting fetches it piece by piece
            steps = kind.added(request, steps)
    return tuple(with_uploads(steps)) if request.repo_id else steps


def files_made(request: Request) -> tuple[LocalStep, ...]:
    """The steps that make the files of the result: base GGUF, imatrix, quants."""
    return tuple(step for step in plan(request) if isinstance(step, LocalStep) and step.makes_file)


@dataclass(frozen=True, kw_only=True)
class Makers:
    """How steps do their work, and what they will leave; tests of everything around it bring their own."""

    run: Callable[[LocalStep, Context], Artifact | None] = lambda step, ctx: step.run(ctx)
    check: Callable[[LocalStep, Context], None] = lambda step, ctx: step.check(ctx)
    forecast: Callable[[Context, Step], JobForecast] = forecast_job

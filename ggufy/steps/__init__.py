"""The steps: each turns products into one more product, and may run twice without harm.

    run(ctx, step) -> Artifact | None

writes the product aside, verifies it and renames it. A step knows nothing of jobs in a queue, pages or retries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ggufy.core.job import Artifact
from ggufy.core.plan import ANALYSE, CONVERT, DOWNLOAD, EVALUATE, IMATRIX, QUANTIZE, Step
from ggufy.llama import ggml
from ggufy.steps import analyse, convert, download, imatrix, measure, quantize
from ggufy.steps.context import Context
from ggufy.steps.forecast import JobForecast, forecast_job


@dataclass(frozen=True, kw_only=True)
class Makers:
    """How things are made and what they will be; tests of everything around it bring their own."""

    run: Mapping[str, Callable[[Context, Step], Artifact | None]]  # by the step's kind
    forecast: Callable[[Context, Step], JobForecast]
    load_kernels: Callable[[Path], object]  # from a folder; raises ToolError if they cannot be used


MAKERS = Makers(
    run={
        DOWNLOAD: download.run,
        CONVERT: convert.run,
        IMATRIX: imatrix.run,
        QUANTIZE: quantize.run,
        EVALUATE: measure.run,
        ANALYSE: analyse.run,
    },
    forecast=forecast_job,
    load_kernels=ggml.load,
)

"""The steps: each turns products into one more product, and may run twice without harm.

    run(ctx, step) -> Artifact | None

writes the product aside, verifies it and renames it. A step knows nothing of jobs in a queue, pages or retries.
"""

from __future__ import annotations

from collections.abc import Callable

from ggufy.job import Artifact
from ggufy.plan import ANALYSE, CONVERT, DOWNLOAD, EVALUATE, IMATRIX, QUANTIZE, Step
from ggufy.steps import analyse, convert, download, imatrix, measure, quantize
from ggufy.steps.context import Context

RUN: dict[str, Callable[[Context, Step], Artifact | None]] = {
    DOWNLOAD: download.run,
    CONVERT: convert.run,
    IMATRIX: imatrix.run,
    QUANTIZE: quantize.run,
    EVALUATE: measure.run,
    ANALYSE: analyse.run,
}

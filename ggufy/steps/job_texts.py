"""The evaluation texts of a job: where they are, and where what is measured over them is kept."""

from __future__ import annotations

from pathlib import Path

from ggufy.core.errors import CalibrationError
from ggufy.core.job import EvaluationText
from ggufy.steps.context import Context
from ggufy.steps.evaluate import FOLDER
from ggufy.texts import calibration


def figures_folder(ctx: Context, text: EvaluationText) -> Path:
    """Where a text's figures and the base's predictions are: one of its own for each further text."""
    folder = ctx.work / FOLDER
    return folder if text.sha256 == ctx.request.evaluation_sha256 else folder / text.sha256[:16]


def pinned_text(ctx: Context, text: EvaluationText) -> Path:
    """The very text. Raises CalibrationError if it is gone."""
    settings = ctx.settings
    found = calibration.find_again(
        text.choice, text.sha256, settings.cache, token=settings.hf_token, use="evaluation", stopped=ctx.stopped
    )
    if found is None:
        raise CalibrationError(
            "the evaluation text that this job was made with is gone from the cache: {ANEW}, which fetches it."
        )
    return found

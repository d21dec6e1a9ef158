"""The texts of a job: where they are, and where what is measured over them is kept."""

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
    if found := _found_again(ctx, text.choice, text.sha256, "evaluation"):
        return found
    raise CalibrationError(
        "the evaluation text that this job was made with is gone from the cache: {ANEW}, which fetches it."
    )


def calibration_text(ctx: Context) -> Path:
    """The calibration text that the job was made with. Raises CalibrationError if it is gone."""
    if found := _found_again(ctx, ctx.request.calibration, ctx.request.calibration_sha256, "calibration"):
        return found
    raise CalibrationError(
        "the calibration text that this job was made with is gone from the cache: {ANEW}, which fetches it."
    )


def _found_again(ctx: Context, choice: str, digest: str, use: str) -> Path | None:
    settings = ctx.settings
    return calibration.find_again(
        choice, digest, settings.cache, token=settings.hf_token, use=use, stopped=ctx.stopped
    )

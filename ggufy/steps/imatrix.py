"""Makes the imatrix from the pinned calibration text, or takes over the user's, and checks it against the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from ggufy.errors import CalibrationError, ToolError
from ggufy.files import partial, sha256
from ggufy.job import Artifact, Request
from ggufy.llama import tools
from ggufy.plan import Step
from ggufy.quantize.recipe import quantizable
from ggufy.sources import calibration
from ggufy.sources.gguf import GgufHead, read_head, read_tensor
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.forecast import dry_run


def run(ctx: Context, step: Step) -> Artifact:
    """Leaves `<Model>-imatrix.gguf`: finite, with data for every tensor that will need it."""
    target = ctx.path(step.product)
    base = ctx.path(step.reads[0])
    with partial(target) as part:
        if ctx.request.imatrix == "file":
            _take_over(ctx.request, part)
        else:
            _measure(ctx, step, base, part)
        needed = quantizable(dry_run(ctx.llama, ctx.tool_run(step), base, "Q4_K_M"))
        check_imatrix(part, read_head(base), needed, shown_as=ctx.request.imatrix_path or target.name)
    return artifact_of(target)


def _measure(ctx: Context, step: Step, base: Path, part: Path) -> None:
    text = calibration.pinned(ctx.settings.cache, ctx.request.calibration_sha256)
    if text is None:
        raise CalibrationError(
            "the calibration text that this job was made with is gone from the cache: "
            "run the same quantize command again, which fetches it."
        )
    # The text's name goes into the imatrix as it stands on the command line: a bare name, no local path.
    command = tools.imatrix_command(
        ctx.llama.tool("llama-imatrix"),
        model=base.absolute(),
        text=text.name,
        out=part.absolute(),
        threads=ctx.threads,
        chunks=ctx.request.chunks,
    )
    progress = tools.ImatrixProgress(lambda fraction: ctx.report(step, fraction))
    try:
        tools.run_tool(command, ctx.tool_run(step, cwd=text.parent), progress)
    except ToolError as error:
        if too_short := tools.parse_too_short(error.output):
            raise CalibrationError(
                f"the calibration text {text.name} has {too_short[1]} tokens, at least {too_short[0]} are needed: "
                "give a longer one with --calibration (10 to 20 thousand tokens are good)."
            ) from error
        raise


def _take_over(request: Request, part: Path) -> None:
    source = Path(request.imatrix_path)
    if not source.is_file() or sha256(source) != request.imatrix_sha256:
        raise CalibrationError(
            f"{source} changed since the job was made: put the file back, or start anew with --name."
        )
    shutil.copyfile(source, part)


def check_imatrix(path: Path, base: GgufHead, needed: list[str], *, shown_as: str) -> None:
    """Raises CalibrationError unless every tensor in `needed` has finite data of its own width in the imatrix.

    An imatrix holds, per tensor W, `W.in_sum2` F32 [columns, matrices] and `W.counts` F32 [1, matrices].
    """
    head = read_head(path)
    if head.metadata.get("general.type") != "imatrix":
        raise CalibrationError(f"{shown_as} is a GGUF file but no imatrix: give the output of llama-imatrix.")
    for name in needed:
        sums, counts = head.tensors.get(f"{name}.in_sum2"), head.tensors.get(f"{name}.counts")
        if sums is None or counts is None:
            raise CalibrationError(f"{shown_as} has no data for {name}: it was made from another model.")
        if sums.shape[0] != base.tensors[name].shape[0]:
            raise CalibrationError(
                f"{shown_as} has {sums.shape[0]} columns for {name}, the model has {base.tensors[name].shape[0]}: "
                "it was made from another model."
            )
        if not (read_tensor(path, head, counts.name) > 0).all():
            raise CalibrationError(f"{shown_as} saw no token for {name}: use a longer calibration text.")
        if not np.isfinite(read_tensor(path, head, sums.name)).all():
            raise CalibrationError(f"{shown_as} holds a value for {name} that is not finite: make it again.")

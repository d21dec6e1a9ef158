"""Makes the imatrix from the pinned calibration text, or takes over the user's, and checks it against the model."""

from __future__ import annotations

import logging
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ggufy.core.errors import CalibrationError, Cancelled, HubError, ToolError
from ggufy.core.job import Artifact, Request
from ggufy.core.plan import COVARIANCES, Step, Workload, base_name, imatrix_name
from ggufy.formats.gguf import GgufHead, copy_with_metadata, read_head, read_tensor
from ggufy.llama import tools
from ggufy.quantize.recipe import quantizable, stock_recipe
from ggufy.steps.context import BackupStore, Context, artifact_of
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.job_texts import calibration_text
from ggufy.steps.local_step import LocalStep
from ggufy.system.files import partial, sha256

SECONDS_A_SEGMENT = 120.0  # what a kill costs at most; starting the tool anew costs a few seconds
_FIRST_CHUNKS = 4  # of the first segment, which tells the pace
_LEAST_CHUNKS = 3
_BETWEEN_SAVES_S = 300.0  # a segment goes to the Hub at most so often: commits are few
FROM_COVARIANCES = "covariances-imatrix.gguf"  # in a job's work folder: from the pass that collected covariances
_SEGMENT = r"[0-9]+\.gguf"
logger = logging.getLogger(__name__)


class ImatrixStep(LocalStep):
    """For jobs that have one."""

    kind = "imatrix"
    product_name = "imatrix"
    advice = "For making other quants."

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if request.imatrix == "none":
            return steps
        covariances = tuple(step.product for step in steps if step.product == COVARIANCES)
        return (*steps, cls(product=imatrix_name(request), reads=(base_name(request), *covariances)))

    def seconds(self, load: Workload) -> float:
        return 1.0 if COVARIANCES in self.reads else imatrix_seconds(load)

    def size(self, forecast: JobForecast) -> int:
        return forecast.imatrix_bytes

    def run(self, ctx: Context) -> Artifact:
        """Leaves `<Model>-imatrix.gguf`: finite, with data for every tensor that will need it."""
        target = ctx.path(self.product)
        base = ctx.path(self.reads[0])
        with partial(target) as part:
            if ctx.request.imatrix == "file":
                _take_over(ctx.request, part)
            elif (ctx.work / FROM_COVARIANCES).exists():
                shutil.copyfile(ctx.work / FROM_COVARIANCES, part)
            else:
                _measure(ctx, self, base, part)
            needed = quantizable(stock_recipe(ctx.llama.tool("llama-quantize"), ctx.tool_run(self), base, "Q4_K_M"))
            check_imatrix(part, read_head(base), needed, shown_as=ctx.request.imatrix_path or target.name)
        return artifact_of(target)


def imatrix_seconds(load: Workload) -> float:
    """How long llama-imatrix takes, roughly."""
    return 1 + load.chunks * 512 * 2 * load.weights / (40e9 * load.threads)


def _measure(ctx: Context, step: Step, base: Path, part: Path) -> None:
    """In segments, each a process of its own whose sums are kept: a run that is killed goes on at the next segment.

    (The tool's own snapshots while it runs are torn.) The sums are added chunk by chunk, so how the text is cut
    changes no bit of them; only the list of texts would tell, and is written anew.
    """
    text = calibration_text(ctx)
    segments = ctx.work / "imatrix"
    _restore(ctx.safe, segments)
    done, latest = finished_segment(segments)
    total = _count_chunks(ctx, step, base, text)
    pace, saved_at = SECONDS_A_SEGMENT / _FIRST_CHUNKS, time.monotonic()
    while done < total:
        size = segment_size(total - done, pace)
        began = time.monotonic()
        target = segments / f"{done + size:06d}.gguf"
        with partial(target) as segment:
            _run_segment(ctx, step, base, text, segment, first=done, size=size, total=total, before=latest)
        if latest is not None:
            latest.unlink()
        saved_at = _save(ctx.safe, target, saved_at)
        done, latest, pace = done + size, target, (time.monotonic() - began) / size
    assert latest is not None
    facts: dict[str, str | int | list[str]] = {"general.type": "imatrix", "imatrix.datasets": [text.name]}
    copy_with_metadata(latest, part, facts | {"imatrix.chunk_count": total, "imatrix.chunk_size": tools.CONTEXT})


def _restore(safe: BackupStore | None, folder: Path) -> None:
    """Brings the newest saved segment back, unless this machine is further."""
    names = sorted(name for name in safe.names() if re.fullmatch(_SEGMENT, name)) if safe else []
    here = sorted(path.name for path in folder.glob("[0-9]*.gguf"))
    if safe and names and (not here or names[-1] > here[-1]):
        safe.get(names[-1], folder / names[-1])


def _save(safe: BackupStore | None, segment: Path, saved_at: float) -> float:
    """Saves a segment beyond this machine, if the last time is long ago and there is a commit to spare; failing is
    only logged. Returns when something was saved last."""
    if safe is None or time.monotonic() - saved_at < _BETWEEN_SAVES_S or safe.wait_s() > 0:
        return saved_at
    try:
        older = [name for name in safe.names() if re.fullmatch(_SEGMENT, name) and name < segment.name]
        safe.put(segment, drop=older)
    except HubError as error:
        logger.warning("the imatrix segment %s was not saved: %s", segment.name, error)
        return saved_at
    return time.monotonic()


def finished_segment(folder: Path) -> tuple[int, Path | None]:
    """(chunks summed up, file) of the last whole segment; (0, None) if there is none."""
    whole = sorted(folder.glob("[0-9]*.gguf"))
    return (int(whole[-1].stem), whole[-1]) if whole else (0, None)


def segment_size(left: int, pace: float) -> int:
    """Chunks of the next segment, about `SECONDS_A_SEGMENT` at `pace` seconds a chunk.

    The tool does not start with less than two chunks of text, so a short rest joins the segment before it.
    """
    size = max(_LEAST_CHUNKS, round(SECONDS_A_SEGMENT / pace))
    return left if left - size < _LEAST_CHUNKS else size


def _run_segment(
    ctx: Context,
    step: Step,
    base: Path,
    text: Path,
    out: Path,
    *,
    first: int,
    size: int,
    total: int,
    before: Path | None,
) -> None:
    # The text's name goes into the imatrix as it stands on the command line: a bare name, no local path.
    command = tools.imatrix_command(
        ctx.llama.tool("llama-imatrix"),
        model=base.absolute(),
        text=text.name,
        out=out.absolute(),
        threads=ctx.threads,
        chunks=size,
        first=first,
        before=before.absolute() if before else None,
    )
    progress = tools.ImatrixProgress(lambda fraction: ctx.report(step, (first + fraction * size) / total))
    tools.run_tool(command, ctx.tool_run(step, cwd=text.parent), progress)


def _count_chunks(ctx: Context, step: Step, base: Path, text: Path) -> int:
    """How many chunks the whole job is: the tool says so before it computes, and is stopped then."""
    command = tools.imatrix_command(
        ctx.llama.tool("llama-imatrix"),
        model=base.absolute(),
        text=text.name,
        out=(ctx.folder / "never-written").absolute(),
        threads=ctx.threads,
        chunks=ctx.request.chunks,
    )
    said = ""

    def feed(piece: str) -> None:
        nonlocal said
        said += piece

    run = ctx.tool_run(step, cwd=text.parent)
    run = replace(run, stopped=lambda: ctx.stopped() or tools.parse_chunks(said) is not None)
    try:
        tools.run_tool(command, run, feed)
    except Cancelled:
        ctx.check_stopped()
    except ToolError as error:
        if short := tools.short_text(error.output, text.name):
            raise short from error
        raise
    count = tools.parse_chunks(said)
    if count is None:
        raise ToolError(
            "llama-imatrix did not say how many chunks it reads: {reason}", said, reason=tools.failure_reason(said)
        )
    return count


def _take_over(request: Request, part: Path) -> None:
    source = Path(request.imatrix_path)
    if not source.is_file() or sha256(source) != request.imatrix_sha256:
        raise CalibrationError(
            "{path} changed since the job was made: put the file back, or start anew with {NAME}.", path=source
        )
    shutil.copyfile(source, part)


def check_imatrix(path: Path, base: GgufHead, needed: list[str], *, shown_as: str) -> None:
    """Raises CalibrationError unless every tensor in `needed` has finite data of its own width in the imatrix.

    An imatrix holds, per tensor W, `W.in_sum2` F32 [columns, matrices] and `W.counts` F32 [1, matrices].
    """
    head = read_head(path)
    if head.metadata.get("general.type") != "imatrix":
        raise CalibrationError(
            "{name} is a GGUF file but no imatrix: give the output of llama-imatrix.", name=shown_as
        )
    for name in needed:
        sums, counts = head.tensors.get(f"{name}.in_sum2"), head.tensors.get(f"{name}.counts")
        if sums is None or counts is None:
            raise CalibrationError(
                "{name} has no data for {tensor}: it was made from another model.", name=shown_as, tensor=name
            )
        if sums.shape[0] != base.tensors[name].shape[0]:
            raise CalibrationError(
                "{name} has {found} columns for {tensor}, the model has {expected}: it was made from another model.",
                name=shown_as,
                found=sums.shape[0],
                tensor=name,
                expected=base.tensors[name].shape[0],
            )
        if not (read_tensor(path, head, counts.name) > 0).all():
            raise CalibrationError(
                "{name} saw no token for {tensor}: use a longer calibration text.", name=shown_as, tensor=name
            )
        if not np.isfinite(read_tensor(path, head, sums.name)).all():
            raise CalibrationError(
                "{name} holds a value for {tensor} that is not finite: make it again.", name=shown_as, tensor=name
            )

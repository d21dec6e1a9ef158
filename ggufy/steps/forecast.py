"""Exact sizes before anything is made, and whether they fit.

llama-quantize's dry run needs only the head of a base GGUF, so a base that does not exist yet is stood in for by a
sparse file with the right head, which takes no space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ggufy.core.errors import DiskError, SourceError, ToolError
from ggufy.core.job import COMPENSATED
from ggufy.core.plan import Step, base_name, imatrix_name
from ggufy.core.words import human_size
from ggufy.formats.gguf import read_head
from ggufy.llama import tools
from ggufy.quantize.awq.folding import groups
from ggufy.quantize.imatrix import facts_of
from ggufy.quantize.recipe import ImatrixFacts
from ggufy.quantize.search.target import of_label
from ggufy.sources.registry import format_of
from ggufy.steps.context import Context
from ggufy.steps.convert import convert_task
from ggufy.steps.covariance import why_plain
from ggufy.steps.evaluate import SPARE
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.local_step import LocalStep
from ggufy.steps.outputs import OUTPUTS, output_of
from ggufy.system.files import free_bytes
from ggufy.texts import calibration

MARGIN = 64 << 20  # bytes that a published job leaves free


def forecast_job(ctx: Context, step: Step) -> JobForecast:
    """Recipes and exact sizes of every quant of the job. The source must be on this machine, unless it is streamed.

    Raises UsageError where AWQ is asked for and its scales have no place."""
    base = ctx.path(base_name(ctx.request))
    if base.exists():
        return _forecast(ctx, step, base)
    form = format_of(ctx.request.source.kind)
    if not form.converts:
        form.base_head(ctx.source)
        check_loads(ctx, step)
        return _forecast(ctx, step, ctx.source)
    skeleton = skeleton_of(ctx)
    try:
        form.write_skeleton(convert_task(ctx, step), skeleton)
        return _forecast(ctx, step, skeleton)
    finally:
        skeleton.unlink(missing_ok=True)


def skeleton_of(ctx: Context) -> Path:
    """Where the base's head is kept while sizes are read from it: in the cache, since other disks may have no sparse
    files, and by itself for every output folder, of which each has one run at a time."""
    words = f"{ctx.request.inputs()} {ctx.folder.absolute()}"
    return ctx.settings.cache / "skeletons" / hashlib.sha256(words.encode()).hexdigest()[:16]


def check_loads(ctx: Context, step: Step) -> None:
    """Raises SourceError if llama.cpp cannot load the source, an unquantized GGUF. llama-quantize takes files of which
    tensors are missing, and llama.cpp alone knows which ones an architecture has."""
    ctx.work.mkdir(parents=True, exist_ok=True)
    text = ctx.work / "word.txt"
    text.write_text("word", encoding="utf-8")
    command = tools.load_command(ctx.llama.tool("llama-perplexity"), model=ctx.source.absolute(), text=text.absolute())
    try:
        tools.run_tool(command, ctx.tool_run(step, cwd=ctx.work))
    except ToolError as error:
        if tools.parse_too_short(error.output):
            return  # it was loaded
        if reason := tools.parse_load_error(error.output):
            raise SourceError(
                "llama.cpp cannot load {name} ({reason}): fetch or convert it again, or choose another model.",
                name=ctx.source.name,
                reason=reason,
            ) from error
        raise
    finally:
        text.unlink(missing_ok=True)


def peak_bytes(*, base: int, beside: int, quants: Sequence[int], scratch: int, source: int, published: bool) -> int:
    """Bytes of disk that a job takes at its worst moment; arguments are sizes in bytes, 0 for what it does not make.
    `beside` are the products that stay beside the base (the imatrix), `scratch` is what steps work with that leave no
    file (the base's predictions).

    In a folder all of it stays: the sum. A job that is published lets go of its source when the base GGUF is made, and
    of each quant when it is in the repo: the larger of source + base, and base + imatrix + the largest quant + the
    base's predictions; and MARGIN, which it leaves free. `source` is what the job itself brought here: 0 if it is
    streamed, or is a file of the user's.
    """
    if not published:
        return source + base + beside + sum(quants) + scratch
    return max(source + base, base + beside + max(quants, default=0) + scratch) + MARGIN


def check_space(ctx: Context, due: Iterable[Step], forecast: JobForecast, *, published: bool = False) -> None:
    """Raises DiskError when what is due does not fit on the disk at its peak, beside what is here of it, nor without
    what a step can do without."""
    left = [(step, step.left_bytes(ctx, forecast)) for step in due if isinstance(step, LocalStep)]
    bases = [size for step, size in left if step.product == base_name(ctx.request)]
    brought = ctx.source_files if bases and ctx.request.source.remote else ()
    here = sum(path.stat().st_size for path in brought if path.exists())
    needed = peak_bytes(
        base=sum(bases),
        beside=sum(size for step, size in left if step.lies_beside or (step.makes_file and step.stays)) - sum(bases),
        quants=[size for step, size in left if step.makes_file and not step.stays],
        scratch=max((size for step, size in left if not (step.makes_file or step.lies_beside)), default=0),
        source=here,
        published=published,
    )
    needed -= here
    free = free_bytes(ctx.folder)
    if needed > free:
        if any(0 < needed - free <= size and step.spare(ctx) for step, size in left):
            return
        raise DiskError(
            "{needed} are needed in {folder} and {free} are free, {missing} too little: choose fewer {TYPES} or "
            "another {OUT}.",
            needed=human_size(needed),
            folder=ctx.folder.absolute(),
            free=human_size(free),
            missing=human_size(needed - free),
        )


def predictions_bytes(output: str, forecast: JobForecast, chunks: int) -> int:
    """Free bytes that measuring asks for: the base's predictions, which all quants share, and what stays free."""
    needed = OUTPUTS[output].predictions_bytes(forecast.vocab_size, chunks)
    return needed + SPARE if needed else 0


def _forecast(ctx: Context, step: Step, base: Path) -> JobForecast:
    if ctx.request.awq:
        groups(read_head(base), base.name)
    facts = _imatrix_facts(ctx)
    run = ctx.tool_run(step, cwd=base.absolute().parent)
    types, mix = ctx.request.quant_types, ctx.request.mix
    compensated = ctx.request.rounding == COMPENSATED and not why_plain(ctx, read_head(base))
    found = output_of(ctx.request).forecast(
        base, types, llama=ctx.llama, run=run, facts=facts, mix=mix, compensated=compensated
    )
    return replace(found, targets=target_sizes(found, ctx.request.targets))


def target_sizes(forecast: JobForecast, labels: Iterable[str]) -> dict[str, int]:
    """Bytes of files that are made to order, at most, by label."""
    weights, head = forecast.weights, forecast.gguf.data_start if forecast.gguf else 0
    return {label: of_label(label)[0].file_budget(weights=weights, head=head) for label in labels}


def _imatrix_facts(ctx: Context) -> ImatrixFacts | None:
    """What the imatrix will say about itself, or says, if it is the user's."""
    request = ctx.request
    if request.imatrix == "none":
        return None
    if request.imatrix == "file":
        given = Path(request.imatrix_path)
        return replace(facts_of(given, read_head(given)), file=imatrix_name(request))
    text = calibration.pinned(ctx.settings.cache, request.calibration_sha256)
    return ImatrixFacts(file=imatrix_name(request), dataset=text.name if text else "")

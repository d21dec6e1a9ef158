"""Covariances of what a base's matrices read from the calibration text, and its imatrix with them.

In a job they are work: they may be larger than the model, so they go to no repo, are saved nowhere, and are removed
when the job is done; one that goes on elsewhere collects them anew. `<work>/covariances.json` is what the step leaves:
it says whether there are covariances, and if not, why. Then all quants have plain codes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from ggufy.core.errors import ToolError
from ggufy.core.job import COMPENSATED, Request
from ggufy.core.plan import COVARIANCES, Step, Workload, base_name
from ggufy.core.words import human_size
from ggufy.formats.covariance import CovarianceFacts, CovarianceFile, choose_widest, covariance_shapes
from ggufy.formats.gguf import UNQUANTIZED, GgufHead, read_head
from ggufy.llama import build
from ggufy.llama.covariances import CovariancePlan, CovarianceTask, collect_covariances
from ggufy.llama.install import Llama
from ggufy.llama.pin import PINNED
from ggufy.llama.tools import ToolRun
from ggufy.quantize.recipe import stock_recipe
from ggufy.steps.context import Context
from ggufy.steps.imatrix import FROM_COVARIANCES, imatrix_seconds
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.job_texts import calibration_text
from ggufy.steps.local_step import LocalStep
from ggufy.system import resources
from ggufy.system.files import allocated_bytes, free_bytes, part_of, sha256, write_text

logger = logging.getLogger(__name__)
_FILE = "covariances.gguf"  # in a job's work folder
SEGMENTS = "covariances"  # likewise, while they are collected
_LEAST_MEMORY = 512 << 20  # bytes of sums in one pass
_MOST_PASSES = 4  # over the text, of a job; each takes as long as an imatrix
_MOST_OF_THE_DISK = 0.5  # of what is free beside the base
_TIME = 2.2  # times an imatrix's


class CovarianceStep(LocalStep):
    """For jobs with quants whose codes are compensated."""

    kind = "covariances"
    makes_file = False
    lies_beside = True
    paced_by = "imatrix"

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        analysed = request.analysed and request.rounding == COMPENSATED
        if not (analysed or any(map(request.compensates, request.quants))):
            return steps
        return (*steps, cls(product=COVARIANCES, reads=(base_name(request),), final=False))

    def seconds(self, load: Workload) -> float:
        return _TIME * imatrix_seconds(load)

    def left_bytes(self, ctx: Context, forecast: JobForecast) -> int:
        base, path = forecast.gguf, ctx.work / _FILE
        if base is None or why_plain(ctx, base):
            return 0
        return max(0, most_bytes(base) - max(map(allocated_bytes, (path, part_of(path)))))

    def spare(self, ctx: Context) -> bool:
        _leave(ctx, "the disk had no room for them beside the files")
        return True

    def run(self, ctx: Context) -> None:
        """Leaves covariances and, beside them, the imatrix; or the reason why there are none."""
        base = ctx.path(self.reads[0])
        because = why_plain(ctx, read_head(base))
        if not because:
            try:
                make_for_job(ctx, self, base, ctx.work / _FILE, ctx.work / FROM_COVARIANCES)
            except ToolError as error:
                logger.warning("no covariances of %s: %s", base.name, error)
                because = "they could not be collected from this model"
        _leave(ctx, because)


def _leave(ctx: Context, because: str) -> None:
    """The product."""
    if because:
        logger.warning("job %s: codes are plain, without covariances: %s", ctx.request.job_id, because)
    write_text(ctx.path(COVARIANCES), json.dumps({"plain_because": because}) + "\n")


def why_plain(ctx: Context, base: GgufHead) -> str:
    """Why a job that asks for compensated codes gets plain ones, as a card says it; empty if it does not. What was
    found when covariances were collected stays."""
    found = ctx.path(COVARIANCES)
    if found.exists():
        return str(json.loads(found.read_text(encoding="utf-8"))["plain_because"])
    if not build.same_commit(ctx.llama.commit, PINNED.commit):
        return "they need the llama.cpp that ggufy builds"
    needed = most_bytes(base)
    free = free_bytes(ctx.folder) + allocated_bytes(part_of(ctx.work / _FILE))
    free -= 0 if ctx.path(base_name(ctx.request)).exists() else base.file_size
    if needed > _MOST_OF_THE_DISK * free:
        return f"they take {human_size(needed)}, more than half of the disk that was free"
    if needed > _MOST_PASSES * sums_memory(base.file_size):
        return f"they take {human_size(needed)}, too much for the memory of the machine"
    return ""


def covariances_of(ctx: Context, step: Step) -> CovarianceFile | None:
    """What a step of a job rounds by; None where codes are plain."""
    if COVARIANCES not in step.reads or json.loads(ctx.path(COVARIANCES).read_text(encoding="utf-8"))["plain_because"]:
        return None
    return CovarianceFile.open(ctx.work / _FILE)


def make_covariances(
    base: Path,
    text: Path,
    out: Path,
    imatrix: Path,
    *,
    work: Path,
    chunks: int,
    llama: Llama,
    run: ToolRun,
    threads: int,
    report: Callable[[float], None],
    announce: Callable[[CovariancePlan], None] = lambda plan: None,
    digest: Callable[[Path], str] = sha256,
) -> None:
    """Leaves the covariances of every matrix that a quant of the base would quantize, and the imatrix that
    llama-imatrix would make of the same chunks (0: all of the text). Segments in `work` let a run that is stopped go
    on; `run` has absolute paths or is not needed. Raises what `collect_covariances` and `stock_recipe` raise."""
    types = stock_recipe(llama.tool("llama-quantize"), run, base, "Q4_K_M")
    facts = CovarianceFacts(
        base_sha256=digest(base), text_sha256=digest(text), text=text.name, chunks=chunks, commit=llama.commit
    )
    task = CovarianceTask(
        llama=llama.bin.absolute(),
        base=base.absolute(),
        text=text.absolute(),
        out=out.absolute(),
        imatrix=imatrix.absolute(),
        work=work.absolute(),
        wanted=tuple(name for name, kind in types.items() if kind not in UNQUANTIZED),
        facts=facts,
        memory=sums_memory(base.stat().st_size),
        threads=threads,
    )
    collect_covariances(task, run, report=report, announce=announce)


def make_for_job(ctx: Context, step: Step, base: Path, out: Path, imatrix: Path) -> None:
    """The same from a job's pinned calibration text, as its step: stopped and throttled with the job."""
    make_covariances(
        base,
        calibration_text(ctx),
        out,
        imatrix,
        work=ctx.work / SEGMENTS,
        chunks=ctx.request.chunks,
        llama=ctx.llama,
        run=ctx.tool_run(step),
        threads=ctx.threads,
        report=lambda fraction: ctx.report(step, fraction),
        digest=lambda path: ctx.digests.get(path) or sha256(path, stopped=ctx.stopped),
    )


def most_bytes(head: GgufHead, names: Iterable[str] | None = None) -> int:
    """Of a covariance file of these matrices of a base, or all, if no two of them read the same; llama.cpp tells which
    do."""
    chosen = head.tensors if names is None else names
    columns = {name: head.tensors[name].shape[0] for name in chosen if len(head.tensors[name].shape) == 2}
    shapes = covariance_shapes(columns, choose_widest(columns.values()))
    return sum(4 * rows * width for rows, width in shapes.values())


def sums_memory(base_size: int) -> int:
    """Bytes that the sums of one pass may take beside a base of this size: half of what the machine has, less the
    base, which is read over and over. The same at each start, so that a run goes on with the passes it began with."""
    return max(_LEAST_MEMORY, resources.memory_limit() // 2 - base_size)

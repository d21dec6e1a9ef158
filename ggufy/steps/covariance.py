"""Covariances of what a base's matrices read from the calibration text, and its imatrix with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ggufy.core.plan import Step
from ggufy.formats.covariance import CovarianceFacts, choose_widest, covariance_shapes
from ggufy.formats.gguf import UNQUANTIZED, GgufHead
from ggufy.llama.covariances import CovariancePlan, CovarianceTask, collect_covariances
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.quantize.recipe import stock_recipe
from ggufy.steps.context import Context
from ggufy.steps.job_texts import calibration_text
from ggufy.system import resources
from ggufy.system.files import sha256

_LEAST_MEMORY = 512 << 20  # bytes of sums in one pass


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
        work=ctx.work / "covariances",
        chunks=ctx.request.chunks,
        llama=ctx.llama,
        run=ctx.tool_run(step),
        threads=ctx.threads,
        report=lambda fraction: ctx.report(step, fraction),
        digest=lambda path: ctx.digests.get(path) or sha256(path, stopped=ctx.stopped),
    )


def most_bytes(head: GgufHead, names: Iterable[str]) -> int:
    """Of a covariance file of these matrices of a base, if no two of them read the same; llama.cpp tells which do."""
    columns = {name: head.tensors[name].shape[0] for name in names if len(head.tensors[name].shape) == 2}
    shapes = covariance_shapes(columns, choose_widest(columns.values()))
    return sum(4 * rows * width for rows, width in shapes.values())


def sums_memory(base_size: int) -> int:
    """Bytes that the sums of one pass may take beside a base of this size: half of what the machine has, less the
    base, which is read over and over. The same at each start, so that a run goes on with the passes it began with."""
    return max(_LEAST_MEMORY, resources.memory_limit() // 2 - base_size)

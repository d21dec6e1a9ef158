"""What a job would be, before it is started: sizes of all 29 quants, disk, time. Nothing of the weights is read.

The shapes of a source are enough for a skeleton of its base GGUF, and llama-quantize's dry run over that says the size
of every quant to the byte. Time comes from the cost model of the ETA, corrected by a short measurement of this CPU.
"""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ggufy.core.catalog import BY_NAME, make_order
from ggufy.core.errors import SourceError
from ggufy.core.job import COMPENSATED, DEFAULT_CHUNKS, EVALUATION_CHUNKS, PLAIN, RWKV_MIX, Job, Request
from ggufy.core.names import model_name
from ggufy.core.plan import WHOLE_TEXT_CHUNKS, Step, Upload, Workload, base_name, pending
from ggufy.core.source import Source
from ggufy.jobs.orders import ordered
from ggufy.jobs.skeleton import write_skeleton
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.quantize.recipe import ImatrixFacts
from ggufy.quantize.search.target import label, parse_word
from ggufy.sources.format import Report
from ggufy.sources.locate import vocab_with
from ggufy.sources.registry import format_of
from ggufy.steps import plan
from ggufy.steps.covariance import most_bytes
from ggufy.steps.forecast import peak_bytes, predictions_bytes, target_sizes
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.outputs import OUTPUTS
from ggufy.steps.outputs.gguf import GGUF
from ggufy.steps.target_size import recipes_measured
from ggufy.system import resources
from ggufy.system.files import free_bytes
from ggufy.system.settings import Settings

_BYTES = {"f32": 4, "q8_0": 1}  # a weight of the base, about; 2 of other types
_REFERENCE_S = 0.000085  # of `cpu_speed`'s work on the CPU that the cost model was measured on


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One source, looked at."""

    report: Report
    sizes: JobForecast | None = None  # None: it cannot work, or llama.cpp is not ready


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """What of the form decides the base, and what quants of it would be."""

    outtype: str | None = None
    vocab: str | None = None
    mix: str = RWKV_MIX
    output: str = GGUF.name
    compensated: bool = True


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """What of the form decides the cost."""

    quant_types: tuple[str, ...]
    imatrix: bool = True
    chunks: int = DEFAULT_CHUNKS  # of calibration text; 0: all
    evaluate: bool = False
    texts: int = 1  # to measure on
    evaluation_chunks: int = EVALUATION_CHUNKS  # of each of them
    targets: tuple[str, ...] = ()  # sizes to order, as the user wrote them
    mode: str = ""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a job would take."""

    made: int  # bytes of all files
    peak: int  # bytes of disk at the worst moment
    free: int  # bytes that are free there now
    seconds: float  # with the threads of now; without the transfers, which nobody knows
    where: str  # folder or repo
    account: str  # on the Hub; empty: a folder here


def preview(report: Report, settings: Settings, wish: BaseOptions, *, llama: Llama | None) -> Preview:
    """Forecasts every quant type of a source that was looked at, if it can work and llama.cpp is ready."""
    output = OUTPUTS[wish.output]
    if report.problem or llama is None:
        return Preview(report=report)
    with tempfile.TemporaryDirectory(prefix="ggufy-") as folder:
        skeleton, name = Path(folder) / "skeleton.gguf", _name(report)
        own = vocab_with(report.source, wish.vocab)
        outtype, vocab = output.names.base_type(wish.outtype), Path(own) if own else None
        try:
            foreseen = write_skeleton(report, skeleton, settings, llama=llama, outtype=outtype, vocab=vocab, name=name)
        except SourceError as error:
            if not format_of(report.kind).carries:
                raise
            return Preview(report=replace(report, problem=error.message))
        if not foreseen:
            return Preview(report=report)
        environment = resources.child_environment(threads=1, home=settings.home)
        run = ToolRun(environment=environment, cwd=Path(folder))
        facts = ImatrixFacts(file=f"{name}-imatrix.gguf", dataset="ggufy-calibration.txt")
        types = output.fitting(skeleton)
        sizes = output.forecast(
            skeleton, types, llama=llama, run=run, facts=facts, mix=wish.mix, compensated=wish.compensated
        )
    return Preview(report=report, sizes=sizes)


def _name(report: Report) -> str:
    """As the files will be called unless the user gives another name."""
    return model_name(report.stem or Path(report.path).stem)


def cost(
    found: Preview,
    order: EstimateOptions,
    settings: Settings,
    *,
    where: str,
    account: str,
    threads: int,
    machines: int = 1,
) -> Cost | None:
    """What a job with these types would take, its quants divided among so many machines; None where sizes are not
    known."""
    if found.sizes is None:
        return None
    report, sizes = found.report, found.sizes
    quants = [sizes.quants[t].size for t in order.quant_types if t in sizes.quants]
    quants += target_sizes(sizes, _labels(sizes, order)).values()
    imatrix = sizes.imatrix_bytes * order.imatrix
    base, measured = sizes.base_size, order.evaluation_chunks * order.texts
    peak = peak_bytes(
        base=base,
        beside=imatrix + (most_bytes(sizes.gguf) if sizes.compensated and sizes.gguf else 0),
        quants=quants,
        scratch=predictions_bytes(report.output, sizes, measured) if order.evaluate else 0,
        source=report.size if report.remote and not report.streams else 0,
        published=bool(account),
    )
    return Cost(
        made=base + imatrix + sum(quants),
        peak=peak,
        free=free_bytes(settings.out),
        seconds=work_seconds(report, sizes, order, threads=threads, machines=machines) / cpu_speed(),
        where=where,
        account=account,
    )


def work_seconds(
    report: Report, sizes: JobForecast, order: EstimateOptions, *, threads: int, machines: int = 1
) -> float:
    """Of the CPU that the cost model was measured on, with so many threads on each machine; without transfers."""
    request = Request(
        name="model",
        source=Source(kind=report.kind, path=report.path, size=report.size, sha256=""),
        quant_types=order.quant_types,
        outtype="f16",
        output=report.output,
        imatrix="auto" if order.imatrix else "none",
        rounding=COMPENSATED if sizes.compensated else PLAIN,
        evaluate=order.evaluate,
        targets=_labels(sizes, order),
        mode=order.mode if order.targets else "",
    )
    load = Workload(
        weights=sizes.weights,
        quants=sizes.work(make_order(set(order.quant_types) & sizes.quants.keys(), OUTPUTS[report.output].types)),
        base_bytes=sizes.base_size,
        recipes=recipes_measured(request),
        chunks=order.chunks or WHOLE_TEXT_CHUNKS,
        evaluation_chunks=order.evaluation_chunks * order.texts,
        threads=threads,
    )
    steps = plan(request)  # to a folder, and of a source that is here: no transfers
    if machines == 1:
        return sum(step.seconds(load) for step in steps)
    once = sum(step.seconds(load) for step in steps if step.quant_type not in request.quant_types)
    busy: list[tuple[float, tuple[str, ...]]] = [(0.0, ())] * machines  # and what each has made, to copy from
    for quant in request.quant_types:  # goes to the first that is done with the one before
        seconds, made = busy[0]
        there = replace(load, quants=sizes.work((*made, quant)))
        seconds += sum(step.seconds(there) for step in steps if step.quant_type == quant)
        heapq.heapreplace(busy, (seconds, (*made, quant)))
    return once + max(seconds for seconds, _ in busy)


def finding_seconds(job: Job, here: Collection[str], *, threads: int) -> float:
    """How long it takes on this machine, roughly, to find what every size is worth of what a finished job was made
    from. `here` is what is in the job's folder, by name."""
    request = ordered(job.request)
    made = {artifact.name: artifact.size for artifact in job.artifacts}
    base = made.get(base_name(request), request.source.size)

    def done(step: Step) -> bool:
        return step.file_name in made if isinstance(step, Upload) else step.product in here

    load = Workload(
        weights=base // _BYTES.get(request.outtype, 2),
        base_bytes=base,
        sizes=made,
        recipes=recipes_measured(request),
        chunks=request.chunks or WHOLE_TEXT_CHUNKS,
        threads=threads,
    )
    return sum(step.seconds(load) for step in pending(plan(request), done)) / cpu_speed()


def _labels(sizes: JobForecast, order: EstimateOptions) -> tuple[str, ...]:
    """Raises UsageError for what is no size."""
    weights = sizes.weights
    return tuple(dict.fromkeys(label(parse_word(word), weights=weights, head=0) for word in order.targets))


_speed: float = 0.0


def cpu_speed() -> float:
    """Speed of one core, 1.0 for the CPU that the cost model was measured on; measured once, in some milliseconds."""
    global _speed  # noqa: PLW0603 - a property of the machine
    if not _speed:
        values = np.linspace(-1, 1, 1 << 17, dtype=np.float32)
        times = []
        for _ in range(40):  # some of them undisturbed
            began = time.perf_counter()
            np.clip(np.rint(values * 7.3), -8, 7).astype(np.int8).sum()
            times.append(time.perf_counter() - began)
        _speed = min(10.0, max(0.1, _REFERENCE_S / min(times)))
    return _speed


def chosen(types: Collection[str]) -> tuple[str, ...]:
    """The known types among what a visitor sent."""
    return tuple(name for name in BY_NAME if name in types)

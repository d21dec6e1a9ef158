"""The steps of a job, and which of them are due. Pure.

Products decide: a step is due if its product is missing and it is final or a due step reads it. Stored "done" flags
are never asked, since a disk may have been lost since they were written.

    download ──► convert ──► imatrix ──► quantize (one step per type)
    (the source)  (base GGUF) (imatrix)   (quant)    └──► evaluate (its figures, into the job's record)
                                  └──► analyse (the frontier, into the job's record), then quantize (sizes to order)

A source that can be streamed has no download step: converting fetches it piece by piece, and it is never here.

Here, all quants are made first and then measured. If the results go to a repo on the Hub, each quant is measured as
soon as it is made: the disk may have no room for all of them.

If the results go to a repo on the Hub, each of these files has an upload step, and only the uploads are final: a quant
that is in the repo is not needed here. A file that is needed here and is in the repo is fetched, not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ggufy.core.job import Request

DOWNLOAD, CONVERT, IMATRIX, QUANTIZE = "download", "convert", "imatrix", "quantize"
UPLOAD, FETCH, EVALUATE, ANALYSE = "upload", "fetch", "evaluate", "analyse"
LOCK_NAME = ".lock"  # in the output folder; held by the run that works there
UPLOADED = "repo:"  # before a file name: that file in the output repo
MEASURED = "figures:"  # before a quant's file name: what was measured of it
SOURCE_PRODUCT = "source"  # stands for the downloaded file, which lives in the cache
FRONTIER = "frontier"  # stands for the sizes that can be ordered, and what each is worth
_IN_THE_RECORD = (EVALUATE, ANALYSE)  # what these steps find is no file


@dataclass(frozen=True, kw_only=True)
class Step:
    """One unit of work and the one file that it leaves."""

    kind: str  # download, convert, imatrix, quantize, upload, fetch, evaluate or analyse
    product: str  # file name in the output folder (SOURCE_PRODUCT for a download)
    reads: tuple[str, ...] = ()  # products it needs
    quant_type: str = ""  # for quantize and evaluate: or the size to order, see Request.quants
    final: bool = True  # part of the result, not a means to it

    @property
    def label(self) -> str:
        """`quantize Q4_K_M`, `convert`, …"""
        if self.kind in (UPLOAD, FETCH):
            return f"{self.kind} {self.product.removeprefix(UPLOADED)}"
        return f"{self.kind} {self.quant_type}".strip()


def folder_name(name: str) -> str:
    """`<Model>-GGUF`: the output folder, and later the output repo."""
    return f"{name}-GGUF"


def base_name(request: Request) -> str:
    """`<Model>-F16.gguf`: the base GGUF."""
    return f"{request.name}-{request.outtype.upper()}.gguf"


def imatrix_name(request: Request) -> str:
    return f"{request.name}-imatrix.gguf"


def quant_name(request: Request, quant_type: str) -> str:
    return request.file_of(quant_type)


def plan(request: Request, *, streamed: bool | None = None) -> tuple[Step, ...]:
    """All steps, in the order of making. `streamed` says if the source is; None: if it can be."""
    steps = []
    source: tuple[str, ...] = ()
    if streamed is None:
        streamed = request.source.can_stream
    if request.source.remote and not streamed:
        steps.append(Step(kind=DOWNLOAD, product=SOURCE_PRODUCT, final=False))
        source = (SOURCE_PRODUCT,)
    base = base_name(request)
    steps.append(Step(kind=CONVERT, product=base, reads=source))
    inputs: tuple[str, ...] = (base,)
    if request.imatrix != "none":
        imatrix = imatrix_name(request)
        steps.append(Step(kind=IMATRIX, product=imatrix, reads=(base,)))
        inputs = (base, imatrix)
    measures: list[Step] = []
    analyse = [Step(kind=ANALYSE, product=FRONTIER, reads=inputs)] if request.analysed else []
    for number, quant_type in enumerate(request.quants):
        if number == len(request.quant_types):
            steps += analyse
        product = quant_name(request, quant_type)
        steps.append(Step(kind=QUANTIZE, product=product, reads=inputs, quant_type=quant_type))
        if request.evaluate:
            measure = Step(kind=EVALUATE, product=MEASURED + product, reads=(base, product), quant_type=quant_type)
            (steps if request.repo_id else measures).append(measure)
    if not request.targets:
        steps += analyse
    return tuple(_with_uploads(steps)) if request.repo_id else (*steps, *measures)


def makes(request: Request) -> tuple[Step, ...]:
    """The steps that make the files of the result: base GGUF, imatrix, quants."""
    return tuple(step for step in plan(request) if step.kind in (CONVERT, IMATRIX, QUANTIZE))


def _with_uploads(steps: list[Step]) -> Iterator[Step]:
    for step in steps:
        yield replace(step, final=step.kind in _IN_THE_RECORD)
        if step.kind not in (DOWNLOAD, *_IN_THE_RECORD):
            yield Step(kind=UPLOAD, product=UPLOADED + step.product, reads=(step.product,))


def pending(steps: tuple[Step, ...], exists: Callable[[str], bool]) -> tuple[Step, ...]:
    """The steps that are due, walking the plan backwards from the final products."""
    due: list[Step] = []
    wanted: set[str] = set()
    for step in reversed(steps):
        if not exists(step.product) and (step.final or step.product in wanted):
            if step.kind not in (UPLOAD, *_IN_THE_RECORD) and exists(UPLOADED + step.product):
                step = replace(step, kind=FETCH, reads=())
            due.append(step)
            wanted.update(step.reads)
    return tuple(reversed(due))

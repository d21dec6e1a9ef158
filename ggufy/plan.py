"""The steps of a job, and which of them are due. Pure.

Products decide: a step is due if its product is missing and it is final or a due step reads it. Stored "done" flags
are never asked, since a disk may have been lost since they were written.

    download ──► convert ──► imatrix ──► quantize (one step per type)
    (the source)  (base GGUF) (imatrix)   (quant)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ggufy.job import Request

DOWNLOAD, CONVERT, IMATRIX, QUANTIZE = "download", "convert", "imatrix", "quantize"
LOCK_NAME = ".lock"  # in the output folder; held by the run that works there
SOURCE_PRODUCT = "source"  # stands for the downloaded file, which lives in the cache


@dataclass(frozen=True, kw_only=True)
class Step:
    """One unit of work and the one file that it leaves."""

    kind: str  # download, convert, imatrix or quantize
    product: str  # file name in the output folder (SOURCE_PRODUCT for a download)
    reads: tuple[str, ...] = ()  # products it needs
    quant_type: str = ""  # for quantize
    final: bool = True  # part of the result, not a means to it

    @property
    def label(self) -> str:
        """`quantize Q4_K_M`, `convert`, …"""
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
    return f"{request.name}-{quant_type}.gguf"


def plan(request: Request) -> tuple[Step, ...]:
    """All steps, in the order of making."""
    steps = []
    source: tuple[str, ...] = ()
    if request.source.remote:
        steps.append(Step(kind=DOWNLOAD, product=SOURCE_PRODUCT, final=False))
        source = (SOURCE_PRODUCT,)
    base = base_name(request)
    steps.append(Step(kind=CONVERT, product=base, reads=source))
    inputs: tuple[str, ...] = (base,)
    if request.imatrix != "none":
        imatrix = imatrix_name(request)
        steps.append(Step(kind=IMATRIX, product=imatrix, reads=(base,)))
        inputs = (base, imatrix)
    for quant_type in request.quant_types:
        product = quant_name(request, quant_type)
        steps.append(Step(kind=QUANTIZE, product=product, reads=inputs, quant_type=quant_type))
    return tuple(steps)


def pending(steps: tuple[Step, ...], exists: Callable[[str], bool]) -> tuple[Step, ...]:
    """The steps that are due, walking the plan backwards from the final products."""
    due: list[Step] = []
    wanted: set[str] = set()
    for step in reversed(steps):
        if not exists(step.product) and (step.final or step.product in wanted):
            due.append(step)
            wanted.update(step.reads)
    return tuple(reversed(due))

"""What a step is, what there is of a job's products, and which steps are due. Pure; the kinds of steps, and the plan
that they make up, are in ggufy/steps.

Products decide: a step is due if its product is missing and it is final or a due step reads it. Stored "done" flags
are never asked, since a disk may have been lost since they were written.

    download ──► convert ──► imatrix ──► quantize (one step per type)
    (the source)  (base GGUF) (imatrix)   (quant)    └──► evaluate (its figures, into the job's record)
                                  └──► analyse (the frontier, into the job's record), then quantize (sizes to order)

Where codes are compensated, covariances come between base and imatrix, which the same pass makes; quants read them.

If the results go to a repo on the Hub, each of these files has an upload step, and only the uploads are final: a quant
that is in the repo is not needed here. A file that is needed here and is in the repo is fetched, not made again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ggufy.core.job import Job, Request
from ggufy.core.outputs import names_of_output

LOCK_NAME = ".lock"  # in the output folder; held by the run that works there
UPLOADED = "repo:"  # before a file name: that file in the output repo
COVARIANCES = "covariances"  # stands for what is known of the base's inputs: work that stays on this machine
SOURCE_PRODUCT = "source"  # stands for the downloaded file, which lives in the cache
WHOLE_TEXT_CHUNKS = 60  # where all of a calibration text is read: as many as the bundled one has, roughly
LINE_BYTES = 20e6  # a second, of a network that nothing is known of


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What steps need to know about a job to say how long they take."""

    weights: int = 0  # parameters of the model
    quants: Mapping[str, float] = field(default_factory=dict)  # quant type -> core seconds
    recipes: Mapping[str, int] = field(default_factory=dict)  # product -> recipes that are measured to find it
    base_bytes: int = 0  # size of the base GGUF
    sizes: Mapping[str, int] = field(default_factory=dict)  # file name of a product -> bytes, as far as known
    download_bytes: int = 0
    streamed_bytes: int = 0  # fetched while converting
    chunks: int = 40  # chunks of calibration text
    evaluation_chunks: int = 0
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Products:
    """What there is of a job's products."""

    job: Job  # its record, as it is now
    here: Callable[[str], bool]  # whether a product is on this machine
    arrived: Callable[[str], bool]  # whether a file is in the output repo
    measured: Collection[str] = ()  # file names of quants with figures that count


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """One unit of work and the one product that it leaves. Subclasses are kinds of steps."""

    kind: ClassVar[str]
    makes_file: ClassVar[bool] = True  # the product is a file of the result, which goes to the output repo
    paced_by: ClassVar[str] = ""  # kind whose pace counts for this one as long as none of it was finished

    product: str  # file name in the output folder, or a word that stands for what is no file there
    reads: tuple[str, ...] = ()  # products it needs
    quant_type: str = ""  # if it is about one quant: its type or the size to order, see Request.quants
    final: bool = True  # part of the result, not a means to it

    @property
    def file_name(self) -> str:
        """The file of the result that it is about; empty: none."""
        return self.product if self.makes_file else ""

    @property
    def subject(self) -> str:
        """What it is about, as people are told."""
        return self.quant_type

    @property
    def label(self) -> str:
        """`quantize Q4_K_M`, `convert`, …"""
        return f"{self.kind} {self.subject}".strip()

    def done(self, products: Products) -> bool:
        """True if its product is there."""
        return products.here(self.product)

    @abstractmethod
    def seconds(self, load: Workload) -> float:
        """How long it takes, roughly, before anything was measured."""


class Transfer(Step):
    """Moves a finished file; the destination of the results does it."""

    makes_file = False

    @property
    def subject(self) -> str:
        return self.file_name

    def seconds(self, load: Workload) -> float:
        return 0.5 + load.sizes.get(self.file_name, 0) / LINE_BYTES


class Upload(Transfer):
    """Brings a file to the output repo."""

    kind = "upload"

    @property
    def file_name(self) -> str:
        return self.reads[0]

    def done(self, products: Products) -> bool:
        return products.arrived(self.file_name)


class Fetch(Transfer):
    """Brings a file of the output repo back here, instead of making it again."""

    kind = "fetch"

    @property
    def file_name(self) -> str:
        return self.product


def base_name(request: Request) -> str:
    """`<Model>-F16.gguf`, or as the format of the quants calls it: the base."""
    return f"{request.name}-{base_type(request)}.{names_of_output(request.output).base_suffix}"


def base_type(request: Request) -> str:
    """F16, or as the format of the quants calls the type of the base."""
    return names_of_output(request.output).outtypes.get(request.outtype, request.outtype)


def imatrix_name(request: Request) -> str:
    return f"{request.name}-imatrix.gguf"


def quant_name(request: Request, quant_type: str) -> str:
    return request.file_of(quant_type)


def made_from(request: Request) -> tuple[str, ...]:
    """What quants are made from: base GGUF and, if there is one, imatrix."""
    base = base_name(request)
    return (base,) if request.imatrix == "none" else (base, imatrix_name(request))


def made_with(request: Request, quant: str) -> tuple[str, ...]:
    """The same, and covariances if its codes are compensated."""
    return (*made_from(request), *([COVARIANCES] if request.compensates(quant) else ()))


def with_uploads(steps: Iterable[Step]) -> Iterator[Step]:
    """The same steps with one after each file that brings it to the output repo, and is final instead of it."""
    for step in steps:
        if not step.makes_file:
            yield step
            continue
        yield replace(step, final=False)
        yield Upload(product=UPLOADED + step.product, reads=(step.product,))


def pending(steps: tuple[Step, ...], done: Callable[[Step], bool]) -> tuple[Step, ...]:
    """The steps that are due, walking the plan backwards from the final products."""
    in_repo = {step.file_name for step in steps if isinstance(step, Upload) and done(step)}
    due: list[Step] = []
    wanted: set[str] = set()
    for step in reversed(steps):
        if not done(step) and (step.final or step.product in wanted):
            if step.makes_file and step.product in in_repo:
                step = Fetch(product=step.product, final=False)  # noqa: PLW2901
            due.append(step)
            wanted.update(step.reads)
    return tuple(reversed(due))

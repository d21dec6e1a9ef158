"""What a format of quants says of itself; how its files are called stands in core/outputs.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ggufy.core.catalog import QuantType
from ggufy.core.job import RWKV_MIX, Artifact
from ggufy.core.metrics import Evaluation
from ggufy.core.outputs import OutputNames
from ggufy.core.plan import Step
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.models.chat_format import RwkvFormat
from ggufy.quantize.recipe import ImatrixFacts
from ggufy.quantize.search import target
from ggufy.steps.context import Context
from ggufy.steps.job_forecast import JobForecast


@dataclass(frozen=True, kw_only=True)
class MeasureOrder:
    """What is measured of a quant, and where that is kept."""

    text: Path  # UTF-8, pinned
    folder: Path  # for figures and what is worked with; another one for each text
    speed: bool  # besides the quality
    report: Callable[[float], None]  # fraction done


class OutputFormat(ABC):
    """A kind of file that quants can be."""

    names: ClassVar[OutputNames]
    chats: ClassVar[bool] = False  # ggufy can talk with such a file
    measured: ClassVar[bool] = False  # ggufy can compare one with its base
    to_order: ClassVar[bool] = False  # sizes can be ordered
    title: ClassVar[str]  # of the card: the sentence that says of what model, `{name}`, the files are
    measured_with: ClassVar[str] = ""  # for the card, likewise
    speed_unit: ClassVar[str] = "t/s"  # what is shown of a speed: tokens a second, or `ms` of one token
    made_with: ClassVar[str]  # for the card, which says the commit of llama.cpp behind it
    library: ClassVar[str]  # for the card, as the Hub calls it
    tags: ClassVar[tuple[str, ...]]  # for the card

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.names.name

    @property
    def types(self) -> Mapping[str, QuantType]:
        """What can be made, by name."""
        return self.names.types

    @abstractmethod
    def forecast(
        self,
        base: Path,
        types: Iterable[str],
        *,
        llama: Llama,
        run: ToolRun,
        facts: ImatrixFacts | None,
        mix: str = RWKV_MIX,
        compensated: bool = False,
    ) -> JobForecast:
        """What quants of a base (or of its skeleton) will be; `facts` are of the imatrix that they will name."""

    def fitting(self, base: Path) -> Iterable[str]:
        """The types that a base (or its skeleton) can become."""
        return self.types

    def check(self, ctx: Context) -> None:  # noqa: B027 - many have nothing to check
        """Raises, before anything is made, what would only be met hours later."""

    @abstractmethod
    def make(self, ctx: Context, step: Step) -> Artifact:
        """Leaves the step's product, whole or not at all."""

    def predictions_bytes(self, vocab_size: int, chunks: int) -> int:
        """What measuring keeps on the disk of the base's predictions over so many chunks of a text, which all quants
        share."""
        return 0

    def measure(self, ctx: Context, step: Step, order: MeasureOrder) -> Evaluation:
        """Compares a quant with its base, the two products that the step reads, if such files are `measured`."""
        raise NotImplementedError(self.name)

    @abstractmethod
    def read_types(self, path: Path) -> tuple[float, str]:
        """Of a file: bits per weight, and a digest of every tensor's type. Raises SourceError if it is broken."""

    @abstractmethod
    def how_to_run(
        self, repo_id: str, quant_type: str, *, file: str, chat: RwkvFormat | None, converted: bool
    ) -> list[str]:
        """Lines of the card, to copy, for the `file` of that type. `chat`: how it talks, if it is an RWKV that does;
        `converted`: it comes from a checkpoint, so that its metadata are ours."""

    def advice(self, quant: str) -> str:
        """One line about a quant type or a size to order, in English."""
        return self.types[quant].advice if quant in self.types else target.advice(quant)

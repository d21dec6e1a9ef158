"""What a format of quants says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ggufy.core.catalog import QuantType
from ggufy.core.job import Artifact
from ggufy.core.plan import Step
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.quantize.recipe import ImatrixFacts
from ggufy.quantize.search import target
from ggufy.quantize.search.mixes import RWKV
from ggufy.steps.context import Context
from ggufy.steps.job_forecast import JobForecast


class ForecastTypes(Protocol):
    """Says what quants of a base (or of its skeleton) will be; `facts` are of the imatrix that they will name."""

    def __call__(
        self,
        base: Path,
        types: Iterable[str],
        *,
        llama: Llama,
        run: ToolRun,
        facts: ImatrixFacts | None,
        mix: str = RWKV,
    ) -> JobForecast: ...


class DescribeUse(Protocol):
    """Lines of the card, with what to copy to run a file of this type. `world`: it speaks RWKV's World format;
    `converted`: it comes from a checkpoint, so that its metadata are ours."""

    def __call__(self, repo_id: str, quant_type: str, *, world: bool, converted: bool) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class OutputFormat:
    """A kind of file that quants are. Files are called `<Model>-<type>.<name>`."""

    name: str  # what its files end in, and what requests call it
    types: Mapping[str, QuantType]  # what can be made, by name
    forecast: ForecastTypes
    make: Callable[[Context, Step], Artifact]  # leaves the step's product, whole or not at all
    check: Callable[[Context], object]  # raises ToolError, before anything is made, if it cannot be
    read_types: Callable[[Path], tuple[float, str]]  # of a file: bits per weight, digest of every tensor's type
    chats: bool  # `ggufy.llama` can talk with such a file
    measured: bool  # llama-perplexity can compare one with its base
    made_with: str  # for the card, which says the commit of llama.cpp behind it
    title: str  # of the card: "GGUF files of …, for " and so on
    library: str  # for the card, as the Hub calls it
    tags: tuple[str, ...]  # for the card
    how_to_run: DescribeUse

    def advice(self, quant: str) -> str:
        """One line about a quant type or a size to order, in English."""
        return self.types[quant].advice if quant in self.types else target.advice(quant)

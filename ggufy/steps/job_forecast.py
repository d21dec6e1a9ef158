"""What a job will leave, as far as it is known before anything is made; forecast.py finds it out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ggufy.formats.gguf import GgufHead
from ggufy.formats.rwkvcpp import RwkvcppHead
from ggufy.quantize.recipe import Forecast, core_seconds
from ggufy.quantize.search.fallback import Instead
from ggufy.steps.same_model import vocab_size as entries_of


@dataclass(frozen=True, kw_only=True)
class JobForecast:
    """What a job will leave."""

    base: GgufHead | RwkvcppHead
    quants: dict[str, Forecast]  # by quant type
    same_as: dict[str, str]  # quant types with the same tensors as an earlier one -> that one
    instead: dict[str, Instead] = field(default_factory=dict)  # what types are whose widths do not fit, by quant type
    targets: dict[str, int] = field(default_factory=dict)  # sizes to order, by label: bytes at most
    compensated: bool = False  # their codes make up for each other's errors

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every quant; at most so many, if it is made to order."""
        return {name: quant.size for name, quant in self.quants.items()} | self.targets

    @property
    def base_size(self) -> int:
        return self.base.file_size

    @property
    def weights(self) -> int:
        return self.base.elements

    @property
    def gguf(self) -> GgufHead | None:
        """The base, if it is a GGUF."""
        return self.base if isinstance(self.base, GgufHead) else None

    @property
    def vocab_size(self) -> int:
        """Tokens that a prediction has values for."""
        return entries_of(self.base) if isinstance(self.base, GgufHead) else self.base.vocab_size

    @property
    def imatrix_bytes(self) -> int:
        """No imatrix is larger: one F32 row per tensor and matrix."""
        tensors = self.gguf.tensors if self.gguf else {}
        return sum(4 * tensor.shape[0] + 512 for tensor in tensors.values() if len(tensor.shape) > 1)

    def work(self, types: Iterable[str]) -> dict[str, float]:
        """Core seconds of each of these quant types, made in this order."""
        recipes = {name: self.quants[name].recipe for name in types}
        return core_seconds(recipes, self.base, compensated=self.compensated)

"""What an open file of named tensors offers to whoever converts it, whatever its format and wherever it lies."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ggufy.core.source import Source

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WantedTensor:
    """A tensor to be streamed."""

    name: str
    pieces: bool  # it may come in pieces of one dimension; else all of it at once, in its own shape


class TensorFile(Protocol):
    """The tensors of a file or of several, by name; `shapes` (torch's) and `dtypes` cost no reading of values."""

    @property
    def name(self) -> str:
        """Of the file that names the model, without its folder; for sentences."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]: ...


class MappedTensors(TensorFile, Protocol):
    """A file on this machine."""

    def tensor(self, name: str) -> torch.Tensor:
        """Its values, of `shapes[name]`, perhaps not contiguous. Never to be written to."""

    def release(self, name: str) -> None:
        """Takes the values of a tensor out of memory; they come back from the file if used again."""


class StreamedTensors(TensorFile, Protocol):
    """A file that is fetched by ranges."""

    @property
    def source(self) -> Source:
        """What it is pinned to."""

    def stream(self, wanted: Iterable[WantedTensor]) -> Generator[torch.Tensor, None, None]:
        """The tensors in the order given, each as often as it is wanted: whole, or in pieces that together are its
        values in order. Used once, and to be closed."""

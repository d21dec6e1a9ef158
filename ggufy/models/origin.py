"""Where a tensor under BlinkDL's name comes from: the tensors of the file that it is made from, and how.

What reads a layout other than BlinkDL's gives a mapping from BlinkDL's names to origins; so does what changes weights
on their way, such as an adapter. All that follows, from detecting the architecture to writing the GGUF, goes by these
names and shapes, and asks an origin for values one tensor at a time. Describing a model makes no values: this module
does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Origin:
    """Where one tensor comes from."""

    sources: tuple[str, ...]  # names in the file
    shape: tuple[int, ...]  # torch's, of the result
    # Gives the result from the tensors of `sources`, each whole and in its own shape, none of which it may write to.
    # None: the only source is it, with the same values in the same order, perhaps with other dimensions of 1.
    make: Callable[..., torch.Tensor] | None = None


Origins = Mapping[str, Origin]  # by BlinkDL's name


def identity(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
    """The origins of a file whose names and shapes are BlinkDL's already."""
    return {name: Origin((name,), shape) for name, shape in shapes.items()}


def shapes_of(origins: Origins) -> dict[str, tuple[int, ...]]:
    """Shapes by BlinkDL's names: what `registry.detect` and `write_skeleton` take."""
    return {name: origin.shape for name, origin in origins.items()}


def derived(origin: Origin, shape: tuple[int, ...], change: Callable[[torch.Tensor], torch.Tensor]) -> Origin:
    """What `change` makes of a tensor, which it gets in `origin.shape`; its values are put into `shape`."""
    return Origin(origin.sources, shape, partial(_changed, origin, shape, change))


def _changed(
    origin: Origin, shape: tuple[int, ...], change: Callable[[torch.Tensor], torch.Tensor], *tensors: torch.Tensor
) -> torch.Tensor:
    return change((origin.make(*tensors) if origin.make else tensors[0]).reshape(origin.shape)).reshape(shape)

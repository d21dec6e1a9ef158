"""Merges adapters into the safetensors files of a model that llama.cpp's converter takes, one tensor after the other.

What an adapter changes is computed and written in F32, so that it is rounded once, by the converter; all other values
stay as they are. PEFT's own merging rounds to the type of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ggufy.formats.checkpoint import DTYPES as TORCH_TYPES
from ggufy.formats.mapped_safetensors import MappedSafetensors, open_safetensors
from ggufy.formats.safetensors import DTYPES, packed_header
from ggufy.models.adapter import Formula, bare_name, check_fits
from ggufy.models.merge import OpenAdapter, merge

_NAMES = {TORCH_TYPES[short]: name for name, (short, _) in DTYPES.items()}


def merge_into_files(
    paths: Sequence[Path], adapters: Sequence[OpenAdapter], progress: Callable[[int, int], None]
) -> None:
    """Replaces each of these files that an adapter changes (or the link to it) by one with the merged weights.

    `progress` is told bytes done, and of all; it may raise to stop. Raises SourceError if an adapter does not fit,
    CheckpointError for weights that are no floating-point values.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with open_safetensors([path]) as model:
            shapes |= {bare_name(name): shape for name, shape in model.shapes.items()}
    for one in adapters:
        check_fits(one.adapter, shapes)
    changed = {target for one in adapters for target in one.adapter.parts}
    sizes = {path: path.stat().st_size for path in paths}
    for place, path in enumerate(paths):
        progress(sum(sizes[other] for other in paths[:place]), sum(sizes.values()))
        with open_safetensors([path]) as model:
            if any(bare_name(name) in changed for name in model.shapes):
                _write_merged(model, path, adapters, lambda: progress(0, 0))


def _write_merged(
    model: MappedSafetensors, path: Path, adapters: Sequence[OpenAdapter], check_stopped: Callable[[], None]
) -> None:
    changed = {target for one in adapters for target in one.adapter.parts}
    dtypes = {name: torch.float32 if bare_name(name) in changed else model.dtypes[name] for name in model.shapes}
    head, _ = packed_header(
        (name, _NAMES[dtypes[name]], shape, math.prod(shape) * dtypes[name].itemsize)
        for name, shape in model.shapes.items()
    )
    part = path.with_name(path.name + ".merged")
    with part.open("wb") as file:
        file.write(head)
        for name in model.shapes:
            check_stopped()
            values = _merged(model.tensor(name), bare_name(name), adapters).contiguous()
            file.write(values.reshape(-1).view(torch.uint8).numpy().data)
            model.release(name)
    part.replace(path)


def _merged(values: torch.Tensor, target: str, adapters: Sequence[OpenAdapter]) -> torch.Tensor:
    """A tensor with all adapters in it that change it, in their order."""
    for one in adapters:
        if part := one.adapter.parts.get(target):
            own = [one.tensor(key) for key in part.tensors]
            whole = part.formula is Formula.WHOLE
            values = own[0].reshape(values.shape) if whole else merge(part.formula, values, own, one.scale)
    return values

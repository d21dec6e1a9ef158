"""Writes an RWKV-5 with a gate as an RWKV-6 checkpoint, which PyPI's `rwkv` and others read, too: see rwkv5.py."""

from __future__ import annotations

from pathlib import Path

import torch

from ggufy.core.errors import CheckpointError
from ggufy.formats.checkpoint import Checkpoint, open_checkpoint
from ggufy.models import registry
from ggufy.models.layouts import origins_of
from ggufy.models.origin import Origin, shapes_of
from ggufy.models.rwkv5 import UPGRADED, upgraded
from ggufy.system.files import partial


def upgrade(source: Path, target: Path) -> None:
    """Writes the checkpoint `source` (.pth) as `target`, which appears whole or not at all.

    Weights that are the same stay in their type, computed ones are F32; all but the latter are only mapped, so memory
    grows with the width, not with the file. Raises CheckpointError for what is no whole RWKV-5.1 or 5.2, DiskError.
    """
    with open_checkpoint(source) as file:
        origins = origins_of(file.shapes)
        shapes = shapes_of(origins)
        registry.detect(shapes)
        if (version := registry.version_of(shapes)) not in UPGRADED:
            raise CheckpointError(
                "{name} is RWKV-{version}, which needs no upgrade: convert or quantize it as it is.",
                name=file.name,
                version=version,
            )
        tensors = {name: _values(file, origin) for name, origin in upgraded(origins, usual_ranks=True).items()}
        with partial(target) as part, part.open("wb") as out:  # a path would hide why the disk does not take it
            torch.save(tensors, out)


def _values(file: Checkpoint, origin: Origin) -> torch.Tensor:
    tensors = map(file.tensor, origin.sources)
    values = origin.make(*tensors) if origin.make else next(tensors)
    return values.contiguous()  # a view would be saved with all that it is a view of

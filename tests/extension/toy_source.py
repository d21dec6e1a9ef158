"""A format of two files: `M.toy.json` has the shapes of tensors by name, `M.toy.bin` their values in order, as F32.
All that ggufy has to know of it is here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ggufy.core.errors import SourceError
from ggufy.models import registry
from ggufy.models.architecture import Shapes, TensorPlan
from ggufy.models.convert import Conversion, Piece, pieces_of, write_base, write_skeleton
from ggufy.sources.format import ConvertTask, OpenBeside, Report, SkeletonTask, SourceFormat


class ToySource(SourceFormat):
    """See above."""

    kind, noun, suffix = "toy", "toy", ".toy.json"
    unnamed = True

    def claims(self, name: str) -> bool:
        return name.endswith(self.suffix)

    def recognizes(self, path: Path) -> bool:
        return self.claims(path.name)

    def files(self, name: str, listing: Callable[[], Collection[str]]) -> tuple[str, ...]:
        return tuple(one for one in (name, _values_of(name)) if one in listing())

    def describe(self, file: BinaryIO, beside: OpenBeside, found: dict[str, Any], vocab: str | None) -> None:
        shapes = _shapes(file)
        found |= {"dtype": "f32", "shapes": shapes}
        model = registry.detect(shapes)
        found |= {"architecture": model.architecture.name, "layers": model.layers, "width": model.width}
        found |= {"vocab_size": model.vocab_size, "parameters": model.parameters}
        with beside(_values_of(found["path"])) as values:
            if values.seek(0, 2) != 4 * model.parameters:
                raise SourceError(f"{found['path']} and its values do not fit: fetch them again.")

    def write_described(self, report: Report, target: Path, task: SkeletonTask) -> None:
        write_skeleton(report.shapes, target, outtype=task.outtype, vocab=task.vocab, name=task.name)

    def convert(self, task: ConvertTask, target: Path) -> str:
        with task.path.open("rb") as file:
            shapes = _shapes(file)
        conversion = Conversion.of(shapes, outtype=task.outtype, vocab=task.vocab, name=task.name, rescale_every=None)
        values, tensors = np.fromfile(_values_of(str(task.path)), dtype=np.float32), {}
        for name, shape in shapes.items():
            size = math.prod(shape)
            tensors[name], values = torch.from_numpy(values[:size]), values[size:]

        def pieces(plan: TensorPlan) -> Iterator[Piece]:
            for source in plan.sources:
                yield from pieces_of(tensors[source], source, plan)

        return write_base(target, conversion, pieces, task.progress)


def _values_of(name: str) -> str:
    return name.removesuffix(".json") + ".bin"


def _shapes(file: BinaryIO) -> Shapes:
    return {name: tuple(shape) for name, shape in json.load(file).items()}


def save(folder: Path, name: str, tensors: dict[str, np.ndarray]) -> Path:
    """Writes a model; gives the path that names it."""
    path = folder / f"{name}.toy.json"
    path.write_text(json.dumps({key: tensor.shape for key, tensor in tensors.items()}))
    Path(_values_of(str(path))).write_bytes(b"".join(tensor.astype("<f4").tobytes() for tensor in tensors.values()))
    return path

"""BlinkDL's checkpoints (.pth): described by the list of their tensors, converted here or while they are fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ggufy.core.errors import SourceError
from ggufy.core.words import brief
from ggufy.formats.gguf import type_of_most
from ggufy.formats.pickled import read_tensors
from ggufy.models import registry
from ggufy.models.architecture import block_numbers
from ggufy.models.layouts import origins_of
from ggufy.models.origin import shapes_of
from ggufy.models.vocab import vocab_for
from ggufy.sources.format import ConvertTask, OpenBeside, Report, SourceFormat
from ggufy.system.user_paths import user_file

if TYPE_CHECKING:
    from ggufy.formats.streamed_checkpoint import StreamedCheckpoint


class RwkvPth(SourceFormat):
    """One file of an RWKV; its vocabulary is World's or the user's."""

    kind, noun, suffix = "checkpoint", "checkpoint", ".pth"
    unnamed = rwkv = True

    def recognizes(self, path: Path) -> bool:
        return True

    def describe(self, file: BinaryIO, beside: OpenBeside, found: dict[str, Any], vocab: str | None) -> None:
        tensors = read_tensors(file, found["path"])
        shapes = shapes_of(origins_of({name: tensor.shape for name, tensor in tensors.items()}))
        found["dtype"] = type_of_most((tensor.dtype, tensor.elements) for tensor in tensors.values())
        found["parameters"] = sum(tensor.elements for tensor in tensors.values())
        found |= _sizes(shapes) | {"shapes": shapes}
        model = registry.detect(shapes)
        found |= {"architecture": model.architecture.name, "parameters": model.parameters}
        found |= {"head_size": model.sizes.get("N", 0), "heads": model.sizes["H"] if "N" in model.sizes else 0}
        own = user_file(vocab) if vocab else None
        if vocab and own is None:
            raise SourceError(
                "the vocabulary {path} does not exist: check the path given with {VOCAB}.", path=brief(vocab)
            )
        vocab_for(model.vocab_size, own)

    def write_described(self, report: Report, target: Path, *, outtype: str, vocab: Path | None, name: str) -> None:
        from ggufy.models.convert import write_skeleton  # noqa: PLC0415 - loads torch

        options: dict[str, Any] = {"outtype": outtype, "vocab": vocab, "chat_format": report.chat_format}
        write_skeleton(report.shapes, target, name=name, **options)

    def write_skeleton(self, task: ConvertTask, target: Path) -> None:
        if not task.streamed:
            super().write_skeleton(task, target)
            return
        shapes = shapes_of(origins_of(_remote(task).shapes))
        report = Report(source=task.source.path, shapes=shapes, chat_format=task.chat_format)
        self.write_described(report, target, outtype=task.outtype, vocab=task.vocab, name=task.name)

    def convert(self, task: ConvertTask, target: Path) -> str:
        from ggufy.models.convert import convert  # noqa: PLC0415 - loads torch, seconds that only a due one pays
        from ggufy.models.convert_streamed import convert_streamed  # noqa: PLC0415

        options: dict[str, Any] = {"outtype": task.outtype, "vocab": task.vocab, "name": task.name}
        options["chat_format"] = task.chat_format
        if task.streamed:
            remote = _remote(task)
            return convert_streamed(remote, origins_of(remote.shapes), target, progress=task.progress, **options)
        return convert(task.path, target, progress=task.progress, **options)


def _remote(task: ConvertTask) -> StreamedCheckpoint:
    """The source, where it is. Raises CannotStream if it has to be downloaded, and other SourceErrors."""
    from ggufy.formats.streamed_checkpoint import open_streamed  # noqa: PLC0415 - loads torch

    return open_streamed(task.source, token=task.token, stopped=task.stopped)


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What can be said of any RWKV, also of one that cannot be converted."""
    embedding = shapes.get("emb.weight", ())
    vocab_size, width = embedding if len(embedding) == 2 else (0, 0)
    layers = max(block_numbers(shapes), default=-1) + 1
    return {"version": registry.version_of(shapes), "layers": layers, "width": width, "vocab_size": vocab_size}

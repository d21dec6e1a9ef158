"""BlinkDL's checkpoints (.pth): described by the list of their tensors, converted here or while they are fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ggufy.formats.pickled import read_tensors
from ggufy.models.layouts import origins_of
from ggufy.models.origin import shapes_of
from ggufy.sources.format import ConvertTask, OpenBeside, Report, SkeletonTask, SourceFormat
from ggufy.sources.rwkv_tensors import convert_rwkv, describe_rwkv, write_rwkv_skeleton

if TYPE_CHECKING:
    from ggufy.formats.streamed_checkpoint import StreamedCheckpoint


class RwkvPth(SourceFormat):
    """One file of an RWKV; its vocabulary is World's or the user's."""

    kind, noun, suffix = "checkpoint", "checkpoint", ".pth"
    unnamed = rwkv = True
    bases = ("gguf", "bin")

    def recognizes(self, path: Path) -> bool:
        return True

    def describe(self, file: BinaryIO, beside: OpenBeside, found: dict[str, Any], vocab: str | None) -> None:
        describe_rwkv(read_tensors(file, found["path"]), found, vocab)

    def write_described(self, report: Report, target: Path, task: SkeletonTask) -> None:
        write_rwkv_skeleton(report, target, task)

    def write_skeleton(self, task: ConvertTask, target: Path) -> None:
        if not task.streamed:
            super().write_skeleton(task, target)
            return
        shapes = shapes_of(origins_of(_remote(task).shapes))
        found: dict[str, Any] = {"shapes": shapes, "output": task.output, "chat_format": task.chat_format}
        report = Report(source=task.source.path, **found)
        self.write_described(report, target, task.skeleton())

    def convert(self, task: ConvertTask, target: Path) -> str:
        from ggufy.formats.checkpoint import open_checkpoint  # noqa: PLC0415 - loads torch

        return convert_rwkv(
            task,
            target,
            vocab=task.vocab,
            origins=origins_of,
            local=lambda: open_checkpoint(task.path),
            remote=lambda: _remote(task),
        )


def _remote(task: ConvertTask) -> StreamedCheckpoint:
    """The source, where it is. Raises CannotStream if it has to be downloaded, and other SourceErrors."""
    from ggufy.formats.streamed_checkpoint import open_streamed  # noqa: PLC0415 - loads torch

    return open_streamed(task.source, token=task.token, stopped=task.stopped)

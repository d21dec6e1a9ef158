"""BlinkDL's checkpoints (.pth): described by the list of their tensors, converted here or while they are fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ggufy.formats.pickled import read_tensors
from ggufy.models.layouts import origins_of
from ggufy.models.origin import shapes_of
from ggufy.sources.format import ConvertTask, OpenBeside, Report, SourceFormat
from ggufy.sources.rwkv_tensors import describe_rwkv

if TYPE_CHECKING:
    from ggufy.formats.streamed_checkpoint import StreamedCheckpoint


class RwkvPth(SourceFormat):
    """One file of an RWKV; its vocabulary is World's or the user's."""

    kind, noun, suffix = "checkpoint", "checkpoint", ".pth"
    unnamed = rwkv = True

    def recognizes(self, path: Path) -> bool:
        return True

    def describe(self, file: BinaryIO, beside: OpenBeside, found: dict[str, Any], vocab: str | None) -> None:
        describe_rwkv(read_tensors(file, found["path"]), found, vocab)

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
        from ggufy.models.merge import merge_adapters  # noqa: PLC0415

        options: dict[str, Any] = {"outtype": task.outtype, "vocab": task.vocab, "name": task.name}
        options["chat_format"] = task.chat_format
        if not task.streamed:
            return convert(task.path, target, adapters=task.adapters, progress=task.progress, **options)
        remote = _remote(task)
        origins = merge_adapters(origins_of(remote.shapes), task.adapters)
        mark = ",".join(one.key for one in task.adapters)
        return convert_streamed(remote, origins, target, mark=mark, progress=task.progress, **options)


def _remote(task: ConvertTask) -> StreamedCheckpoint:
    """The source, where it is. Raises CannotStream if it has to be downloaded, and other SourceErrors."""
    from ggufy.formats.streamed_checkpoint import open_streamed  # noqa: PLC0415 - loads torch

    return open_streamed(task.source, token=task.token, stopped=task.stopped)

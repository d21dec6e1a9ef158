"""`pytorch_model.bin`, as transformers saved a model before there were safetensors: a .pth in a folder with a
config.json. It is read by the same machine (formats/pickled.py); one in parts is not taken."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from ggufy.formats.pickle_machine import PickledTensor
from ggufy.formats.pickled import read_tensors
from ggufy.sources.format import ConvertTask, OpenBeside
from ggufy.sources.rwkv_folder import RwkvFolder

if TYPE_CHECKING:
    from ggufy.formats.checkpoint import Checkpoint
    from ggufy.formats.streamed_checkpoint import StreamedCheckpoint

_NAME = "pytorch_model.bin"


class RwkvBin(RwkvFolder):
    """One file; see rwkv_folder.py."""

    kind, noun, suffix = "bin", "checkpoint", ".bin"

    def claims(self, name: str) -> bool:
        return PurePosixPath(name).name == _NAME

    def recognizes(self, path: Path) -> bool:
        return self.claims(path.name)

    def listed(
        self, file: BinaryIO, name: str, open_part: OpenBeside, there: Collection[str]
    ) -> dict[str, PickledTensor]:
        return read_tensors(file, name)

    def opened(self, paths: Sequence[Path]) -> Checkpoint:
        from ggufy.formats.checkpoint import open_checkpoint  # noqa: PLC0415 - loads torch

        return open_checkpoint(paths[0])

    def opened_remote(self, task: ConvertTask) -> StreamedCheckpoint:
        from ggufy.formats.streamed_checkpoint import open_streamed  # noqa: PLC0415 - loads torch

        return open_streamed(task.source.each()[-1], token=task.token, stopped=task.stopped)

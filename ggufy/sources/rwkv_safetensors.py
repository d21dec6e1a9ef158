"""Safetensors of an RWKV, in one file or several with an index."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ggufy.formats.safetensors import StoredTensor, is_index, is_shard, read_tensors
from ggufy.sources.format import ConvertTask, OpenBeside
from ggufy.sources.rwkv_folder import RwkvFolder

if TYPE_CHECKING:
    from ggufy.formats.mapped_safetensors import MappedSafetensors
    from ggufy.formats.streamed_safetensors import StreamedSafetensors

_SUFFIXES = (".safetensors", ".st")  # the latter is web-rwkv's and Ai00's


class RwkvSafetensors(RwkvFolder):
    """See rwkv_folder.py."""

    kind, noun, suffix = "safetensors", "safetensors", ".safetensors"

    def claims(self, name: str) -> bool:
        return is_index(name) or (name.endswith(_SUFFIXES) and not is_shard(name))

    def recognizes(self, path: Path) -> bool:
        with path.open("rb") as file:
            start = file.read(9)
        return self.claims(path.name) or (start[8:] == b"{" and start[5:8] == bytes(3))

    def listed(
        self, file: BinaryIO, name: str, open_part: OpenBeside, there: Collection[str]
    ) -> dict[str, StoredTensor]:
        return read_tensors(file, name, open_part, there)

    def opened(self, paths: Sequence[Path]) -> MappedSafetensors:
        from ggufy.formats.mapped_safetensors import open_safetensors  # noqa: PLC0415 - loads torch

        return open_safetensors(paths)

    def opened_remote(self, task: ConvertTask) -> StreamedSafetensors:
        from ggufy.formats.streamed_safetensors import open_streamed_safetensors  # noqa: PLC0415 - loads torch

        return open_streamed_safetensors(task.source, token=task.token, stopped=task.stopped)

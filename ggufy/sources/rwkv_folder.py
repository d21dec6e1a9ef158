"""RWKVs as Hugging Face's programs save them: files that lie in a folder with a config.json, in whoever's names
(models/layouts.py), described by their lists of tensors, converted here or while they are fetched.

Beside a file that is called as every model's is (`model.safetensors`), the folder's config.json is held against it,
and its vocabulary is taken. The containers have a file each (rwkv_safetensors.py, rwkv_bin.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from ggufy.core.errors import CheckpointError
from ggufy.core.names import is_anonymous
from ggufy.formats.safetensors import is_index, is_shard, is_shard_of
from ggufy.models.layouts import recognize
from ggufy.models.names.config import CONFIG_FILE, LONGEST_CONFIG, read_config
from ggufy.models.origin import Origins, shapes_of
from ggufy.models.vocab import WORLD_FILE
from ggufy.net.download import fetch_pinned
from ggufy.sources.format import ConvertTask, OpenBeside, Report, SkeletonTask, SourceFormat
from ggufy.sources.rwkv_tensors import (
    ListedTensor,
    convert_rwkv,
    describe_rwkv,
    model_of,
    vocab_file,
    write_rwkv_skeleton,
)

if TYPE_CHECKING:
    from ggufy.formats.tensor_file import MappedTensors, StreamedTensors

_COMPANIONS = {CONFIG_FILE: LONGEST_CONFIG, WORLD_FILE: 8 << 20}  # and their largest sizes, bytes


class RwkvFolder(SourceFormat):
    """One model; the file that names it is the index if there are several."""

    unnamed = rwkv = True
    bases = ("gguf", "bin")

    @abstractmethod
    def listed(
        self, file: BinaryIO, name: str, open_part: OpenBeside, there: Collection[str]
    ) -> Mapping[str, ListedTensor]:
        """The tensors of the file called `name`; `open_part` opens one of those that are `there` beside it."""

    @abstractmethod
    def opened(self, paths: Sequence[Path]) -> AbstractContextManager[MappedTensors]:
        """The tensors of files on this machine, the one that names the model first."""

    @abstractmethod
    def opened_remote(self, task: ConvertTask) -> StreamedTensors:
        """The same where they are. Raises CannotStream if they have to be downloaded, and other SourceErrors."""

    def files(self, name: str, listing: Callable[[], Collection[str]]) -> tuple[str, ...]:
        if not is_index(name) and not is_anonymous(name):
            return (name,)
        there = listing()
        parts = sorted(other for other in there if is_index(name) and is_shard_of(other, name))
        companions = [str(PurePosixPath(name).with_name(one)) for one in _COMPANIONS]
        return (name, *parts, *(one for one in companions if one in there))

    def base_head(self, path: Path) -> None:
        _check_name(path.name)

    def describe(self, file: BinaryIO, beside: OpenBeside, found: dict[str, Any], vocab: str | None) -> None:
        path = PurePosixPath(found["path"])
        _check_name(path.name)
        there = {PurePosixPath(name).name for name in found["files"]}

        def companion(name: str) -> bytes:
            if name not in there:
                return b""
            with beside(str(path.with_name(name))) as opened:
                return _limited(opened.read(_COMPANIONS[name] + 1), name)

        tensors = self.listed(file, path.name, lambda part: beside(str(path.with_name(part))), there)
        config = read_config(text) if (text := companion(CONFIG_FILE)) else {}
        describe_rwkv(tensors, found, vocab, config=config, own=companion(WORLD_FILE))

    def write_described(self, report: Report, target: Path, task: SkeletonTask) -> None:
        with vocab_file(task.vocab, report.own_vocab) as path:
            write_rwkv_skeleton(report, target, replace(task, vocab=path))

    def write_skeleton(self, task: ConvertTask, target: Path) -> None:
        if not task.streamed:
            super().write_skeleton(task, target)
            return
        origins = _checked(self.opened_remote(task).shapes, task)
        found: dict[str, Any] = {"shapes": shapes_of(origins), "own_vocab": _companion(task, WORLD_FILE)}
        found |= {"output": task.output, "chat_format": task.chat_format}
        report = Report(source=task.source.path, **found)
        self.write_described(report, target, task.skeleton())

    def convert(self, task: ConvertTask, target: Path) -> str:
        with vocab_file(task.vocab, _companion(task, WORLD_FILE)) as vocab:
            return convert_rwkv(
                task,
                target,
                vocab=vocab,
                origins=lambda shapes: _checked(shapes, task),
                local=lambda: self.opened([task.path.with_name(name) for name in _names(task)]),
                remote=lambda: self.opened_remote(task),
            )


def _check_name(name: str) -> None:
    """Raises CheckpointError for one part of several."""
    if is_shard(name):
        raise CheckpointError("{name} is one part of several: give the folder, or the index of the model.", name=name)


def _names(task: ConvertTask) -> list[str]:
    """Of the model's files, its own first."""
    return [PurePath(one.path).name for one in task.source.each()][::-1]


def _checked(shapes: Mapping[str, tuple[int, ...]], task: ConvertTask) -> Origins:
    """The origins of a model that can be converted."""
    origins = recognize(shapes).origins
    config = _companion(task, CONFIG_FILE)
    model_of(origins, read_config(config) if config else {})
    return origins


def _companion(task: ConvertTask, name: str) -> bytes:
    """The content of a file that was pinned with the model; empty if there is none."""
    pinned = next((one for one in task.source.each() if PurePath(one.path).name == name), None)
    if pinned is None:
        return b""
    if task.streamed:
        return fetch_pinned(pinned, limit=_COMPANIONS[name], token=task.token, stopped=task.stopped)
    with task.path.with_name(name).open("rb") as file:
        return _limited(file.read(_COMPANIONS[name] + 1), name)


def _limited(data: bytes, name: str) -> bytes:
    if len(data) > _COMPANIONS[name]:
        raise CheckpointError("{name} is too long to be true: fetch it again, or leave it out.", name=name)
    return data

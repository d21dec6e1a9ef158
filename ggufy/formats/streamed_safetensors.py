"""A safetensors model that stays where it is, in one file or several (see prefetched.py).

What is checked of what arrives: its version, size and place (see net/http_file.py), and nothing more. The format has
no checksums, and the sha256 of a whole file cannot be compared without reading all of it in order.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from ggufy.core.errors import CannotStream
from ggufy.core.source import Source
from ggufy.formats.checkpoint import DTYPES
from ggufy.formats.prefetched import Part, PrefetchedTensors, parts_of
from ggufy.formats.safetensors import StoredTensor, is_index, is_shard, read_tensors
from ggufy.formats.tensor_file import WantedTensor
from ggufy.net.download import fetch_pinned
from ggufy.net.http_file import BlockFile, HttpFile
from ggufy.net.http_get import source_address
from ggufy.system.clock import never

_LONGEST_HEADER = 4 << 20  # bytes


class StreamedSafetensors(PrefetchedTensors):
    """The tensors of a remote model whose `files` are called as in the lists of `tensors`."""

    def __init__(self, source: Source, files: Mapping[str, HttpFile], tensors: Mapping[str, StoredTensor]):
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        dtypes = {name: DTYPES[tensor.dtype] for name, tensor in tensors.items()}
        super().__init__(source, list(files.values()), shapes, dtypes)
        self._by_name, self._tensors = files, tensors

    def _parts(self, want: WantedTensor) -> Iterator[Part]:
        tensor = self._tensors[want.name]
        return parts_of(self._by_name[tensor.file], tensor.start, tensor.stop)

    def _data(self, name: str, pieces: Iterator[bytearray]) -> Iterator[memoryview]:
        yield from (memoryview(piece) for piece in pieces)


def open_streamed_safetensors(
    source: Source,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    stopped: Callable[[], bool] = never,
) -> StreamedSafetensors:
    """Reads the lists of tensors of a remote model, some hundred kilobytes in a few requests.

    Raises CannotStream if it has to be downloaded first, CheckpointError for lists that make no sense, SourceError
    when something cannot be had, Cancelled.
    """
    if not source.can_stream:
        raise CannotStream("{path} cannot be checked piece by piece.", path=source.path)
    token = None if source.url else token
    named = {PurePosixPath(one.path).name: one for one in source.each()}
    name = PurePosixPath(source.path).name
    files = {
        part: HttpFile(source_address(one, token=token, endpoint=endpoint), one, stopped=stopped)
        for part, one in named.items()
        if is_shard(part) or (part == name and not is_index(part))
    }

    def opened(part: str) -> contextlib.closing[BinaryIO]:
        return contextlib.closing(cast(BinaryIO, BlockFile(files[part], budget=_LONGEST_HEADER)))

    if name in files:
        with opened(name) as file:
            return StreamedSafetensors(source, files, read_tensors(file, name, opened, ()))
    index = io.BytesIO(
        fetch_pinned(named[name], limit=_LONGEST_HEADER, token=token, endpoint=endpoint, stopped=stopped)
    )
    return StreamedSafetensors(source, files, read_tensors(index, name, opened, files))

"""A .pth that stays where it is: its tensors are fetched by ranges (see prefetched.py).

The file's list of tensors says where each record lies (see pickled.py). In an archive, a record's values follow a
header whose length only the header itself tells, so a record is fetched header and all.

What is checked, since the sha256 of a whole file cannot be without reading all of it in order: every answer's version,
size and place (see net/http_file.py), and the CRC-32 of every record that passes from its first byte to its last.
A record that no single tensor covers (a storage that several tensors share, a view of something larger) and a record
without a CRC-32 (torch can be told not to compute it, and files before PyTorch 1.6 have none) rest on version, size
and place alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

import torch

from ggufy.core.errors import CannotStream, SourceError
from ggufy.core.source import Source
from ggufy.formats.checkpoint import DTYPES, span_of
from ggufy.formats.pickled import LOCAL_HEADER, LONGEST_NAMES, Archive, Record, read_archive
from ggufy.formats.prefetched import Part, PrefetchedTensors, parts_of
from ggufy.formats.tensor_file import WantedTensor
from ggufy.net.http_file import BlockFile, HttpFile
from ggufy.net.http_get import source_address
from ggufy.system.clock import never

_LONGEST_INDEX = 64 << 20  # bytes; 2,000 tensors take 0.5 MB


class StreamedCheckpoint(PrefetchedTensors):
    """The tensors of a remote .pth. Made by `open_streamed`."""

    def __init__(self, file: HttpFile, archive: Archive, source: Source):
        shapes = {name: tensor.shape for name, tensor in archive.tensors.items()}
        dtypes = {name: DTYPES[tensor.dtype] for name, tensor in archive.tensors.items()}
        super().__init__(source, [file], shapes, dtypes)
        self._file, self._archive = file, archive
        self._data_starts: dict[str, int] = {}  # by key

    def _parts(self, want: WantedTensor) -> Iterator[Part]:
        tensor = self._archive.tensors[want.name]
        record = self._archive.records[tensor.key]
        low, high = span_of(tensor)
        if high - low == record.size:
            start = record.begin
            stop = min(record.end, start + LOCAL_HEADER + LONGEST_NAMES + record.size)
        else:
            data = self._data_start(tensor.key, record)
            start, stop = data + low, data + high
        return parts_of(self._file, start, stop)

    def _data_start(self, key: str, record: Record) -> int:
        if key not in self._data_starts:
            head = self._file.read(record.begin, min(record.end, record.begin + LOCAL_HEADER))
            self._data_starts[key] = record.begin + record.lead(head, self.name)
        return self._data_starts[key]

    def _in_order(self, name: str) -> bool:
        return self._archive.tensors[name].contiguous

    def _whole(self, name: str, values: torch.Tensor) -> torch.Tensor:
        tensor = self._archive.tensors[name]
        return values.as_strided(tensor.shape, tensor.strides)

    def _data(self, name: str, pieces: Iterator[bytearray]) -> Iterator[memoryview]:
        """The data of a tensor's span, without what the archive has around it, checked against the CRC-32."""
        tensor = self._archive.tensors[name]
        record = self._archive.records[tensor.key]
        low, high = span_of(tensor)
        if high - low < record.size:
            yield from (memoryview(piece) for piece in pieces)
            return
        skip, left, crc = -1, record.size, 0
        for piece in pieces:
            if skip < 0:
                skip = record.lead(piece, self.name)
            data = memoryview(piece)[skip : skip + left]
            skip = max(0, skip - len(piece))
            left -= len(data)
            crc = zlib.crc32(data, crc)
            if left == 0 and record.crc not in (0, crc):
                raise SourceError(
                    "record {key} of {name} arrived damaged (its CRC-32 is another): {AGAIN}, it continues.",
                    key=tensor.key,
                    name=self.name,
                )
            if data:
                yield data


def open_streamed(
    source: Source,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    stopped: Callable[[], bool] = never,
) -> StreamedCheckpoint:
    """Reads the list of tensors of a remote .pth, some hundred kilobytes in a few requests.

    Raises CannotStream if the file has to be downloaded first, CheckpointError for what `open_checkpoint` refuses,
    SourceError when it cannot be had, Cancelled.
    """
    if not source.can_stream:
        raise CannotStream("{path} cannot be checked piece by piece.", path=source.path)
    address = source_address(source, token=None if source.url else token, endpoint=endpoint)
    file = HttpFile(address, source, stopped=stopped)
    archive = read_archive(cast(BinaryIO, BlockFile(file, budget=_LONGEST_INDEX)), source.path.rpartition("/")[2])
    return StreamedCheckpoint(file, archive, source)

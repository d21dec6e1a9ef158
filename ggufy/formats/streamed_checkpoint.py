"""A .pth that stays where it is: its tensors are fetched by ranges (see prefetched.py).

The archive's directory, at its end, and its list of tensors say where each record lies; a record's values follow its
local header, whose length only the header itself tells, so a record is fetched header and all.

What is checked, since the sha256 of a whole file cannot be without reading all of it in order: every answer's version,
size and place (see net/http_file.py), and the CRC-32 of every record that passes from its first byte to its last.
A record that no single tensor covers (a storage that several tensors share, a view of something larger) and a record
whose CRC-32 torch was told not to compute (it is 0 then) rest on version, size and place alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

import torch

from ggufy.core.errors import CannotStream, CheckpointError, SourceError
from ggufy.core.source import Source
from ggufy.formats.pickle_machine import PickledTensor
from ggufy.formats.pickled import Archive, Record, read_archive
from ggufy.formats.prefetched import TORCH_DTYPES, Part, PrefetchedTensors, parts_of
from ggufy.formats.tensor_file import WantedTensor
from ggufy.net.http_file import BlockFile, HttpFile
from ggufy.net.http_get import source_address
from ggufy.system.clock import never

_LONGEST_INDEX = 64 << 20  # bytes; 2,000 tensors take 0.5 MB
_LOCAL_HEADER, _LONGEST_NAMES = 30, 2 * 65535  # of a zip entry: before its name, and its name and extra field


class StreamedCheckpoint(PrefetchedTensors):
    """The tensors of a remote .pth. Made by `open_streamed`."""

    def __init__(self, file: HttpFile, archive: Archive, source: Source):
        shapes = {name: tensor.shape for name, tensor in archive.tensors.items()}
        dtypes = {name: TORCH_DTYPES[tensor.dtype] for name, tensor in archive.tensors.items()}
        super().__init__(source, [file], shapes, dtypes)
        self._file, self._archive = file, archive
        self._data_starts: dict[str, int] = {}  # by key

    def _parts(self, want: WantedTensor) -> Iterator[Part]:
        tensor = self._archive.tensors[want.name]
        record = self._archive.records[tensor.key]
        low, high = _span(tensor)
        if high - low == record.size:
            start = record.begin
            stop = min(record.end, start + _LOCAL_HEADER + _LONGEST_NAMES + record.size)
        else:
            data = self._data_start(tensor.key, record)
            start, stop = data + low, data + high
        return parts_of(self._file, start, stop)

    def _data_start(self, key: str, record: Record) -> int:
        if key not in self._data_starts:
            header = self._file.read(record.begin, record.begin + _LOCAL_HEADER)
            self._data_starts[key] = record.begin + self._header_size(header, record)
        return self._data_starts[key]

    def _header_size(self, header: bytearray, record: Record) -> int:
        """Bytes of a record's local header, its name and extra field included."""
        size = _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if header[:4] != b"PK\x03\x04" or record.begin + size + record.size > record.end:
            raise CheckpointError(
                "{name} is damaged (a record's header makes no sense): choose another one.", name=self.name
            )
        return size

    def _in_order(self, name: str) -> bool:
        return self._archive.tensors[name].contiguous

    def _whole(self, name: str, values: torch.Tensor) -> torch.Tensor:
        tensor = self._archive.tensors[name]
        return values.as_strided(tensor.shape, tensor.strides)

    def _data(self, name: str, pieces: Iterator[bytearray]) -> Iterator[memoryview]:
        """The data of a tensor's span, without what the archive has around it, checked against the CRC-32."""
        tensor = self._archive.tensors[name]
        record = self._archive.records[tensor.key]
        low, high = _span(tensor)
        if high - low < record.size:
            yield from (memoryview(piece) for piece in pieces)
            return
        skip, left, crc = -1, record.size, 0
        for piece in pieces:
            if skip < 0:
                skip = self._header_size(piece, record)
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


def _span(tensor: PickledTensor) -> tuple[int, int]:
    """First byte of a tensor within its record, and the byte after its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    return tensor.offset * tensor.width, (tensor.offset + last + 1) * tensor.width

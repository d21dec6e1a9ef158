"""A .pth that stays where it is: its tensors are fetched by ranges, a few pieces ahead of whoever uses them.

The file's list of tensors says where each record lies (see pickled.py). In an archive, a record's values follow a
header whose length only the header itself tells, so a record is fetched header and all. A few threads fetch
pieces of PIECE bytes; at most AHEAD bytes wait to be used. Nothing is written to the disk.

What is checked, since the sha256 of a whole file cannot be without reading all of it in order: every answer's version,
size and place (see net/http_file.py), and the CRC-32 of every record that passes from its first byte to its last.
A record that no single tensor covers (a storage that several tensors share, a view of something larger) and a record
without a CRC-32 (torch can be told not to compute it, and files before PyTorch 1.6 have none) rest on version, size
and place alone.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, cast

import torch

from ggufy.core.errors import CannotStream, SourceError
from ggufy.core.source import Source
from ggufy.formats.checkpoint import DTYPES, span_of
from ggufy.formats.pickle_machine import PickledTensor
from ggufy.formats.pickled import LOCAL_HEADER, LONGEST_NAMES, Archive, Record, read_archive
from ggufy.formats.tensor_file import WantedTensor
from ggufy.net.http_file import BlockFile, HttpFile
from ggufy.net.http_get import source_address
from ggufy.system.clock import never

PIECE = 8 << 20  # bytes of one request
AHEAD = 48 << 20  # bytes asked for and not used yet
READERS = 4  # threads that fetch: one connection seldom fills the line, and vectors cost a round trip each
_MOST_WAITING = 64  # pieces; most tensors are vectors, far smaller than PIECE
_LONGEST_INDEX = 64 << 20  # bytes; 2,000 tensors take 0.5 MB


class StreamedCheckpoint:
    """The tensors of a remote .pth. Made by `open_streamed`.

    `shapes` and `dtypes` are known at once; `received` and `requests` count bytes and answers, the index included.
    """

    def __init__(self, file: HttpFile, archive: Archive, source: Source):
        self.name, self.source = source.path.rpartition("/")[2], source
        self.shapes = {name: tensor.shape for name, tensor in archive.tensors.items()}
        self.dtypes = {name: DTYPES[tensor.dtype] for name, tensor in archive.tensors.items()}
        self._file, self._archive = file, archive
        self._data_starts: dict[str, int] = {}  # by key

    @property
    def received(self) -> int:
        return self._file.received

    @property
    def requests(self) -> int:
        return self._file.requests

    def stream(self, wanted: Iterable[WantedTensor]) -> Generator[torch.Tensor, None, None]:
        """The tensors in the order given, once; pieces of a tensor together are its values in order. To be closed.

        Raises SourceError when a record arrives damaged or cannot be had, else as `HttpFile.read`.
        """
        first, second = itertools.tee(wanted)
        with contextlib.closing(self._prefetched(part for want in first for part in self._parts(want))) as pieces:
            for want in second:
                count = sum(1 for _ in self._parts(want))
                yield from self._values(want, itertools.islice(pieces, count))

    def _prefetched(self, parts: Iterator[tuple[int, int]]) -> Generator[bytearray, None, None]:
        """The bytes of each part of the file, in order."""
        waiting: collections.deque[tuple[int, Future[bytearray]]] = collections.deque()
        pool, sizes = ThreadPoolExecutor(READERS, "ggufy-reader"), 0
        try:
            for start, stop in parts:
                while waiting and (sizes + stop - start > AHEAD or len(waiting) >= _MOST_WAITING):
                    size, piece = waiting.popleft()
                    yield self._file.wait(piece)
                    del piece  # its bytes are the user's now
                    sizes -= size
                waiting.append((stop - start, pool.submit(self._file.read, start, stop)))
                sizes += stop - start
            while waiting:
                yield self._file.wait(waiting.popleft()[1])
        finally:
            self._file.close()
            pool.shutdown(wait=False, cancel_futures=True)

    def _parts(self, want: WantedTensor) -> Iterator[tuple[int, int]]:
        """The parts of the file to fetch for one tensor."""
        tensor = self._archive.tensors[want.name]
        record = self._archive.records[tensor.key]
        low, high = span_of(tensor)
        if high - low == record.size:
            start = record.begin
            stop = min(record.end, start + LOCAL_HEADER + LONGEST_NAMES + record.size)
        else:
            data = self._data_start(tensor.key, record)
            start, stop = data + low, data + high
        return ((at, min(at + PIECE, stop)) for at in range(start, stop, PIECE))

    def _data_start(self, key: str, record: Record) -> int:
        if key not in self._data_starts:
            head = self._file.read(record.begin, min(record.end, record.begin + LOCAL_HEADER))
            self._data_starts[key] = record.begin + record.lead(head, self.name)
        return self._data_starts[key]

    def _values(self, want: WantedTensor, pieces: Iterator[bytearray]) -> Iterator[torch.Tensor]:
        """One tensor from the bytes of its parts."""
        tensor = self._archive.tensors[want.name]
        in_pieces = want.pieces and tensor.contiguous
        dtype = self.dtypes[want.name]
        kept = bytearray()
        for data in self._data(tensor, pieces):
            if in_pieces:
                full = data if not kept else memoryview(kept + data)
                usable = len(full) // tensor.width * tensor.width
                kept = bytearray(full[usable:])
                if usable:
                    yield torch.frombuffer(full, dtype=torch.uint8, count=usable).view(dtype)
            else:
                kept += data
        if not in_pieces:
            values = torch.frombuffer(kept, dtype=torch.uint8).view(dtype)
            whole = values.as_strided(tensor.shape, tensor.strides)
            yield whole.reshape(-1) if want.pieces else whole

    def _data(self, tensor: PickledTensor, pieces: Iterator[bytearray]) -> Iterator[memoryview]:
        """The data of a tensor's span, without what the archive has around it, checked against the CRC-32."""
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

"""What every model that stays where it is has in common, whatever its container: its tensors are fetched by ranges, a
few pieces ahead of whoever uses them.

A few threads fetch pieces of PIECE bytes; at most AHEAD bytes wait to be used. Nothing is written to the disk. A
container (streamed_checkpoint.py, streamed_safetensors.py) says which parts of which file to fetch for a tensor, and
makes values of their bytes.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from ggufy.core.source import Source
from ggufy.formats.tensor_file import WantedTensor
from ggufy.net.http_file import HttpFile

PIECE = 8 << 20  # bytes of one request
AHEAD = 48 << 20  # bytes asked for and not used yet
READERS = 4  # threads that fetch: one connection seldom fills the line, and vectors cost a round trip each
_MOST_WAITING = 64  # pieces; most tensors are vectors, far smaller than PIECE


class Part(NamedTuple):
    """Bytes of a file that are fetched at once."""

    file: HttpFile
    start: int
    stop: int


class PrefetchedTensors(ABC):
    """The tensors of a remote model.

    `shapes` and `dtypes` are known at once; `received` and `requests` count bytes and answers, lists of tensors
    included.
    """

    def __init__(
        self,
        source: Source,
        files: Sequence[HttpFile],
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
    ):
        self.name, self.source = source.path.rpartition("/")[2], source
        self.shapes, self.dtypes = dict(shapes), dict(dtypes)
        self._files = files

    @property
    def received(self) -> int:
        return sum(file.received for file in self._files)

    @property
    def requests(self) -> int:
        return sum(file.requests for file in self._files)

    def stream(self, wanted: Iterable[WantedTensor]) -> Generator[torch.Tensor, None, None]:
        """The tensors in the order given, once; pieces of a tensor together are its values in order. To be closed.

        Raises SourceError when something arrives damaged or cannot be had, else as `HttpFile.read`.
        """
        first, second = itertools.tee(wanted)
        with contextlib.closing(self._prefetched(part for want in first for part in self._parts(want))) as pieces:
            for want in second:
                count = sum(1 for _ in self._parts(want))
                yield from self._values(want, itertools.islice(pieces, count))

    @abstractmethod
    def _parts(self, want: WantedTensor) -> Iterator[Part]:
        """What to fetch for one tensor."""

    @abstractmethod
    def _data(self, name: str, pieces: Iterator[bytearray]) -> Iterator[memoryview]:
        """The values of one tensor as they are stored, from the bytes of its parts. Raises SourceError for damage."""

    def _in_order(self, name: str) -> bool:
        """Whether the values of a tensor are stored in the order of its shape."""
        return True

    def _whole(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """One tensor from all its values as they are stored."""
        return values.view(self.shapes[name])

    def _prefetched(self, parts: Iterator[Part]) -> Generator[bytearray, None, None]:
        """The bytes of each part, in order."""
        waiting: collections.deque[tuple[Part, Future[bytearray]]] = collections.deque()
        pool, sizes = ThreadPoolExecutor(READERS, "ggufy-reader"), 0
        try:
            for part in parts:
                size = part.stop - part.start
                while waiting and (sizes + size > AHEAD or len(waiting) >= _MOST_WAITING):
                    before, piece = waiting.popleft()
                    yield before.file.wait(piece)
                    del piece  # its bytes are the user's now
                    sizes -= before.stop - before.start
                waiting.append((part, pool.submit(part.file.read, part.start, part.stop)))
                sizes += size
            while waiting:
                part, piece = waiting.popleft()
                yield part.file.wait(piece)
        finally:
            for file in self._files:
                file.close()
            pool.shutdown(wait=False, cancel_futures=True)

    def _values(self, want: WantedTensor, pieces: Iterator[bytearray]) -> Iterator[torch.Tensor]:
        """One tensor from the bytes of its parts."""
        dtype, kept = self.dtypes[want.name], bytearray()
        in_pieces = want.pieces and self._in_order(want.name)
        for data in self._data(want.name, pieces):
            if in_pieces:
                full = data if not kept else memoryview(kept + data)
                usable = len(full) // dtype.itemsize * dtype.itemsize
                kept = bytearray(full[usable:])
                if usable:
                    yield torch.frombuffer(full, dtype=torch.uint8, count=usable).view(dtype)
            else:
                kept += data
        if not in_pieces:
            whole = self._whole(want.name, torch.frombuffer(kept, dtype=torch.uint8).view(dtype))
            yield whole.reshape(-1) if want.pieces else whole


def parts_of(file: HttpFile, start: int, stop: int) -> Iterator[Part]:
    """A range of a file in parts that are fetched at once."""
    return (Part(file, at, min(at + PIECE, stop)) for at in range(start, stop, PIECE))

"""A safetensors model that stays where it is, in one file or several (see prefetched.py).

What is checked of what arrives: its version, size and place (see net/http_file.py), and nothing more. The format has
no checksums, and the sha256 of a whole file cannot be compared without reading all of it in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ggufy.core.source import Source
from ggufy.formats.checkpoint import DTYPES
from ggufy.formats.prefetched import Part, PrefetchedTensors, parts_of
from ggufy.formats.safetensors import StoredTensor
from ggufy.formats.tensor_file import WantedTensor
from ggufy.net.http_file import HttpFile

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

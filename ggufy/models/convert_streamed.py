"""Remote files of tensors to GGUF without those ever being on the disk, taken up again where that was stopped.

Tensors are fetched in the order of the GGUF and written to `<target>.part` from front to back. A journal beside it,
`<target>.journal.part`, starts with a line that stands for everything that decides the bytes (the source, the GGUF's
header and what else the weights are made with), and gets another for each tensor that is whole: the SHA-256 of the
file up to its end. The next run checks the part against the journal, keeps the tensors that are whole, and fetches
from the first that is not. Both files stay when the network, the disk or the process fails, and go when the source
itself is at fault.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from ggufy.core.errors import CannotStream, CheckpointError, SourceChanged
from ggufy.formats.tensor_file import StreamedTensors, WantedTensor
from ggufy.models.architecture import TensorPlan
from ggufy.models.convert import (
    PIECE_VALUES,
    TURNED,
    Conversion,
    Piece,
    Progress,
    one_thread,
    padded,
    padding,
    pieces_of,
    warn_about_leftovers,
    write_tensors,
)
from ggufy.models.origin import Origin, Origins, shapes_of
from ggufy.system.files import PART_SUFFIX, BackgroundWriter, Buffer, disk_errors, finish, part_of

logger = logging.getLogger(__name__)
_LINE = 65  # bytes of a journal's line: 64 hex digits and its end
_BLOCK = 4 << 20


def convert_streamed(
    file: StreamedTensors,
    origins: Origins,
    target: Path,
    *,
    outtype: str = "f16",
    vocab: Path | None = None,
    name: str,
    rescale_every: int | None = None,
    mark: str = "",
    chat_format: str = "",
    progress: Progress | None = None,
) -> str:
    """As `ggufy.models.convert.convert_tensors`, and with the same bytes, from a file that is fetched by ranges.

    Gives the file's SHA-256 in hex digits. `mark` stands for what `origins` have from elsewhere than the file, such as
    an adapter's digest and scale. `progress` starts with the bytes that an earlier run has left. Raises what
    `convert_tensors` and `stream` raise. Nobody else may write the same target meanwhile.
    """
    shapes = shapes_of(origins)
    conversion = Conversion.of(
        shapes, outtype=outtype, vocab=vocab, name=name, rescale_every=rescale_every, chat_format=chat_format
    )
    warn_about_leftovers(file.name, shapes, conversion.model)
    total = sum(conversion.size(plan) for plan in conversion.plans)

    def tell(done: int) -> None:
        if progress is not None:
            progress(min(done, total), total)

    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _Part(target, file.source.key + mark, _header(conversion, target), _spans(conversion))
        try:
            part.open(tell)
            values = _Values(file, origins, conversion.plans[part.whole :])
            with part, one_thread(), contextlib.closing(values):
                if part.whole:
                    logger.info("%s: %d of %d tensors are here", target.name, part.whole, len(conversion.plans))
                with BackgroundWriter(part) as writer:
                    write_tensors(writer, conversion, values.of, progress, whole=part.whole)
            finish(part.path, target)
            return part.digest.hexdigest()
        except (CheckpointError, CannotStream, SourceChanged):
            part.path.unlink(missing_ok=True)
            raise
        finally:
            if not part.path.exists():
                part.journal.unlink(missing_ok=True)


def _header(conversion: Conversion, target: Path) -> bytes:
    """Everything before the first tensor's values."""
    file = target.with_name(f"{target.name}.header{PART_SUFFIX}")
    try:
        conversion.write_header(file)
        header = file.read_bytes()
    finally:
        file.unlink(missing_ok=True)
    return header + padding(len(header))


def _spans(conversion: Conversion) -> list[int]:
    """Bytes of each tensor in the GGUF, its padding included."""
    return [padded(conversion.size(plan)) for plan in conversion.plans]


class _Values:
    """The values of the tensors, in the order of the GGUF, as they arrive."""

    def __init__(self, file: StreamedTensors, origins: Origins, plans: Sequence[TensorPlan]):
        self._shapes, self._origins = file.shapes, origins
        self._stream = file.stream(self._wanted(plans))
        self._kept: tuple[tuple[str, ...], list[torch.Tensor]] = ((), [])  # what the latest tensor was made from

    def _wanted(self, plans: Iterable[TensorPlan]) -> Iterator[WantedTensor]:
        kept: tuple[str, ...] = ()
        for plan in plans:
            for origin in (self._origins[name] for name in plan.sources):
                if origin.make is None:
                    yield WantedTensor(origin.sources[0], pieces=plan.layout not in TURNED)
                elif origin.sources != kept:
                    yield from (WantedTensor(source, pieces=False) for source in origin.sources)
                    kept = origin.sources

    def of(self, plan: TensorPlan) -> Iterator[Piece]:
        """To be called for each tensor in turn, and used up."""
        for name in plan.sources:
            origin = self._origins[name]
            if origin.make is not None:
                yield from pieces_of(origin.make(*self._whole(origin)), name, plan)
            elif plan.layout in TURNED:
                yield from pieces_of(next(self._stream), name, plan)
            else:
                yield from self._pieces(origin.sources[0], name)

    def _whole(self, origin: Origin) -> list[torch.Tensor]:
        """The tensors that one is made from; those of the one before it are not fetched again."""
        if self._kept[0] != origin.sources:
            self._kept = (origin.sources, [next(self._stream) for _ in origin.sources])
        return self._kept[1]

    def _pieces(self, source: str, name: str) -> Iterator[Piece]:
        left = torch.Size(self._shapes[source]).numel()
        while left:
            values = next(self._stream).reshape(-1)
            left -= values.numel()
            for first in range(0, values.numel(), PIECE_VALUES):
                yield name, values[first : first + PIECE_VALUES]

    def close(self) -> None:
        self._stream.close()


class _Part:
    """The file that is being made, and its journal; a context manager once it is open.

    `whole` is how many spans (tensors) are there and noted, `digest` the SHA-256 of what is there.
    """

    def __init__(self, target: Path, source: str, header: bytes, spans: Sequence[int]):
        self.path, self.journal = part_of(target), target.with_name(f"{target.name}.journal{PART_SUFFIX}")
        self.whole, self.digest = 0, hashlib.sha256(header)
        self._header, self._spans = header, spans
        self._mark = hashlib.sha256(source.encode() + header).hexdigest()
        self._inside = 0  # bytes that are there of the span that is being written
        self._file: BinaryIO
        self._notes: BinaryIO

    def open(self, tell: Callable[[int], None]) -> None:
        """Keeps what is whole, drops the rest; `tell` gets the bytes of tensors that are checked."""
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        self._notes = self.journal.open("r+b" if self.journal.exists() else "w+b")
        try:
            self.whole = self._count(tell)
            self._notes.truncate((1 + self.whole) * _LINE if self.whole else 0)
            self._notes.seek(0, os.SEEK_END)
            self._file.truncate(len(self._header) + sum(self._spans[: self.whole]) if self.whole else 0)
            self._file.seek(0, os.SEEK_END)
            if not self.whole:
                self._file.write(self._header)
                self._note(self._mark)
        except BaseException:
            self._close()
            raise

    def _count(self, tell: Callable[[int], None]) -> int:
        """How many tensors are whole."""
        lines = self._notes.read(_LINE * (1 + len(self._spans)))
        noted = [lines[at : at + _LINE].decode("ascii", "replace") for at in range(0, len(lines) - _LINE + 1, _LINE)]
        if noted[:1] != [f"{self._mark}\n"] or self._file.read(len(self._header)) != self._header:
            return 0
        done, digest = 0, self.digest.copy()
        for whole, (line, span) in enumerate(zip(noted[1:], self._spans, strict=False)):
            for at in range(0, span, _BLOCK):
                digest.update(self._file.read(min(_BLOCK, span - at)))
                tell(done + at)
            if line != f"{digest.hexdigest()}\n":
                logger.warning("%s: tensor %d is not as it was written: fetched again", self.path.name, whole)
                return whole
            done, self.digest = done + span, digest.copy()
        return len(noted) - 1

    def write(self, block: Buffer, /) -> None:
        """Adds a block, which never reaches over the end of a span; notes the span that it ends."""
        self._file.write(block)
        self.digest.update(block)
        self._inside += len(block)
        if self._inside and self._inside == self._spans[self.whole]:
            self._file.flush()
            self._note(self.digest.hexdigest())
            self.whole, self._inside = self.whole + 1, 0

    def _note(self, digest: str) -> None:
        self._notes.write(f"{digest}\n".encode())
        self._notes.flush()

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        self._file.close()
        self._notes.close()

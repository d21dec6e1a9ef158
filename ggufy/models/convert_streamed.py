"""Remote files of tensors to GGUF without those ever being on the disk, taken up again where that was stopped.

Tensors are fetched in the order of the GGUF and written from front to back to a part with a journal
(system/journaled_part.py), which stands for the source, the GGUF's header and what else the weights are made with. The
next run checks the part against the journal, keeps the tensors that are whole, and fetches from the first that is not.
Both files stay when the network, the disk or the process fails, and go when the source itself is at fault.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from ggufy.core.errors import CannotStream, CheckpointError, SourceChanged
from ggufy.formats.tensor_file import StreamedTensors, WantedTensor
from ggufy.formats.torch_threads import one_thread
from ggufy.models.architecture import TensorPlan
from ggufy.models.convert import (
    PIECE_VALUES,
    TURNED,
    Conversion,
    Piece,
    Progress,
    padded,
    padding,
    pieces_of,
    tell_about,
    write_tensors,
)
from ggufy.models.origin import Origin, Origins, shapes_of
from ggufy.models.rwkv5 import upgraded
from ggufy.system.files import PART_SUFFIX, BackgroundWriter, disk_errors, finish
from ggufy.system.journaled_part import JournaledPart

logger = logging.getLogger(__name__)


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
    conversion = Conversion.of(
        shapes_of(origins),
        outtype=outtype,
        vocab=vocab,
        name=name,
        rescale_every=rescale_every,
        chat_format=chat_format,
    )
    origins = upgraded(origins)
    tell_about(file.name, origins, conversion.model)
    total = sum(conversion.size(plan) for plan in conversion.plans)

    def tell(done: int) -> None:
        if progress is not None:
            progress(min(done, total), total)

    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = JournaledPart(target, file.source.key + mark, _header(conversion, target), _spans(conversion))
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

"""An RWKV's tensors to a file of rwkv.cpp of the type FP32 or FP16, with the bytes of its own converter: directly,
with one piece of one tensor in memory at a time, or one tensor where its values are made from others.

What rwkv.cpp's converter does without a word is refused or put right here: rwkv.cpp's order of the mixes of RWKV-7,
whatever the order of the file; tensors that its loader ends the process over; values that FP16 cannot hold.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ggufy.core.errors import CheckpointError, UsageError
from ggufy.formats.rwkvcpp import Record, RwkvcppHead
from ggufy.formats.tensor_file import MappedTensors, StreamedTensors, WantedTensor
from ggufy.models.architecture import TIME_STATE, Shapes, brief
from ggufy.models.origin import Origin, Origins, shapes_of
from ggufy.rwkvcpp.tensors import Planned, RwkvcppModel, measure, unused
from ggufy.rwkvcpp.writing import Progress, write_file
from ggufy.rwkvcpp.writing import write_skeleton as write_hollow
from ggufy.system.files import Buffer

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
PIECE_VALUES = 256 << 10  # as in models/convert.py
TYPES = ("FP32", "FP16")
_FP16_LIMIT = 65520.0  # the smallest magnitude that rounds to infinity


def convert_tensors(
    file: MappedTensors,
    origins: Origins,
    target: Path,
    *,
    type_name: str,
    key: str = "",
    progress: Progress | None = None,
) -> str:
    """Writes the model whose tensors have these origins in `file`; gives the SHA-256 of `target` in hex digits, which
    appears whole or not at all.

    `type_name` is FP32 or FP16. `key` stands for the file's content and all that `origins` have from elsewhere: with
    one, the next run goes on where this one ended. Raises CheckpointError for what is no RWKV that rwkv.cpp can run,
    and for values that are not finite or too large; UsageError for another type; DiskError.
    """
    return _convert(_Mapped(file), file, origins, target, type_name, key, progress)


def convert_streamed(
    file: StreamedTensors,
    origins: Origins,
    target: Path,
    *,
    type_name: str,
    mark: str = "",
    progress: Progress | None = None,
) -> str:
    """The same from a file that is fetched by ranges; `mark` stands for what `origins` have from elsewhere. Raises
    what `stream` raises too."""
    return _convert(_Streamed(file, origins), file, origins, target, type_name, file.source.key + mark, progress)


def write_skeleton(shapes: Shapes, target: Path, *, type_name: str) -> None:
    """Writes what `convert_tensors` would write for a model with these tensors, with a hole for every tensor's values:
    of the exact size, on almost no disk. Raises CheckpointError and UsageError."""
    write_hollow(target, head_of(shapes, type_name))


def head_of(shapes: Shapes, type_name: str) -> RwkvcppHead:
    """What the file of a model with these tensors (BlinkDL's names to torch shapes) will say about itself. Raises
    CheckpointError and UsageError."""
    _check_type(type_name)
    model = measure(shapes)
    return model.head(model.ordered(shapes), type_name)


def size_of(shapes: Shapes, type_name: str) -> int:
    """Its exact size, bytes."""
    return head_of(shapes, type_name).file_size


def _check_type(type_name: str) -> None:
    if type_name not in TYPES:
        raise UsageError(
            "a file of rwkv.cpp starts as {types}, not as {type}: choose one of these.",
            types=" / ".join(TYPES),
            type=repr(type_name),
        )


def _convert(
    reader: _Reader,
    file: MappedTensors | StreamedTensors,
    origins: Origins,
    target: Path,
    type_name: str,
    key: str,
    progress: Progress | None,
) -> str:
    from ggufy.formats.torch_threads import one_thread  # noqa: PLC0415 - loads torch, and a head needs none

    _check_type(type_name)
    model = measure(shapes_of(origins))
    _tell_about(file.name, origins, model)
    planned = model.ordered(origins)
    head = model.head(planned, type_name)

    def values(records: Sequence[Record]) -> Generator[Buffer, None, None]:
        wanted = planned[len(planned) - len(records) :]
        return _values(reader, origins, wanted, records)

    with one_thread():
        return write_file(target, head, values, key=key, progress=progress)


def _tell_about(name: str, origins: Origins, model: RwkvcppModel) -> None:
    left_out = unused(origins, model)
    if any(one.endswith(TIME_STATE) for one in left_out):
        logger.warning("%s: att.time_state is a tuned state, not a weight: left out", name)
    if rest := [one for one in left_out if not one.endswith(TIME_STATE)]:
        logger.warning("%s: rwkv.cpp reads no tensors %s: left out", name, ", ".join(map(brief, rest[:8])))


# ---- values


class _Reader(Protocol):
    """Gives each source of the planned tensors, in their order."""

    def begin(self, planned: Sequence[Planned]) -> None:
        """Says what will be asked for."""

    def whole(self, name: str) -> torch.Tensor:
        """A tensor of the file."""

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Its values in order, in one piece or several."""

    def end(self, names: Sequence[str]) -> None:
        """These are done with."""

    def close(self) -> None: ...


class _Mapped:
    """Of a file on this machine."""

    def __init__(self, file: MappedTensors):
        self._file = file

    def begin(self, planned: Sequence[Planned]) -> None:
        pass

    def whole(self, name: str) -> torch.Tensor:
        return self._file.tensor(name)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        yield self._file.tensor(name)

    def end(self, names: Sequence[str]) -> None:
        for name in names:
            self._file.release(name)

    def close(self) -> None:
        pass


class _Streamed:
    """Of a file that is fetched by ranges."""

    def __init__(self, file: StreamedTensors, origins: Origins):
        self._file, self._origins = file, origins

    def begin(self, planned: Sequence[Planned]) -> None:
        self._stream = self._file.stream(self._wanted(planned))

    def _wanted(self, planned: Sequence[Planned]) -> Iterator[WantedTensor]:
        for one in planned:
            for origin in map(self._origins.__getitem__, one.sources):
                yield from (WantedTensor(name, pieces=_is_plain(one, origin)) for name in origin.sources)

    def whole(self, name: str) -> torch.Tensor:
        return next(self._stream)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        left = 1
        for size in self._file.shapes[name]:
            left *= size
        while left:
            piece = next(self._stream)
            left -= piece.numel()
            yield piece

    def end(self, names: Sequence[str]) -> None:
        pass

    def close(self) -> None:
        self._stream.close()


def _is_plain(one: Planned, origin: Origin) -> bool:
    """Its values are those of one tensor of the source, in their order."""
    return not one.change and origin.make is None


def _values(
    reader: _Reader, origins: Origins, planned: Sequence[Planned], records: Sequence[Record]
) -> Generator[Buffer, None, None]:
    reader.begin(planned)
    try:
        for one, record in zip(planned, records, strict=True):
            for values in _made(reader, origins, one):
                flat = values.reshape(-1)
                for first in range(0, flat.numel(), PIECE_VALUES):
                    yield packed_values(flat[first : first + PIECE_VALUES], record)
            reader.end([name for source in one.sources for name in origins[source].sources])
    finally:
        reader.close()


def _made(reader: _Reader, origins: Origins, one: Planned) -> Iterator[torch.Tensor]:
    """The values of one tensor of the file, in one piece or several."""
    from ggufy.models.outtype import largest_of  # noqa: PLC0415 - loads torch

    first = origins[one.sources[0]]
    if _is_plain(one, first):
        yield from reader.pieces(first.sources[0])
        return
    sources = []
    for source in one.sources:
        origin = origins[source]
        tensors = [reader.whole(name) for name in origin.sources]
        sources.append((origin.make(*tensors) if origin.make else tensors[0]).float().reshape(one.source_shape))
        largest_of(sources[-1], source)  # an infinite decay would become a sound 0
    yield changed(one, sources)


def changed(one: Planned, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the sources of a tensor, F32 of `one.source_shape` each, become; of any shape with the file's order."""
    return CHANGES[one.change](*sources) if one.change else sources[0]


def packed_values(piece: torch.Tensor, record: Record) -> Buffer:
    """Values of one dimension as they stand in the file. Raises CheckpointError if one is lost."""
    from ggufy.models.outtype import largest_of  # noqa: PLC0415 - loads torch

    values = piece.float()
    largest = largest_of(values, record.name)
    if record.type == "FP16":
        if largest >= _FP16_LIMIT:
            raise CheckpointError(
                "{name} holds {value}, which is too large for FP16: make FP32 files of it, or quantize from FP32.",
                name=record.name,
                value=f"{largest:.6g}",
            )
        values = values.half()
    if values.data_ptr() == piece.data_ptr():
        values = values.clone()  # a view on the mapping: its pages are let go of before it is written
    return values.contiguous().numpy().data.cast("B")


def _stacked(*sources: torch.Tensor) -> torch.Tensor:
    made = sources[0].new_empty((len(sources), *sources[0].shape))
    for at, source in enumerate(sources):
        made[at] = source
    return made


#: By the words of the table in tensors.py.
CHANGES: dict[str, Callable[..., torch.Tensor]] = {
    "minus_exp": lambda values: -values.exp(),
    "exp_minus_exp": lambda values: (-values.exp()).exp(),
    "exp": lambda values: values.exp(),
    "transposed": lambda values: values.transpose(-1, -2),
    "stacked": _stacked,
}

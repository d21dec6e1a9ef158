"""Adapters merged into an unquantized file of rwkv.cpp, with the bytes that merging them into the checkpoint and
converting that would give: the model's own tensors stay as they are, those of the adapters change as the converter
changes them, and what is merged is computed in F32.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy.core.errors import SourceError
from ggufy.formats.rwkvcpp import Record, read_head
from ggufy.models.origin import Origin, Origins, derived
from ggufy.rwkvcpp.convert import PIECE_VALUES, changed, packed_values
from ggufy.rwkvcpp.tensors import Planned, RwkvcppModel, check_file
from ggufy.rwkvcpp.writing import Progress, made_anew, write_file
from ggufy.system.files import Buffer

if TYPE_CHECKING:
    import torch

    from ggufy.formats.mapped_rwkvcpp import MappedRwkvcpp
    from ggufy.models.merge import OpenAdapter


def merge_into_file(
    source: Path,
    target: Path,
    adapters: Iterable[OpenAdapter],
    *,
    key: str = "",
    progress: Progress | None = None,
) -> str:
    """Writes the FP32 or FP16 file `source` with adapters merged into it, in their order, as `target`, which appears
    whole or not at all; gives its SHA-256 in hex digits.

    `key` stands for the content of the source and the adapters, see `write_file`. Raises SourceError for a quantized
    or damaged file, and for an adapter that does not fit; CheckpointError for values that are lost; DiskError.
    """
    from ggufy.formats.mapped_rwkvcpp import MappedRwkvcpp  # noqa: PLC0415 - loads torch
    from ggufy.formats.torch_threads import one_thread  # noqa: PLC0415
    from ggufy.models.merge import merge_adapters  # noqa: PLC0415

    head = read_head(source)
    model = check_file(head, source.name)
    with MappedRwkvcpp(source, head) as file, one_thread():
        before = origins_of_file(model)
        merged = merge_adapters(before, adapters)
        touched = {name for name, origin in merged.items() if origin is not before[name]}
        planned = {one.name: one for one in model.tensors()}

        def values(records: Sequence[Record]) -> Generator[Buffer, None, None]:
            for record in records:
                one = planned[record.name]
                made = file.tensor(one.name) if touched.isdisjoint(one.sources) else _made(file, merged, one)
                flat = made.reshape(-1)
                for first in range(0, flat.numel(), PIECE_VALUES):
                    yield packed_values(flat[first : first + PIECE_VALUES], record)
                file.release(one.name)

        types = {record.name: record.type for record in head.records.values()}
        return write_file(target, made_anew(head, head.type, types), values, key=key, progress=progress)


def origins_of_file(model: RwkvcppModel) -> dict[str, Origin]:
    """Where each of BlinkDL's tensors comes from in a file of rwkv.cpp. Of those that lost digits on their way into
    it, only an adapter's own values can take the place."""
    return {source: _origin(one, at) for one in model.tensors() for at, source in enumerate(one.sources)}


def _origin(one: Planned, at: int) -> Origin:
    record = Origin((one.name,), one.shape)
    match one.change:
        case "":
            return Origin((one.name,), one.source_shape)
        case "transposed":
            return derived(record, one.source_shape, lambda values: values.transpose(-1, -2))
        case "stacked":
            return derived(record, one.source_shape, lambda values: values[at])
    return Origin((), one.source_shape, partial(_lost, one.name))


def _lost(name: str) -> torch.Tensor:
    raise SourceError(
        "{name} is stored as an exponential, into which nothing can be merged: give the .pth that the file was made "
        "from.",
        name=name,
    )


def _made(file: MappedRwkvcpp, origins: Origins, one: Planned) -> torch.Tensor:
    sources = []
    for source in one.sources:
        origin = origins[source]
        tensors = [file.tensor(name) for name in origin.sources]
        sources.append((origin.make(*tensors) if origin.make else tensors[0]).float().reshape(one.source_shape))
    return changed(one, sources)

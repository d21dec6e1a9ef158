"""Files of tensors to GGUF, directly: nothing in between, one piece of one tensor in memory at a time, or one tensor
where it is made from others (origin.py).

The header (metadata, then the name, shape, type and offset of every tensor) is known from the shapes alone and is
written first; the weights follow in the same order, cast piece by piece and written where the header says. The same
header over a sparse file of the same size is the "skeleton" from which llama-quantize's dry run forecasts sizes.

Keys, names, types and values are those of llama.cpp's own converter, byte for byte in the tensors, but every
hyper-parameter comes from the shapes, and the chat template and what ends a turn are our own (metadata.py).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gguf import GGUFWriter

from ggufy.core.errors import UsageError
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.formats.tensor_file import MappedTensors
from ggufy.formats.torch_threads import one_thread
from ggufy.models import metadata
from ggufy.models.architecture import (
    INNER_TRANSPOSED,
    TIME_STATE,
    TRANSPOSED,
    Hyperparameters,
    Shapes,
    TensorPlan,
    brief,
)
from ggufy.models.chat_format import FORMATS, ChatFormat, RwkvFormat
from ggufy.models.chat_names import Official, official
from ggufy.models.layouts import origins_of
from ggufy.models.merge import OpenAdapter, merge_adapters
from ggufy.models.origin import Origins, shapes_of
from ggufy.models.outtype import OUT_TYPES, OutType, cast
from ggufy.models.registry import detect
from ggufy.models.rwkv5 import upgraded
from ggufy.models.vocab import vocab_for
from ggufy.system.files import BackgroundWriter, Digesting, partial

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Piece = tuple[str, torch.Tensor]  # about PIECE_VALUES values of a tensor of the GGUF, and the name of their source

ALIGNMENT = 32
PIECE_VALUES = 256 << 10  # A piece and its cast stay in a core's cache between the passes over them.

TURNED = (TRANSPOSED, INNER_TRANSPOSED)


def convert(
    source: Path,
    target: Path,
    *,
    outtype: str = "f16",
    vocab: Path | None = None,
    name: str | None = None,
    rescale_every: int | None = None,
    adapters: Iterable[OpenAdapter] = (),
    chat_format: str = "",
    progress: Progress | None = None,
) -> str:
    """Writes the checkpoint `source` (.pth), with adapters merged into it, as the GGUF `target`: see
    `convert_tensors`. Raises SourceError too, if an adapter does not fit."""
    with open_checkpoint(source) as checkpoint:
        return convert_tensors(
            checkpoint,
            merge_adapters(origins_of(checkpoint.shapes), adapters),
            target,
            outtype=outtype,
            vocab=vocab,
            name=name or source.stem,
            rescale_every=rescale_every,
            chat_format=chat_format,
            progress=progress,
        )


def convert_tensors(
    file: MappedTensors,
    origins: Origins,
    target: Path,
    *,
    outtype: str = "f16",
    vocab: Path | None = None,
    name: str,
    rescale_every: int | None = None,
    chat_format: str = "",
    progress: Progress | None = None,
) -> str:
    """Writes the model whose tensors have these origins in `file` as the GGUF `target`, which appears whole or not at
    all; gives its SHA-256 in hex digits.

    `outtype` (f16, bf16 or f32) is the type of the matrices; vectors and a few small matrices are always F32.
    `vocab` is a vocabulary file for a checkpoint that does not use World's. `rescale_every` divides the outputs of
    block i by 2^(i // rescale_every) (RWKV-6 only; None is 6, as in published files; 0 leaves the weights as they
    are). `chat_format` names one of FORMATS for an RWKV; empty: World's, and nothing of what an official name says, as
    in older files. `progress` gets the bytes of weights written and to be written.

    Raises CheckpointError for a wrong checkpoint, NaN or infinite weights, or values too large for `outtype`;
    VocabError if the vocabulary does not fit; DiskError if the disk does not take it.
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
    return write_base(target, conversion, lambda plan: _mapped(file, origins, plan), progress)


def write_base(
    target: Path,
    conversion: Conversion,
    pieces: Callable[[TensorPlan], Iterator[Piece]],
    progress: Progress | None = None,
) -> str:
    """Writes a whole GGUF, of which `pieces` gives the values of one tensor; gives its SHA-256 in hex digits."""
    with partial(target) as part:
        conversion.write_header(part)
        header = part.read_bytes()
        with part.open("wb") as file, one_thread():
            sink = Digesting(file)
            sink.write(header + padding(len(header)))
            with BackgroundWriter(sink) as writer:
                write_tensors(writer, conversion, pieces, progress)
    return sink.hexdigest()


def write_skeleton(
    shapes: Shapes,
    target: Path,
    *,
    outtype: str,
    vocab: Path | None,
    name: str,
    chat_format: str = "",
) -> None:
    """Writes the header that `convert` would write for a model with these tensors (see `shapes_of`), followed by a
    hole of the size of the weights.

    The file has `convert`'s exact size but takes almost no disk. Raises what `convert` raises before it reads weights.
    """
    conversion = Conversion.of(
        shapes, outtype=outtype, vocab=vocab, name=name, rescale_every=None, chat_format=chat_format
    )
    with partial(target) as part:
        conversion.write_header(part)
        with part.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.truncate(padded(file.tell()) + sum(padded(conversion.size(plan)) for plan in conversion.plans))


def tell_about(name: str, origins: Origins, model: Hyperparameters) -> None:
    """Logs which tensors of the file called `name` its GGUF will not hold, and what it holds in another way."""
    unknown = model.leftovers(shapes_of(origins))
    rest = [name for name in unknown if not name.endswith(TIME_STATE)]
    if len(rest) < len(unknown):
        logger.warning(
            "%s: att.time_state is a tuned state, not a weight: left out; the command state makes a file of it", name
        )
    if rest:
        shown = ", ".join(map(brief, rest[:8])) + (f" and {len(rest) - 8} more" if len(rest) > 8 else "")
        logger.warning("%s: %s has no tensors %s: left out", name, model.architecture.title, shown)
    if (head := origins.get("head.weight")) and head == origins.get("emb.weight"):
        logger.warning("%s: it has no head of its own: the embedding's values are taken", name)


@dataclass(frozen=True)
class Conversion:
    """One conversion, before any weight is read."""

    model: Hyperparameters
    plans: tuple[TensorPlan, ...]
    tokens: tuple[bytes, ...]
    outtype: str
    name: str
    chat_format: str = ""  # see `convert`
    official: Official | None = None  # what its name says, if it is an official one

    @classmethod
    def of(
        cls,
        shapes: Shapes,
        *,
        outtype: str,
        vocab: Path | None,
        name: str,
        rescale_every: int | None,
        chat_format: str = "",
    ) -> Conversion:
        if outtype not in OUT_TYPES:
            raise UsageError(
                "unknown outtype {type}: choose one of {types}.", type=repr(outtype), types=", ".join(OUT_TYPES)
            )
        model = detect(shapes)
        if rescale_every is not None and model.rescale_every:
            model = replace(model, rescale_every=rescale_every)
        known = official(name) if chat_format and model.architecture.name == "rwkv7" else None
        return cls(
            model=replace(model, context=known.context) if known else model,
            plans=tuple(model.tensors()),
            tokens=vocab_for(model.vocab_size, vocab),
            outtype=outtype,
            name=name,
            chat_format=chat_format,
            official=known,
        )

    @property
    def chat(self) -> ChatFormat | None:
        """How the model talks; None if its vocabulary has no words for it."""
        known = self.model.architecture.chat
        chat = FORMATS[self.chat_format] if self.chat_format and isinstance(known, RwkvFormat) else known
        return chat if chat.has_words(self.tokens) else None

    def out_type(self, plan: TensorPlan) -> OutType:
        return OUT_TYPES["f32" if plan.f32 else self.outtype]

    def size(self, plan: TensorPlan) -> int:
        """Bytes of one tensor in the GGUF, without padding."""
        return math.prod(plan.shape) * self.out_type(plan).dtype.itemsize

    def divisor(self, plan: TensorPlan) -> int:
        """What the weights of one tensor are divided by."""
        return self.model.architecture.divisor(plan.name, self.model.rescale_every)

    def write_header(self, path: Path) -> None:
        """Writes metadata and tensor infos; the data starts at the next multiple of ALIGNMENT."""
        writer = GGUFWriter(None, self.model.architecture.name)
        for plan in self.plans:
            out = self.out_type(plan)
            # numpy has no bf16; with raw_dtype given, the writer only asks whether its type is uint8.
            writer.add_tensor_info(plan.name, plan.shape, None, self.size(plan), raw_dtype=out.tensor_type)
        metadata.add_model(writer, self.model, OUT_TYPES[self.outtype].file_type, name=self.name, known=self.official)
        if self.chat is None:
            logger.warning("%s: its vocabulary has no words for a conversation: no chat template", self.name)
        metadata.add_vocab(writer, self.tokens, self.model.vocab_size, chat=self.chat, named=bool(self.chat_format))
        try:
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()


def write_tensors(
    writer: BackgroundWriter,
    conversion: Conversion,
    pieces: Callable[[TensorPlan], Iterator[Piece]],
    progress: Progress | None,
    *,
    whole: int = 0,
) -> None:
    """Queues all tensors from the `whole`th on, each with its padding; `pieces` gives the values of one."""
    sizes = [conversion.size(plan) for plan in conversion.plans]
    total, done = sum(sizes), sum(sizes[:whole])
    for plan in conversion.plans[whole:]:
        for source, piece in pieces(plan):
            data = cast(piece, source, out=conversion.out_type(plan), divisor=conversion.divisor(plan))
            if data.data_ptr() == piece.data_ptr():
                data = data.clone()  # a view on the mapping: its pages are let go of before it is written
            writer.write(data.view(torch.uint8).numpy().data)
            done += data.nbytes
            if progress is not None:
                progress(done, total)
        writer.write(padding(conversion.size(plan)))


def _mapped(file: MappedTensors, origins: Origins, plan: TensorPlan) -> Iterator[Piece]:
    """The values of one tensor, out of the mapped file."""
    for name in plan.sources:
        origin = origins[name]
        tensors = map(file.tensor, origin.sources)
        yield from pieces_of(origin.make(*tensors) if origin.make else next(tensors), name, plan)
    for source in {source for name in plan.sources for source in origins[name].sources}:
        file.release(source)


def pieces_of(tensor: torch.Tensor, source: str, plan: TensorPlan) -> Iterator[Piece]:
    """The values of one source of a tensor in the order of the GGUF."""
    tensor = tensor.reshape(plan.source_shape)
    if plan.layout in TURNED:
        tensor = tensor.transpose(-1, -2)
    rows = max(1, PIECE_VALUES // math.prod(tensor.shape[1:]))
    for first in range(0, tensor.shape[0], rows):
        yield source, tensor[first : first + rows]


def padding(size: int) -> bytes:
    """What follows so many bytes, up to the next multiple of ALIGNMENT."""
    return bytes(padded(size) - size)


def padded(size: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT

"""What an architecture is to ggufy: the tables that each has a file of, and what follows from them for a checkpoint.

A table has one row for each kind of tensor: its GGUF name, the names that it is made from, their shape in symbols, how
it is laid out anew, and its role if the name does not say it. `measure` reads every size from the shapes and then
compares all tensors with the table; nothing is guessed from the width. Shapes are torch's, outermost first; GGUF lists
the same innermost first. Which architectures there are says registry.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from ggufy.core.errors import CheckpointError
from ggufy.core.messages import Message
from ggufy.models.chat_format import ChatFormat

if TYPE_CHECKING:
    from gguf import GGUFWriter

Shapes = Mapping[str, tuple[int, ...]]
TIME_STATE = ".att.time_state"  # what a tuned state's tensors are called, also in a checkpoint that it was merged into


class Arrangement(Enum):
    """How a tensor is laid out anew."""

    AS_IS = "as is"
    FLAT = "flattened to one dimension"
    TRANSPOSED = "rows and columns exchanged"
    INNER_TRANSPOSED = "the last two of three dimensions exchanged"
    STACKED = "n vectors of C values, stacked to n x 1 x 1 x C"


FLAT, TRANSPOSED, STACKED = Arrangement.FLAT, Arrangement.TRANSPOSED, Arrangement.STACKED
INNER_TRANSPOSED = Arrangement.INNER_TRANSPOSED


@dataclass(frozen=True)
class TensorRow:
    """One kind of tensor; `target` and the sources lack the block's prefix."""

    target: str
    sources: str  # divided by blanks
    shape: str  # of each source: symbols (see `Hyperparameters`) or numbers, divided by blanks
    layout: Arrangement = Arrangement.AS_IS
    f32: bool = False
    role: str = ""  # for quantizing; empty: the target's name (see quantize/search/roles.py)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the GGUF: `shape` is its own, `source_shape` that of each source without dimensions of 1."""

    name: str
    sources: tuple[str, ...]
    source_shape: tuple[int, ...]
    layout: Arrangement
    shape: tuple[int, ...]
    f32: bool
    block: int | None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that ggufy knows of one architecture."""

    name: str  # as llama.cpp calls it
    version: str = ""  # of RWKV; empty: it is none
    mark: re.Pattern[str]  # finds a tensor in its checkpoints that no other architecture has
    gguf_marks: tuple[str, ...]  # any of these in a block of a GGUF: it is one of its own, or of a hybrid
    before: tuple[TensorRow, ...]  # of no block, in the order of the GGUF
    block: tuple[TensorRow, ...]
    after: tuple[TensorRow, ...]
    # What llama.cpp's loader wants in block 0 under these names, though no graph reads it there.
    first_block: Mapping[str, TensorRow] = field(default_factory=dict)
    read_sizes: Callable[[Shapes, int], dict[str, int]]  # of shapes and number of blocks: what the symbols stand for
    add_metadata: Callable[[GGUFWriter, Hyperparameters], None]
    rescale_every: int = 0  # blocks after which the graph halves its activations, as the weights make up for; 0: never
    divided: tuple[str, ...] = ()  # the matrices that do: those that write into the residual stream
    chat: ChatFormat
    keyed_state: bool = False  # llama.cpp keeps the state of a head as [key][value], not as [value][key]
    # By role or `role@depth`, in 1e-9 nats: how much the output suffers from quantizing it, where nothing was measured
    # of that very model (see quantize/search/roles.py).
    sensitivities: Mapping[str, float]
    measured_at: Mapping[str, int] = field(default_factory=dict)  # what the symbols stood for where that was measured
    harmless: tuple[str, ...] = ()  # low-rank roles that were measured to lose nothing that counts as Q8_0

    @property
    def title(self) -> str:
        return f"RWKV-{self.version}" if self.version else self.name

    @property
    def rescale_key(self) -> str:
        """Where a GGUF says `rescale_every`."""
        return f"{self.name}.rescale_every_n_layers"

    @property
    def roles(self) -> dict[str, str]:
        """The roles that the table names, by GGUF name within a block."""
        return {row.target: row.role for row in self.block if row.role}

    @property
    def reference(self) -> dict[str, int]:
        """The number of weights of a tensor of each role where its sensitivity was measured; empty: of any."""
        if not self.measured_at:
            return {}
        names = {"token_embd.weight": "embedding", "output.weight": "head"}
        shapes: dict[str, str] = {}
        for row in (*self.before, *self.block, *self.after):
            shapes.setdefault(row.role or names.get(row.target) or row.target.removesuffix(".weight"), row.shape)
        measured = {key.partition("@")[0] for key in self.sensitivities}
        return {role: math.prod(self.measured_at[symbol] for symbol in shapes[role].split()) for role in measured}

    @property
    def unread(self) -> frozenset[str]:
        """GGUF names of tensors that no graph reads."""
        return frozenset(f"blk.0.{target}" for target in self.first_block)

    def divisor(self, tensor: str, rescale_every: int) -> int:
        """What the weights of a tensor of a GGUF are divided by."""
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", tensor)
        if match is None or match[2] not in self.divided or rescale_every < 1:
            return 1
        return 1 << (int(match[1]) // rescale_every)

    def measure(self, shapes: Shapes) -> Hyperparameters:
        """The sizes of a checkpoint. Raises CheckpointError for a missing tensor, a wrong shape, and a tensor in a
        block that is not the architecture's: a model that needs it is another one. Empty buffers do no harm."""
        layers = 1 + max(block_numbers(shapes))
        sizes = {"V": size_of(shapes, "emb.weight", 0), "C": size_of(shapes, "emb.weight", 1)}
        sizes |= self.read_sizes(shapes, layers)
        width, head_size = sizes["C"], sizes.get("N", sizes["C"])
        if width % head_size:
            raise CheckpointError(
                "the width {width} is not a multiple of the head size {size}: {damaged}.",
                width=width,
                size=head_size,
                damaged=DAMAGED,
            )
        model = Hyperparameters(self, layers, sizes | {"H": width // head_size}, self.rescale_every)
        check_sources(shapes, ((source, plan.source_shape) for plan in model.tensors() for source in plan.sources))
        refuse_strangers(shapes, model.leftovers(shapes), self.title)
        return model


@dataclass(frozen=True)
class Hyperparameters:
    """What the shapes of a checkpoint say. `sizes` has the value of each symbol of the table: V tokens, C width, H
    heads of N values, and what else the architecture has."""

    architecture: Architecture
    layers: int
    sizes: Mapping[str, int]
    rescale_every: int = 0  # see Architecture
    context: int = 0  # tokens of the texts that it was trained on; 0: not known

    @property
    def width(self) -> int:
        return self.sizes["C"]

    @property
    def vocab_size(self) -> int:
        return self.sizes["V"]

    @property
    def parameters(self) -> int:
        """Values of the checkpoint that its GGUF is made from, each counted once."""
        sources = {source: plan.source_shape for plan in self.tensors() for source in plan.sources}
        return sum(map(math.prod, sources.values()))

    def tensors(self) -> Iterator[TensorPlan]:
        """Every tensor of the GGUF, in the order in which it is written: embedding, blocks, head."""
        table = self.architecture
        yield from (self._plan(row, None) for row in table.before)
        for block in range(self.layers):
            for row in table.block:
                yield self._plan(row if block else table.first_block.get(row.target, row), block)
        yield from (self._plan(row, None) for row in table.after)

    def leftovers(self, shapes: Shapes) -> list[str]:
        """Names in the checkpoint that no tensor of the GGUF is made from, without those that are known to be
        unused."""
        table = self.architecture
        used = {source for plan in self.tensors() for source in plan.sources}
        used |= {
            f"blocks.0.{source}"
            for row in table.block
            if row.target in table.first_block
            for source in row.sources.split()
        }
        return [name for name in shapes if name not in used]

    def _plan(self, row: TensorRow, block: int | None) -> TensorPlan:
        before = tuple(self.sizes.get(symbol) or int(symbol) for symbol in row.shape.split())
        match row.layout:
            case Arrangement.FLAT:
                after: tuple[int, ...] = (math.prod(before),)
            case Arrangement.STACKED:
                after = (len(row.sources.split()), 1, 1, *before)
            case Arrangement.TRANSPOSED | Arrangement.INNER_TRANSPOSED:
                after = (*before[:-2], before[-1], before[-2])
            case Arrangement.AS_IS:
                after = before
        name = row.target if block is None else f"blk.{block}.{row.target}"
        prefix = "" if block is None else f"blocks.{block}."
        sources = tuple(prefix + source for source in row.sources.split())
        return TensorPlan(name, sources, before, row.layout, after, row.f32 or len(after) == 1, block)


def block_numbers(shapes: Shapes) -> list[int]:
    """The number of the block of every tensor that is in one."""
    return [int(match[1]) for name in shapes if (match := re.match(r"blocks\.([0-9]{1,6})\.", name))]


DAMAGED = Message("the checkpoint is damaged, or a variety of RWKV that ggufy does not know")


def size_of(shapes: Shapes, name: str, axis: int) -> int:
    """One size of one tensor; raises CheckpointError if there is no such tensor or axis, or if it is empty."""
    if name not in shapes:
        raise CheckpointError("the checkpoint has no tensor {name}: {damaged}.", name=name, damaged=DAMAGED)
    shape = shapes[name]
    if len(shape) <= max(axis, 1) or 0 in shape:
        raise CheckpointError(
            "{name} has the shape {shape}, not that of a matrix: {damaged}.",
            name=name,
            shape=shape_text(shape),
            damaged=DAMAGED,
        )
    return shape[axis]


def check_sources(shapes: Shapes, expected: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Raises CheckpointError unless every tensor of a table is there, in its shape."""
    for name, shape in expected:
        if name not in shapes:
            raise CheckpointError("the checkpoint has no tensor {name}: {damaged}.", name=name, damaged=DAMAGED)
        # Trainers save vectors as 1 x 1 x C or as C; both hold the same values in the same order.
        if squeezed(shapes[name]) != squeezed(shape):
            raise CheckpointError(
                "{name} has the shape {shape}, but {expected} was expected: {damaged}.",
                name=name,
                shape=shape_text(shapes[name]),
                expected=shape_text(shape),
                damaged=DAMAGED,
            )


def refuse_strangers(shapes: Shapes, leftovers: Iterable[str], title: str) -> None:
    """Raises CheckpointError if one of the tensors that no table has belongs to a block. Empty buffers and tuned
    states do no harm."""
    for name in leftovers:
        if re.match(r"blocks\.", name) and 0 not in shapes[name] and not name.endswith(TIME_STATE):
            raise CheckpointError(
                "{name} belongs to no {model}: {damaged}.", name=brief(name), model=title, damaged=DAMAGED
            )


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without dimensions of 1."""
    return tuple(size for size in shape if size != 1)


def brief(name: str) -> str:
    """A stranger's text for a sentence: on one line and not long."""
    return repr(name[:80])[1:-1]


def shape_text(shape: tuple[int, ...]) -> str:
    """For a sentence."""
    return " x ".join(str(size) for size in shape) or Message("of a single number")

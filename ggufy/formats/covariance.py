"""Covariance files: for the matrices of a model, the sums of x xᵀ over the inputs x that they got from a text.

An imatrix holds the diagonals of these matrices. The file is a GGUF, as llama.cpp's imatrix is; its metadata:

    general.type = "covariance"
    covariance.base_sha256, .text_sha256, .text (its name), .chunks, .commit (llama.cpp's), .weighting
    covariance.tokens, .held_out_tokens
    covariance.tensors, .inputs    two lists: tensor -> the tensor under whose name the covariance of its input lies

q, k and v read the same input, and share one matrix. Every fifth chunk of the text is held out, to judge by what was
not used: spread over the text like that, they are of the same kinds of text, and enough of them. The sums over both
parts are symmetric, so one F32 tensor `<name>.covariance.<block>` [width + 1, width] holds both: the upper triangle of
its first `width` rows is the first part's, the lower triangle of its last `width` rows is the one held out.

A chunk's products are multiplied by a weight (WEIGHTING), the inverse root of the model's perplexity on the chunk.
Calibration texts are in many languages; of one that a model knows nothing about its inputs are of another kind, and
its predictions are of no use to anybody, so such chunks would only blur the sums. Only proportions have a meaning.

The whole of a matrix takes 4 × columns² bytes; where a file would be too large, only square blocks along the diagonal
are kept of the widest ones. That costs much of what covariances are for: with blocks of half of the columns, a third
of the output error that compensated codes save on the demo's `channel_mix_value`, on text that was held out (Q4_K:
0.735 of the plain codes' error with one block of 1024, 0.825 with two, 0.909 with four; Q3_K: 0.69, 0.77, 0.85).
Experts (three-dimensional tensors) have none: each would need a matrix of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ggufy.core.errors import CalibrationError
from ggufy.formats.gguf import GgufHead, padded, read_head
from ggufy.formats.gguf_writer import F32Array, GgufPlan, plan_gguf, write_gguf

WEIGHTING = "1/sqrt(perplexity)"
MOST_BYTES = 20_000_000_000  # of a file, beside which base and quants have to find room
_WIDTHS = (16384, 8192, 4096, 2048)  # of a block at most, the first with which a file is no larger
_MULTIPLE = 256  # of a block's width: no block of a quant type lies in two
_HELD_OUT_EVERY = 5  # chunks
_KEY = "covariance."
Blocks = tuple[F32Array, ...]


@dataclass(frozen=True, kw_only=True)
class Covariance:
    """Sums of x xᵀ over the inputs x of a matrix: square blocks along the diagonal, in the order of its columns."""

    calibration: Blocks  # F32 [width, width] each; a single one unless a file would be too large
    held_out: Blocks  # of the same widths, from chunks that `calibration` has not seen
    tokens: int  # inputs summed up in `calibration`
    held_out_tokens: int  # 0, and zeros, for a text of less than five chunks

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the blocks; all but the last are multiples of 256."""
        return tuple(len(block) for block in self.calibration)

    @property
    def columns(self) -> int:
        return sum(self.widths)


@dataclass(frozen=True, kw_only=True)
class CovarianceFacts:
    """What covariances were made from."""

    base_sha256: str  # hex digest of the unquantized GGUF
    text_sha256: str
    text: str  # its bare name
    chunks: int  # of the text, those that are held out included
    commit: str  # llama.cpp's
    weighting: str = WEIGHTING  # what a chunk's products are multiplied by; empty: by nothing


def is_held_out(chunk: int) -> bool:
    """Whether a chunk of the text, counted from 0, is held out."""
    return chunk % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


def choose_widest(columns: Iterable[int]) -> int:
    """How wide a block may be in a file of inputs with so many columns each."""
    counts = list(columns)

    def size(widest: int) -> int:
        return sum(4 * width * (width + 1) for count in counts for width in block_widths(count, widest))

    return next((widest for widest in _WIDTHS if size(widest) <= MOST_BYTES), _WIDTHS[-1])


def block_widths(columns: int, widest: int) -> tuple[int, ...]:
    """Of the blocks that are kept of a matrix of so many columns: as few and as equal as can be."""
    count = -(-columns // widest)
    width = columns if count == 1 else padded(-(-columns // count), _MULTIPLE)
    return tuple(min(width, columns - start) for start in range(0, columns, width))


def block_name(name: str, block: int) -> str:
    """Of the tensor that holds a block of the covariance of what `name` reads."""
    return f"{name}.covariance.{block}"


def covariance_shapes(columns: Mapping[str, int], widest: int) -> dict[str, tuple[int, int]]:
    """The tensors of a file, from the columns of each input by its name."""
    return {
        block_name(name, block): (width + 1, width)
        for name, count in columns.items()
        for block, width in enumerate(block_widths(count, widest))
    }


def plan_covariances(
    shapes: Mapping[str, tuple[int, int]],
    *,
    inputs: Mapping[str, str],
    facts: CovarianceFacts,
    tokens: int,
    held_out_tokens: int,
) -> GgufPlan:
    """The file before its values are there, with tensors of `covariance_shapes`; `inputs` says of each tensor under
    which name its input lies."""
    return plan_gguf(_metadata(inputs, facts, tokens, held_out_tokens), shapes)


def write_covariances(
    path: Path,
    covariances: Mapping[str, Covariance],
    *,
    facts: CovarianceFacts,
    inputs: Mapping[str, str] | None = None,
) -> None:
    """Writes a file at once, whole or not at all; covariances by the name of a tensor that reads that input, `inputs`
    for others that read the same. Raises ValueError unless all have seen the same tokens, DiskError."""
    counts = {(one.tokens, one.held_out_tokens) for one in covariances.values()}
    if len(counts) != 1:
        raise ValueError("covariances of one file see the same tokens")
    tensors = {
        block_name(name, block): _packed(*both)
        for name, one in covariances.items()
        for block, both in enumerate(zip(one.calibration, one.held_out, strict=True))
    }
    every = {name: name for name in covariances} | dict(inputs or {})
    write_gguf(path, _metadata(every, facts, *counts.pop()), tensors)


def _metadata(
    inputs: Mapping[str, str], facts: CovarianceFacts, tokens: int, held_out_tokens: int
) -> dict[str, str | int | list[str]]:
    about = {"general.type": "covariance"} | {_KEY + key: value for key, value in asdict(facts).items()}
    counts = {_KEY + "tokens": tokens, _KEY + "held_out_tokens": held_out_tokens}
    return {**about, **counts, _KEY + "tensors": list(inputs), _KEY + "inputs": list(inputs.values())}


def _packed(calibration: F32Array, held_out: F32Array) -> F32Array:
    both = np.zeros((len(calibration) + 1, len(calibration)), dtype=np.float32)
    both[:-1] += np.triu(calibration)
    both[1:] += np.tril(held_out)
    return both


def _unpacked(both: F32Array) -> tuple[F32Array, F32Array]:
    upper, lower = np.triu(both[:-1]), np.tril(both[1:])
    return upper + np.triu(upper, 1).T, lower + np.tril(lower, -1).T


class CovarianceFile:
    """An open file; values are read when they are asked for. Threads may share it."""

    def __init__(self, path: Path):
        """Raises CalibrationError for a file that has no covariances or is damaged, SourceError for one that is no
        GGUF."""
        self.path, self._head = path, read_head(path)
        self.facts = _facts(path, self._head)
        self.tokens, self.held_out_tokens = (_count(path, self._head, key) for key in ("tokens", "held_out_tokens"))
        tensors, inputs = (_names(path, self._head, key) for key in ("tensors", "inputs"))
        if len(tensors) != len(inputs) or len(set(tensors)) != len(tensors):
            raise _damaged(path)
        self._inputs = dict(zip(tensors, inputs, strict=True))
        self._widths = {name: _widths(path, self._head, name) for name in dict.fromkeys(inputs)}

    @classmethod
    def open(cls, path: Path) -> CovarianceFile:
        """See the constructor."""
        return cls(path)

    def __enter__(self) -> CovarianceFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays open between two calls of `get`."""

    @property
    def digest(self) -> str:
        """Hex digest of what the values follow from: base, text, chunks, llama.cpp, and the blocks that are kept."""
        what = {"facts": asdict(self.facts), "inputs": self._inputs, "widths": self._widths}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @property
    def chunks(self) -> int:
        return self.facts.chunks

    @property
    def base_sha256(self) -> str:
        return self.facts.base_sha256

    @property
    def text_sha256(self) -> str:
        return self.facts.text_sha256

    def names(self) -> list[str]:
        """The tensors that have one."""
        return list(self._inputs)

    def input_of(self, tensor_name: str) -> str | None:
        """The same for all tensors that read the same input; None for one that has no covariance."""
        return self._inputs.get(tensor_name)

    def get(self, tensor_name: str) -> Covariance | None:
        """The covariance of a tensor's input, read anew and the caller's own; None if there is none.

        Raises CalibrationError if it holds a value that is not finite.
        """
        if (name := self._inputs.get(tensor_name)) is None:
            return None
        blocks = [_unpacked(self._read(block_name(name, block))) for block in range(len(self._widths[name]))]
        calibration, held_out = zip(*blocks, strict=True)
        return Covariance(
            calibration=calibration,
            held_out=held_out,
            tokens=self.tokens,
            held_out_tokens=self.held_out_tokens,
        )

    def _read(self, name: str) -> F32Array:
        info = self._head.tensors[name]
        width, rows = info.shape
        place = self._head.data_start + info.offset
        both = np.memmap(self.path, dtype="<f4", mode="r", offset=place, shape=(rows, width))
        if not np.isfinite(both).all():
            raise CalibrationError(
                "{name} holds a value for {tensor} that is not finite: make it again.",
                name=self.path.name,
                tensor=name,
            )
        return both


def _facts(path: Path, head: GgufHead) -> CovarianceFacts:
    if head.metadata.get("general.type") != "covariance":
        raise CalibrationError(
            "{name} is a GGUF file but holds no covariances: give the output of `ggufy gram`.", name=path.name
        )
    texts = {key: head.metadata.get(_KEY + key) for key in ("base_sha256", "text_sha256", "text", "commit")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise _damaged(path)
    return CovarianceFacts(
        chunks=_count(path, head, "chunks"),
        weighting=str(head.metadata.get(_KEY + "weighting", "")),
        **{key: str(text) for key, text in texts.items()},
    )


def _count(path: Path, head: GgufHead, key: str) -> int:
    count: Any = head.metadata.get(_KEY + key)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise _damaged(path)
    return count


def _names(path: Path, head: GgufHead, key: str) -> list[str]:
    names = head.metadata.get(_KEY + key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(path)
    return names


def _widths(path: Path, head: GgufHead, name: str) -> tuple[int, ...]:
    """Of the blocks of one covariance."""
    widths: list[int] = []
    while (info := head.tensors.get(block_name(name, len(widths)))) is not None:
        width = info.shape[0]
        if info.type != "F32" or info.shape != (width, width + 1):
            raise _damaged(path)
        widths.append(width)
    if not widths:
        raise _damaged(path)
    return tuple(widths)


def _damaged(path: Path) -> CalibrationError:
    return CalibrationError("{name} is damaged: make its covariances again with `ggufy gram`.", name=path.name)

"""An imatrix file as the engine uses it: how much each column of each tensor matters.

llama-imatrix writes for a tensor W two F32 tensors: W.in_sum2 [matrices, columns], sums of the squared inputs, and
W.counts [matrices, 1], how many inputs were seen. The importance is the mean; a matrix (an expert) that saw none gets
ones, as in llama-quantize.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.errors import CalibrationError
from ggufy.formats.gguf import GgufHead, read_head, read_tensor
from ggufy.llama.ggml import MOST_IMPORTANCE
from ggufy.quantize.recipe import ImatrixFacts
from ggufy.system.files import sha256

_MOST_CHUNKS = (1 << 32) - 1  # what a u32 holds
_SUMS, _COUNTS = ".in_sum2", ".counts"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True, kw_only=True)
class Imatrix:
    """Importance by tensor."""

    facts: ImatrixFacts  # goes into the quant's metadata: the file's bare name, not where it lies
    sha256: str
    weights: dict[str, np.ndarray[Any, np.dtype[np.float32]]]  # flat: matrix after matrix


def read_imatrix(path: Path) -> Imatrix:
    """Raises CalibrationError when it is no imatrix, incomplete, or has values that make no sense."""
    head = read_head(path)
    datasets, chunks, size = (head.metadata.get(f"imatrix.{key}") for key in ("datasets", "chunk_count", "chunk_size"))
    if not isinstance(datasets, list) or not isinstance(chunks, int) or size is None or not head.tensors:
        raise CalibrationError(
            "{name} is no imatrix of llama-imatrix: make one, or leave {IMATRIX} out.", name=path.name
        )
    weights = {}
    parts = [name for name in head.tensors if name.endswith((_SUMS, _COUNTS))]
    for name in {part.removesuffix(_SUMS).removesuffix(_COUNTS) for part in parts}:
        try:
            sums, counts = (read_tensor(path, head, name + part) for part in (_SUMS, _COUNTS))
        except KeyError:
            raise CalibrationError(
                "{name} has only half of the data for {tensor}: make a new imatrix.", name=path.name, tensor=name
            ) from None
        if sums.size % counts.size:
            raise CalibrationError(
                "{name} has {count} counts for {tensor}: make a new imatrix.",
                name=path.name,
                count=counts.size,
                tensor=name,
            )
        with np.errstate(all="ignore"):  # impossible values are looked for below
            seen = np.floor(counts + np.float32(0.5))[:, None]
            rows = sums.reshape(counts.size, -1)
            means = np.where(seen > 0, rows / seen, np.float32(1)).astype(np.float32)
            possible = np.isfinite(counts).all() and ((means >= 0) & (means <= MOST_IMPORTANCE)).all()
        if not possible:
            raise CalibrationError(
                "{name} has impossible values for {tensor}: make a new imatrix.", name=path.name, tensor=name
            )
        weights[name] = np.ascontiguousarray(means.reshape(-1))
    return Imatrix(
        facts=facts_of(path, head),
        sha256=sha256(path),
        weights=weights,
    )


def facts_of(path: Path, head: GgufHead) -> ImatrixFacts:
    """What an imatrix file with this head says about itself."""
    datasets, chunks = (head.metadata.get(f"imatrix.{key}") for key in ("datasets", "chunk_count"))
    return ImatrixFacts(
        file=path.name,
        dataset=str(datasets[0]) if isinstance(datasets, list) and datasets else "",
        chunks=min(max(0, chunks), _MOST_CHUNKS) if isinstance(chunks, int) else 0,
    )


def with_embedding(imatrix: Imatrix, head: GgufHead) -> Imatrix:
    """The same with ones for the embedding, of which llama-imatrix sees no inputs: rows are picked, not multiplied.

    Without importances ggml weighs large values more, as it suits a matrix; in a row that is picked all count alike.
    Where the embedding is the head as well (there is no `output.weight`), it is multiplied too, and stays as it is.
    """
    if _EMBEDDING in imatrix.weights or not {_EMBEDDING, _HEAD} <= head.tensors.keys():
        return imatrix
    ones = np.ones(head.tensors[_EMBEDDING].shape[0], dtype=np.float32)
    return replace(imatrix, weights=imatrix.weights | {_EMBEDDING: ones})

"""Writes GGUF files that hold F32 tensors only: imatrix files, covariances.

`plan_gguf` says where everything goes, so that a large file can be filled piece by piece; `write_gguf` writes a small
one at once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.formats.gguf import MAGIC, packed_entry, packed_text, padded
from ggufy.system.files import partial

F32Array = np.ndarray[Any, np.dtype[np.float32]]
Metadata = Mapping[str, str | int | list[str]]
_F32 = 0


@dataclass(frozen=True)
class GgufPlan:
    """A file before its values are there."""

    head: bytes  # with the padding before the first tensor
    offsets: Mapping[str, int]  # of each tensor's values, bytes from the start of the file
    size: int  # bytes of the whole file


def plan_gguf(metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> GgufPlan:
    """The file of tensors with these shapes (NumPy's: slowest dimension first), in this order."""
    infos, offset, offsets = [], 0, {}
    for name, shape in shapes.items():
        while len(shape) > 1 and shape[0] == 1:  # as ggml writes it
            shape = shape[1:]
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        infos.append(packed_text(name) + dimensions + struct.pack("<IQ", _F32, offset))
        offsets[name] = offset
        offset += padded(4 * math.prod(shape))
    entries = [packed_entry(key, value) for key, value in metadata.items()]
    head = MAGIC + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(entries + infos)
    head = head.ljust(padded(len(head)), b"\0")
    return GgufPlan(head, {name: len(head) + start for name, start in offsets.items()}, len(head) + offset)


def write_gguf(path: Path, metadata: Metadata, tensors: Mapping[str, F32Array]) -> None:
    """Writes the file, whole or not at all. Raises DiskError."""
    plan = plan_gguf(metadata, {name: tensor.shape for name, tensor in tensors.items()})
    with partial(path) as part, part.open("wb") as file:
        file.write(plan.head)
        for name, tensor in tensors.items():
            file.seek(plan.offsets[name])
            file.write(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
        file.truncate(plan.size)

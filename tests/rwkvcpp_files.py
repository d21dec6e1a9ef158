"""Files of rwkv.cpp written field by field, as its FILE_FORMAT.md describes them, so that a test can also lie."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass
class Written:
    """One record; sizes are innermost first, as in the file."""

    name: bytes
    type: int
    sizes: Sequence[int]
    data: bytes
    dimensions: int | None = None
    length: int | None = None

    @property
    def packed(self) -> bytes:
        dimensions = len(self.sizes) if self.dimensions is None else self.dimensions
        length = len(self.name) if self.length is None else self.length
        start = struct.pack("<3i", dimensions, length, self.type)
        return start + struct.pack(f"<{len(self.sizes)}i", *self.sizes) + self.name + self.data


def write(
    path: Path,
    records: Sequence[Written],
    *,
    magic: int = 0x67676D66,
    version: int = 101,
    tokens: int = 5,
    width: int = 64,
    layers: int = 1,
    type_number: int = 0,
) -> Path:
    header = struct.pack("<I5i", magic, version, tokens, width, layers, type_number)
    path.write_bytes(header + b"".join(record.packed for record in records))
    return path


def expected(state: Mapping[str, torch.Tensor], version: str, *, half: bool) -> list[Written]:
    """The records of a checkpoint in BlinkDL's order of names, by NumPy from the table in rwkv.cpp's converter."""
    records = []
    heads = state["blocks.0.att.r_k"].shape[0] if version == "7" else _heads(state)
    for name, tensor in state.items():
        values, end = tensor.float().numpy(), name.rpartition(".")[2]
        if version == "7" and end in ("x_w", "x_k", "x_v", "x_a", "x_g") and ".att." in name:
            continue
        if ".time_" in name:
            values = values.squeeze()
        if version == "7" and name.endswith("att.x_r"):
            letters = [state[name[:-1] + letter].float().numpy().reshape(1, -1) for letter in "rwkvag"]
            name, values = name.replace("x_r", "x_rwkvag"), np.stack(letters)
        elif version == "7" and end in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"):
            values = values.T
        elif version == "6" and end in ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"):
            values = np.swapaxes(values, -1, -2)
        elif end == "time_decay":
            values = values if version == "6" else -np.exp(values)
            values = np.exp(values) if version[0] == "5" else values
        elif end == "time_first" and version[0] == "5":
            values = np.exp(values)
        if end in ("time_decay", "time_first", "time_faaaa") and version != "4":
            values = values.reshape(heads, -1, 1)
        f32 = any(part in name for part in (".time_", ".k_", ".r_k", "x_rwkvag", ".x_k", ".w0", ".a0", ".v0"))
        kind = 1 if half and values.ndim > 1 and not f32 else 0
        data = np.ascontiguousarray(values.astype("<f2" if kind else "<f4")).tobytes()
        records.append(Written(name.encode(), kind, values.shape[::-1], data))
    return records


def _heads(state: Mapping[str, torch.Tensor]) -> int:
    found = state.get("blocks.0.att.time_faaaa", state.get("blocks.0.att.time_first"))
    assert found is not None
    return found.shape[0]

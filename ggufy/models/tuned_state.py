"""Tuned states: what state tuning leaves, the state that a model is to begin every text with.

A file has one tensor a block, `blocks.N.att.time_state`, H heads of N x N values: the matrix of the recurrence, rows
of values, columns of keys, for RWKV-6 and RWKV-7 alike (RWKV-PEFT hands its transpose to the kernel that it trains
with, whose states are [key][value]). The last inputs of the mixes are zeros. The model's own checkpoint may carry the
same tensors, where a trainer has put them.

In safetensors (`.st`, of web-rwkv and Ai00) the last two dimensions of a state are exchanged, whatever the version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ggufy.core.errors import CheckpointError
from ggufy.formats.checkpoint import open_checkpoint
from ggufy.formats.mapped_safetensors import MappedSafetensors
from ggufy.formats.safetensors import read_header
from ggufy.formats.session import State

_NAME = re.compile(r"(?:[\w.]{1,60}\.)?blocks\.(\d{1,4})\.att\.time_state")
_ADAPTER = re.compile(r"\.(?:lora_\w+|bone|disha|miss_block|init_lora_\w+)(?:\.|$)")


@dataclass(frozen=True)
class TunedState:
    """The state of one file."""

    blocks: tuple[State, ...]  # of each block [H, N, N]: heads, values, keys

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks, heads, and the size of a head."""
        return len(self.blocks), self.blocks[0].shape[0], self.blocks[0].shape[1]


def read_tuned_state(path: Path) -> TunedState:
    """Reads a `.pth` or a safetensors file, told apart by what is in them. Raises CheckpointError for a file without a
    tuned state, saying what it is instead, and for one that is not whole."""
    if not path.is_file() or not _is_safetensors(path):
        with open_checkpoint(path) as checkpoint:
            names = _states(checkpoint.shapes, path.name)
            return _whole(names, {key: checkpoint.tensor(key) for key in names.values()}, path.name)
    with path.open("rb") as file:
        listed = read_header(file, path.name)
    names = _states({key: tensor.shape for key, tensor in listed.items()}, path.name)
    with MappedSafetensors([path], listed) as mapped:
        found = {key: mapped.tensor(key) for key in names.values()}
    exchanged = {key: tensor.transpose(-1, -2) if tensor.dim() > 1 else tensor for key, tensor in found.items()}
    return _whole(names, exchanged, path.name)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _states(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[int, str]:
    """The names of the states by their block."""
    found = {int(match[1]): key for key in shapes if (match := _NAME.fullmatch(key))}
    if not found and any(map(_ADAPTER.search, shapes)):
        raise CheckpointError(
            "{name} is an adapter, not a tuned state: give it to quantize or convert with the model that it is for.",
            name=name,
        )
    if not found:
        raise CheckpointError(
            "{name} has no tuned state (no tensor blocks.0.att.time_state): give a file that state tuning has left.",
            name=name,
        )
    return found


def _whole(names: Mapping[int, str], tensors: Mapping[str, torch.Tensor], name: str) -> TunedState:
    """The state, if every block has one, and all are alike."""
    missing = sorted(set(range(max(names) + 1)) - names.keys())
    if missing:
        raise CheckpointError(
            "{name} has no state for block {block}: give the whole file that state tuning has left.",
            name=name,
            block=missing[0],
        )
    blocks: list[State] = []
    for block in range(len(names)):
        tensor = tensors[names[block]]
        values = tensor.squeeze(0) if tensor.dim() == 4 else tensor
        heads_of_squares = values.dim() == 3 and values.shape[1] == values.shape[2] and values.numel() > 0
        if not heads_of_squares or (blocks and values.shape != blocks[0].shape):
            raise CheckpointError(
                "{tensor} in {name} has the shape {shape}, where each block needs heads of one square matrix: give "
                "the file as state tuning has left it.",
                tensor=names[block],
                name=name,
                shape=" x ".join(map(str, tensor.shape)),
            )
        values = values.float()
        if not torch.isfinite(values).all():
            raise CheckpointError(
                "{tensor} in {name} has values that are not finite: choose another epoch of the tuning.",
                tensor=names[block],
                name=name,
            )
        blocks.append(values.contiguous().numpy())
    return TunedState(tuple(blocks))

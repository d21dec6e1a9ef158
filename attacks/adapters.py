"""Hostile adapters: of RWKV-x070-Demo-7M, the demo, whose width is 256."""

from __future__ import annotations

import json
from pathlib import Path

from attacks import attack
from attacks.checkpoints import archive, state, tensor

KEY = "blocks.0.att.key"


def lora(path: Path, layer: str) -> None:
    """A sound one of rank 1."""
    a = tensor("0", (1, 256), stride=(256, 1), offset=0, numel=256)
    b = tensor("0", (256, 1), stride=(1, 1), offset=0, numel=256)
    archive(path, state(**{f"{layer}.lora_A": a, f"{layer}.lora_B": b}), {"0": bytes(1024)})


def folder(path: Path, config: bytes) -> None:
    """As PEFT saves it, with this adapter_config.json."""
    path.mkdir()
    listed = {
        f"base_model.model.{KEY}.lora_A.weight": {"dtype": "F32", "shape": [1, 256], "data_offsets": [0, 1024]},
        f"base_model.model.{KEY}.lora_B.weight": {"dtype": "F32", "shape": [256, 1], "data_offsets": [1024, 2048]},
    }
    head = json.dumps(listed).encode()
    (path / "adapter_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(2048))
    (path / "adapter_config.json").write_bytes(config)


@attack("rank.pth", "rank.pth has a damaged list of tensors", adapter=True)
def rank(path: Path) -> None:
    """Says that its rank is a thousand million: to multiply it would take a terabyte, from a file of some bytes."""
    a = tensor("0", (1 << 30, 256), stride=(0, 0), offset=0, numel=1)
    b = tensor("0", (256, 1 << 30), stride=(0, 0), offset=0, numel=1)
    archive(path, state(**{f"{KEY}.lora_A": a, f"{KEY}.lora_B": b}), {"0": bytes(4)})


@attack("layer-name.pth", r"holds \\x1b\[2J.lora_A, which belongs to no tensor", adapter=True)
def layer_name(path: Path) -> None:
    """Has a layer whose name clears the terminal that it is printed in, if it can."""
    lora(path, "\x1b[2J")


@attack("blocks.pth", "is for a model of 1000000 blocks or more, and this one has 6", adapter=True)
def blocks(path: Path) -> None:
    """Is for block 999,999, so that whoever makes a list of all blocks makes a long one."""
    lora(path, "blocks.999999.att.key")


@attack("vector.pth", "does not fit this model: its blocks.0.ln1.weight is 16 x 16", adapter=True)
def vector(path: Path) -> None:
    """Would replace a vector of 256 values by a matrix of as many."""
    square = tensor("0", (16, 16), stride=(16, 1), offset=0, numel=256)
    archive(path, state(**{"blocks.0.ln1.weight": square}), {"0": bytes(1024)})


@attack("config-depth", "adapter_config.json of config-depth makes no sense", adapter=True)
def config_depth(path: Path) -> None:
    """Nests its configuration so deep that whoever reads it calls itself until the stack is full."""
    folder(path, b"[" * 200_000)


@attack("config-alpha", "adapter_config.json of config-alpha makes no sense", adapter=True)
def config_alpha(path: Path) -> None:
    """Has an alpha that makes every weight infinite, as far as numbers can."""
    folder(path, b'{"peft_type": "LORA", "r": 1, "lora_alpha": 1e999}')


@attack("config-long", "adapter_config.json of config-long makes no sense", adapter=True)
def config_long(path: Path) -> None:
    """Has a configuration of millions of numbers, to fill the memory, if it can."""
    folder(path, b'{"r": [' + b"1," * 3_000_000 + b"1]}")

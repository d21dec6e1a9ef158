"""Hostile safetensors files: a sound list of tensors, distorted, written out, and damaged."""

from __future__ import annotations

import json
import random
import struct
from functools import cache
from typing import Any

import torch

from tests import layouts, tiny
from tests.fuzz_bytes import BOUNDARIES, poke, scramble

_NAMES = (
    "", "\0", "\n", "a\nb\r\x1b[31m", "\ud800", "\u202ex\u2028", "x" * 70_000, "../../x", "__metadata__",
    "blocks.99999999999999999999.att.w1", "blocks.-1.x", "blocks.0.ffn.s_emb.weight", "emb.weight", "lora_A",
    "model.layers.0.attn.x_x", "model.layers.0.attn.x_proj.2.weight", "layers.0.attn.w_lora.lora.0.weight",
)  # fmt: skip
_DTYPES = ("F32", "F16", "BF16", "F64", "F8_E4M3", "I64", "BOOL", "F4", "", "f32", "\x1b[2J", None, 7, {})
_VALUES: tuple[Any, ...] = (None, True, "1", [], {}, [[]], 0.5, -1, 1e400, "9" * 5000)


@cache
def sound(layout: str) -> bytes:
    """A tiny RWKV in that layout."""
    version, export, _ = layouts.LAYOUTS[layout]
    state = tiny.weights(version, width=64, layers=1, ffn=64, vocab=8, dtype=torch.bfloat16)
    return layouts.packed(export(state))


def mutated(rng: random.Random) -> bytes:
    """A file with, nearly always, at least one thing wrong with it."""
    data = bytearray(sound(rng.choice(list(layouts.LAYOUTS))))
    ways = rng.choice(((1, 0, 0), (1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)))
    if ways[0]:
        data = _distorted(rng, data)
    if ways[1]:
        poke(rng, data, [(0, 8)])
    if ways[2]:
        scramble(rng, data)
    return bytes(data)


def _distorted(rng: random.Random, data: bytearray) -> bytearray:
    """The same values under another list."""
    (length,) = struct.unpack_from("<Q", data)
    entries = list(json.loads(data[8 : 8 + length]).items())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randrange(len(entries))
        name, entry = entries[place]
        entry = json.loads(json.dumps(entry))
        if not isinstance(entry, dict):
            continue
        match rng.choice(("name", "dtype", "shape", "offset", "twice", "gone", "more", "whole", "swap", "harmless")):
            case "name":
                name = rng.choice(_NAMES)
            case "dtype":
                entry["dtype"] = rng.choice(_DTYPES)
            case "shape":
                entry["shape"] = [rng.choice((*BOUNDARIES, *_VALUES)) for _ in range(rng.choice((1, 2, 3, 9)))]
            case "offset" if isinstance(entry.get("data_offsets"), list):
                entry["data_offsets"][rng.randrange(2)] = rng.choice((*BOUNDARIES, *_VALUES))
            case "twice":
                entries.append((name, entry))
            case "gone":
                del entries[place]
                continue
            case "more":
                entry[rng.choice(("", "extra", "shape "))] = rng.choice(_VALUES)
            case "whole":
                entry = rng.choice(_VALUES)
            case "swap":
                other = rng.randrange(len(entries))
                entries[other], entries[place] = entries[place], entries[other]
                continue
            case "harmless":
                name = "__metadata__" if name == "__metadata__" else name
        entries[place] = (name, entry)
    return _written(rng, entries) + data[8 + length :]


def _written(rng: random.Random, entries: list[tuple[str, Any]]) -> bytearray:
    text = "{" + ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries) + "}"
    text = rng.choice((text, text, text, text, text + " " * 7, "[" * 100_000, '{"a":' * 50_000, text + text))
    return bytearray(struct.pack("<Q", len(text)) + text.encode())

"""Hostile files of rwkv.cpp: a sound one whose numbers and bytes are changed."""

from __future__ import annotations

import random
from functools import cache

import torch

from tests import tiny
from tests.fuzz_bytes import Field, poke, scramble
from tests.rwkvcpp_files import expected

_HEADER = [(place, 4) for place in range(0, 24, 4)]


@cache
def sound(version: str) -> tuple[bytes, tuple[Field, ...]]:
    """A tiny RWKV, and where its numbers stand."""
    state = tiny.weights(version, width=64, layers=1, ffn=64, vocab=8, dtype=torch.float16)
    data = b"".join(number.to_bytes(4, "little") for number in (0x67676D66, 101, 8, 64, 1, 0))
    fields = list(_HEADER)
    for record in expected(state, version, half=False):
        fields += [(len(data) + 4 * at, 4) for at in range(3 + len(record.sizes))]
        data += record.packed
    return data, tuple(fields)


def mutated(rng: random.Random) -> bytes:
    """A file with, nearly always, at least one thing wrong with it."""
    whole, fields = sound(rng.choice(("4", "5", "5.2", "6", "7")))
    data = bytearray(whole)
    if rng.random() < 0.7:
        poke(rng, data, fields)
    else:
        scramble(rng, data)
    return bytes(data)

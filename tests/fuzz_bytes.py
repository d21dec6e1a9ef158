"""Damage that any file can take: numbers replaced where a format keeps them, and bytes changed anywhere."""

from __future__ import annotations

import random
from collections.abc import Sequence

# Where arithmetic turns over; negative ones are written in two's complement.
BOUNDARIES: tuple[int, ...] = (
    0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1,
    2**63, 2**64 - 32, 2**64 - 1,
)  # fmt: skip

Field = tuple[int, int]  # where a little-endian number stands, and how many bytes it has


def number(rng: random.Random, old: int, size: int) -> int:
    """A value to put in the place of `old`, in a file of `size` bytes."""
    around = (
        old + 1,
        old - 1,
        old * 2,
        old // 2,
        size,
        size - old,
        size + 1,
        rng.randrange(size + 1),
        rng.randrange(16),
    )
    return rng.choice(BOUNDARIES if rng.random() < 0.6 else around)


def poke(rng: random.Random, data: bytearray, fields: Sequence[Field]) -> None:
    """Changes one to three of the numbers at `fields`."""
    inside = [(place, width) for place, width in fields if place + width <= len(data)]
    for place, width in rng.choices(inside, k=rng.choice((1, 1, 2, 3))) if inside else ():
        old = int.from_bytes(data[place : place + width], "little")
        new = number(rng, old, len(data)) % (1 << 8 * width)
        data[place : place + width] = new.to_bytes(width, "little")


def scramble(rng: random.Random, data: bytearray) -> None:
    """Flips, cuts, inserts, removes or copies bytes; half of the time near the start, where the structure is."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        end = len(data) if rng.random() < 0.5 else min(len(data), 600)
        place, length = rng.randrange(end + 1), int(2 ** rng.uniform(0, 11))
        match rng.choice(("flip", "flip", "flip", "set", "cut", "insert", "remove", "copy", "zero")):
            case "flip" if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case "set":
                data[place : place + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
            case "cut":
                del data[rng.choice((place, rng.randrange(len(data) + 1), len(data) - min(len(data), length))) :]
            case "insert":
                data[place:place] = rng.choice((rng.randbytes(length), b"\0" * length, b"\xff" * length))
            case "remove":
                del data[place : place + length]
            case "copy":
                origin = rng.randrange(len(data) + 1)
                data[place : place + rng.choice((0, length))] = data[origin : origin + length]
            case "zero":
                data[place : place + length] = bytes(min(length, len(data) - place))

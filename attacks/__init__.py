"""Hostile files, each made by a few lines, with what ggufy must say of it.

    python -m attacks FOLDER     writes them all there, for other programs to try

An attack is a function that writes one file; its docstring says what the file tries, `says` is a pattern of the one
sentence that `ggufy inspect` must answer (of an adapter: `ggufy convert --lora`). tests/test_attacks.py runs all of
them, within memory and time that no file may exceed, and looks that nothing was executed and nothing written. Nothing
here imports ggufy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Attack:
    """One file."""

    name: str  # of the file
    make: Callable[[Path], None]
    says: str  # a pattern of the refusal
    adapter: bool = False  # given as an adapter of a model (a file, or a folder), not as the model

    @property
    def tries(self) -> str:
        return (self.make.__doc__ or "").strip()


ATTACKS: dict[str, Attack] = {}


def attack(
    name: str, says: str, *, adapter: bool = False
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Registers a function that writes the file."""

    def register(make: Callable[[Path], None]) -> Callable[[Path], None]:
        ATTACKS[name] = Attack(name, make, says, adapter)
        return make

    return register

"""`python -m attacks FOLDER` writes every hostile file there, and says what each tries."""

from __future__ import annotations

import sys
from pathlib import Path

from attacks import ATTACKS, adapters, checkpoints, ggufs, rwkvcpp, safetensors  # noqa: F401 - they register


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for attack in ATTACKS.values():
        attack.make(folder / attack.name)
        sys.stdout.write(f"{attack.name:<20} {attack.tries}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m attacks FOLDER")
    main(Path(sys.argv[1]))

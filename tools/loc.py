"""Prints the lines of Python by package, and their sum: `make loc`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lines(root: Path = ROOT) -> dict[str, int]:
    """Lines of each package of ggufy, by its name; `.` is what stands in the root."""
    package = root / "ggufy"
    found: dict[str, int] = {}
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).parts[0] if path.parent != package else "."
        found[place] = found.get(place, 0) + path.read_text(encoding="utf-8").count("\n")
    return found


def table(found: dict[str, int]) -> str:
    """Largest first, the sum last."""
    rows = [*sorted(found.items(), key=lambda row: -row[1]), ("ggufy", sum(found.values()))]
    return "\n".join(f"{name:10} {count:>7,}" for name, count in rows)


if __name__ == "__main__":
    sys.stdout.write(table(lines()) + "\n")

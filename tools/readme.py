"""Writes the README's tables from the code that they describe: `python -m tools.readme`. A test compares them."""

from __future__ import annotations

from pathlib import Path

from ggufy.core.catalog import QUANT_TYPES
from ggufy.core.job import Status
from ggufy.system import settings

README = Path(__file__).parent.parent / "README.md"
STATUS_WORDS = {
    Status.QUEUED: "waits its turn",
    Status.RUNNING: "being worked on; or interrupted: the page goes on by itself, the command line with `resume`",
    Status.DONE: "every file is there",
    Status.FAILED: "an error ended it; run it again when the cause is gone, finished files are kept",
    Status.CANCELLED: "its user ended it; finished files are kept",
    Status.PAUSED: "its user stopped it for now; it goes on when it is resumed, not by itself",
}


def quant_types() -> str:
    """The table of the 29 quant types."""
    lines = ["| quant type | bits per weight¹ | needs an imatrix | recommended | advice |", "|---|---|---|---|---|"]
    for row in QUANT_TYPES:
        needs, recommended = ("yes" if flag else "" for flag in (row.needs_imatrix, row.recommended))
        lines.append(f"| {row.name} | {row.bits:g} | {needs} | {recommended} | {row.advice} |")
    return "\n".join(lines)


def settings_table() -> str:
    """The table in settings.py's docstring, with code marks."""
    rows = [line for line in (settings.__doc__ or "").splitlines() if line.startswith("|")]
    lines = []
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if set(cells[0]) == {"-"}:
            lines.append("|---" * len(cells) + "|")
        else:
            first = cells[0] if cells[0] == "variable" else f"`{cells[0]}`"
            lines.append(f"| {first} | {' | '.join(cells[1:])} |")
    return "\n".join(lines)


def statuses() -> str:
    """What each status of a job means."""
    return "\n".join(f"- **{status.value}**: {STATUS_WORDS[status]}" for status in Status)


BLOCKS = {"quant types": quant_types, "settings": settings_table, "statuses": statuses}


def rendered(text: str) -> str:
    """The README with every block between `<!-- name -->` and `<!-- end -->` made anew."""
    for name, make in BLOCKS.items():
        before, found, rest = text.partition(f"<!-- {name} -->\n")
        assert found, f"README.md has no block {name!r}"
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{found}{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8")), encoding="utf-8")

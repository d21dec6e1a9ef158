"""Figures that a card's tables tell, read back: of a published repo they are all that others can know. Pure.

What is read is what card_tables.py writes, in this version or an older one; a card of somebody else's says nothing. A
card may be anybody's text: whatever does not look like a table of figures is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ggufy.core.comparison import Basis, Figures, Measure, of_base

MOST_BYTES = 1 << 20  # of a card
_MOST_ROWS = 1000
_NAME = re.compile(r"(?:\[([^\]\n]+)\]\([^)\n]*\)|([^|\n]+))")
_NUMBER = r"\d{1,12}(?:\.\d{1,12})?"
_NUMBER = r"\d{1,12}(?:\.\d{1,12})?"
_FIGURE = re.compile(rf"(-?{_NUMBER})(?: ± ({_NUMBER}))?(?: %)?(?: \((\d{{1,4}}) threads?\))?")
_OVER = re.compile(r"over ([\d,]{1,20}) tokens of (.{1,300}?) text\b.{0,200}?\(sha256 `([0-9a-f]{64})`\)")
_BASE_PPL = re.compile(r"Perplexity of the base: (\d{1,12}\.\d{1,6})")
_THREADS = re.compile(r"with (\d{1,4}) threads? of the machine")


@dataclass(frozen=True, kw_only=True)
class CardRow:
    """What a card says of one file."""

    type: str = ""  # empty: it says none
    bpw: float | None = None
    figures: tuple[Figures, ...] = ()
    generation: Measure | None = None  # tokens a second
    threads: int | None = None


@dataclass
class _Table:
    head: list[str]
    rows: list[dict[str, str]] = field(default_factory=list)
    told: str = ""  # the lines around it that say over which text


def read_tables(card: str, digest: Callable[[str], str]) -> Mapping[str, CardRow]:
    """What the card says of each file, by name; `digest` gives the sha256 of a file of the repo, or empty."""
    tables = list(_tables(card))
    base = next((row["file"] for table in tables for row in table.rows if row.get("type", "").startswith("base")), "")
    found: dict[str, CardRow] = {}
    for table in tables:
        over, ppl = _OVER.search(table.told), _BASE_PPL.search(table.told)
        basis = None
        if over and base:
            basis = Basis(
                base=base,
                base_sha256=digest(base) or base,
                text=over[2],
                text_sha256=over[3],
                tokens=int(over[1].replace(",", "") or 0),
            )
        threads = _THREADS.search(table.told)
        for row in table.rows:
            told = _row(row, basis, int(threads[1]) if threads else None)
            found[row["file"]] = _joined(found.get(row["file"], CardRow()), told)
        if basis and ppl:
            figures = of_base(basis, Measure(value=float(ppl[1])))
            found[base] = _joined(found[base], CardRow(figures=(figures,)))
    return found


def _tables(card: str) -> Iterator[_Table]:
    """The tables of files; the text over which stands behind a table, or before one of a further text."""
    table, before, count = None, "", 0
    for line in card[:MOST_BYTES].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells and cells[0] == "file":
            if table:
                yield table
            table, before = _Table(cells, told=before), ""
        elif cells and table and not set(line) <= set("|-: ") and count < _MOST_ROWS:
            name = _NAME.fullmatch(cells[0])
            count += 1
            row = dict(zip(table.head, cells, strict=False))
            table.rows.append(row | {"file": (name[1] or name[2]).strip() if name else ""})
        elif line.startswith("Measured with") and table and not table.told:
            table.told = line
        elif line.startswith("The same over"):
            before = line
    if table:
        yield table


def _row(row: Mapping[str, str], basis: Basis | None, threads: int | None) -> CardRow:
    """What one line says; figures without a text that they are over say nothing."""
    kind, bpw, speed = row.get("type", ""), _measure(row.get("bpw", "")), _FIGURE.fullmatch(row.get("t/s", ""))
    kld, ppl, ratio, top = (_measure(row.get(name, "")) for name in ("KLD", "PPL", "PPL ratio", "same top p"))
    figures: tuple[Figures, ...] = ()
    if basis and kld and ppl and ratio and top:
        figures = (Figures(basis=basis, kld=kld, ppl=ppl, ppl_ratio=ratio, same_top=top),)
    return CardRow(
        type=kind.rpartition(", ")[2] if kind.startswith("base") else kind,
        bpw=bpw.value if bpw else None,
        figures=figures,
        generation=_measure(row.get("t/s", "")),
        threads=(int(speed[3]) if speed and speed[3] else threads) if speed else None,
    )


def _joined(one: CardRow, other: CardRow) -> CardRow:
    """What two tables say of the same file."""
    return CardRow(
        type=one.type or other.type,
        bpw=one.bpw if one.bpw is not None else other.bpw,
        figures=one.figures + other.figures,
        generation=one.generation or other.generation,
        threads=one.threads if one.generation else other.threads,
    )


def _measure(cell: str) -> Measure | None:
    found = _FIGURE.fullmatch(cell)
    return Measure(value=float(found[1]), error=float(found[2]) if found[2] else None) if found else None

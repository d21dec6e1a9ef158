"""Files of any models side by side: what was measured of them, and which of these figures can be compared. No I/O.

KLD, PPL ratio and same top p say how far a file is from its own base over one text, and PPL how well it reads that
text. So files stand in groups: one base, one text, as many tokens. Figures of two groups never share a column.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ggufy.core.metrics import Evaluation, Quality, TextFigures, memory_needed, plus_minus
from ggufy.core.words import human_size

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure, with its standard error (of a speed: the deviation between runs) where that is known."""

    value: float
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What figures are against, and over."""

    base: str  # file name
    base_sha256: str  # or another text that tells it from others
    text: str  # name
    text_sha256: str
    tokens: int  # that were scored

    @property
    def key(self) -> tuple[str, str, int]:
        """The same for figures that can be compared."""
        return self.base_sha256, self.text_sha256, self.tokens


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How good one file is."""

    basis: Basis
    kld: Measure  # nats a token
    ppl: Measure
    ppl_ratio: Measure  # to the base's
    same_top: Measure  # %


@dataclass(frozen=True, kw_only=True)
class ComparedFile:
    """One file of a model, with all that is known of it."""

    place: str  # name of its folder, or of its repo
    file: str
    type: str  # quant type or size to order; of a base, its type
    size: int  # bytes
    sha256: str = ""  # empty: not known
    bpw: float | None = None
    is_base: bool = False  # not quantized: what others are measured against
    figures: tuple[Figures, ...] = ()  # over each text
    prompt: Measure | None = None  # tokens a second that are read
    generation: Measure | None = None  # and written
    threads: int | None = None  # of both speeds


@dataclass(frozen=True, kw_only=True)
class Group:
    """Files that can be compared, smallest first; of those without a basis only sizes and speeds can be."""

    basis: Basis | None
    files: tuple[tuple[ComparedFile, Figures | None], ...]


def figures_of(evaluation: Evaluation) -> tuple[Figures, ...]:
    """Over each of its texts."""
    return tuple(_figures(basis, quality) for basis, quality in _over(evaluation))


def figures_of_base(evaluation: Evaluation) -> tuple[Figures, ...]:
    """What a quant's evaluation says of its base."""
    return tuple(
        of_base(basis, Measure(value=quality.base_ppl, error=quality.base_ppl_error))
        for basis, quality in _over(evaluation)
    )


def of_base(basis: Basis, ppl: Measure) -> Figures:
    """A base differs from itself by nothing."""
    none, whole = Measure(value=0.0), Measure(value=100.0)
    return Figures(basis=basis, kld=none, ppl=ppl, ppl_ratio=Measure(value=1.0), same_top=whole)


def _over(evaluation: Evaluation) -> Iterator[tuple[Basis, Quality]]:
    """What was found over each of its texts."""
    base = evaluation.base_sha256 or evaluation.base
    over: tuple[Evaluation | TextFigures, ...] = (evaluation, *evaluation.others)
    for one in over:
        yield (
            Basis(
                base=evaluation.base,
                base_sha256=base,
                text=one.text,
                text_sha256=one.text_sha256,
                tokens=one.tokens,
            ),
            one.quality,
        )


def _figures(basis: Basis, quality: Quality) -> Figures:
    return Figures(
        basis=basis,
        kld=Measure(value=quality.kld, error=quality.kld_error),
        ppl=Measure(value=quality.ppl, error=quality.ppl_error),
        ppl_ratio=Measure(value=quality.ppl_ratio, error=quality.ppl_ratio_error),
        same_top=Measure(value=quality.same_top, error=quality.same_top_error),
    )


def grouped(files: Iterable[ComparedFile]) -> list[Group]:
    """The files in groups, in the order in which these are met; those that were not measured last. A file that was
    measured over several texts stands in a group for each."""
    found: dict[tuple[str, str, int], list[tuple[ComparedFile, Figures | None]]] = {}
    bases: dict[tuple[str, str, int], Basis] = {}
    rest: list[tuple[ComparedFile, Figures | None]] = []
    for file in files:
        for figures in file.figures:
            bases.setdefault(figures.basis.key, figures.basis)
            found.setdefault(figures.basis.key, []).append((file, figures))
        rest += [] if file.figures else [(file, None)]
    groups = [Group(basis=bases[key], files=_by_size(pairs)) for key, pairs in found.items()]
    return groups + ([Group(basis=None, files=_by_size(rest))] if rest else [])


def _by_size(
    pairs: Iterable[tuple[ComparedFile, Figures | None]],
) -> tuple[tuple[ComparedFile, Figures | None], ...]:
    return tuple(sorted(pairs, key=lambda pair: (pair[0].size, pair[0].place, pair[0].file)))


def apart(groups: Sequence[Group]) -> list[str]:
    """By what measured groups differ: some of `base`, `text`, `tokens`; empty if there are not two."""
    bases = [group.basis for group in groups if group.basis]
    told = []
    if len({one.base_sha256 for one in bases}) > 1:
        told.append("base")
    if len({one.text_sha256 for one in bases}) > 1:
        told.append("text")
    if len({(one.text_sha256, one.tokens) for one in bases}) > len({one.text_sha256 for one in bases}):
        told.append("tokens")
    return told


def thread_counts(files: Iterable[ComparedFile]) -> set[int]:
    """With how many threads the speeds were measured; more than one make them differ for no merit of the file."""
    return {file.threads for file in files if file.threads is not None and file.generation}


# ---- as people and programs read it

_Row = tuple[ComparedFile, Figures | None]
COLUMNS: dict[str, Callable[[ComparedFile, Figures | None], str]] = {
    "size": lambda file, _: human_size(file.size),
    "bpw": lambda file, _: f"{file.bpw:.2f}" if file.bpw is not None else "",
    "kld": lambda _, found: _quality(found.kld, 4) if found else "",
    "ppl": lambda _, found: _quality(found.ppl, 3) if found else "",
    "ppl_ratio": lambda _, found: _quality(found.ppl_ratio, 4) if found else "",
    "same_top": lambda _, found: f"{_quality(found.same_top, 1)} %" if found else "",
    "prompt": lambda file, _: _speed(file.prompt),
    "speed": lambda file, _: _speed(file.generation),
    "memory": lambda file, _: human_size(memory_needed(file.size)),
}


def _quality(measure: Measure, digits: int) -> str:
    """`0.0123 ± 0.0002`."""
    error = f" ± {measure.error:.{digits}f}" if measure.error is not None else ""
    return f"{measure.value:.{digits}f}{error}"


def _speed(measure: Measure | None) -> str:
    if measure is None:
        return ""
    return plus_minus(measure.value, measure.error) if measure.error is not None else f"{measure.value:.1f}"


_MEASURES = ("kld", "ppl", "ppl_ratio", "same_top")
CSV_HEAD = (
    *("place", "file", "type", "size", "bpw", "memory"),
    *(name + end for name in _MEASURES for end in ("", "_error")),
    *("prompt_tps", "prompt_tps_error", "generation_tps", "generation_tps_error", "threads"),
    *("base", "base_sha256", "text", "text_sha256", "tokens", "sha256"),
)


def to_csv(groups: Iterable[Group]) -> str:
    """One line a file and group, with all digits, sizes in bytes; empty where nothing is known. A text that a
    spreadsheet would take for a formula gets an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for group in groups:
        for file, figures in group.files:
            writer.writerow([_cell(value) for value in _values(file, figures)])
    return out.getvalue()


def _values(file: ComparedFile, figures: Figures | None) -> list[str | float | None]:
    basis = figures.basis if figures else None
    measures = [getattr(figures, name) if figures else None for name in _MEASURES] + [file.prompt, file.generation]
    return [
        *(file.place, file.file, file.type, file.size, file.bpw, memory_needed(file.size)),
        *(part for one in measures for part in ((one.value, one.error) if one else (None, None))),
        file.threads,
        *((basis.base, basis.base_sha256, basis.text, basis.text_sha256, basis.tokens) if basis else (None,) * 5),
        file.sha256,
    ]


def _cell(value: str | float | None) -> str | float:
    if isinstance(value, str) and value.startswith(_FORMULAS):
        return f"'{value}"
    return "" if value is None else value

"""What is known of model files, for comparing them: from the records of jobs, from what `evaluate` has measured, and
from the cards of published repos. Nothing is measured here.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufy.core.catalog import BY_NAME, OUTTYPES
from ggufy.core.comparison import Basis, ComparedFile, Figures, Group, Measure, figures_of, figures_of_base
from ggufy.core.errors import SourceError, UsageError
from ggufy.core.hosts import RepoName
from ggufy.core.job import Job
from ggufy.core.metrics import Evaluation, Speed, from_json
from ggufy.core.plan import base_name, base_type
from ggufy.formats.gguf import read_head
from ggufy.jobs.results import models, results, together
from ggufy.publish.card import CARD
from ggufy.publish.card_figures import MOST_BYTES, CardRow, read_tables
from ggufy.publish.kld_plot import Point, Words, measured
from ggufy.publish.plot_png import png
from ggufy.quantize.search import target
from ggufy.records.store import EVALUATIONS, STATE_REPO, JobStore
from ggufy.sources.published import PublishedRepo
from ggufy.system.clock import never
from ggufy.system.files import sha256

_MODEL_FILES = ("model", "")  # in general.type; imatrices, adapters and projectors say something else


def of_model(rows: Sequence[Mapping[str, Any]], jobs: Sequence[Job], place: str) -> list[ComparedFile]:
    """The model files among the `rows` of `ggufy.jobs.results.together`, with what the `jobs` of their folder have
    measured: of the very bytes, where these are known."""
    evaluations = [one for job in jobs for one in job.evaluations]
    bases = {base_name(job.request): base_type(job.request) for job in jobs}
    return [
        with_figures(
            ComparedFile(
                place=place,
                file=row["file"],
                type=row.get("type") or bases.get(row["file"], ""),
                size=row["size"],
                sha256=row.get("sha256", ""),
                bpw=row.get("bpw"),
                is_base="type" not in row,
            ),
            evaluations,
        )
        for row in models(rows)
    ]


def with_figures(file: ComparedFile, evaluations: Iterable[Evaluation]) -> ComparedFile:
    """The file with what these say of it, each basis once."""
    found: dict[tuple[str, str, int], Figures] = {one.basis.key: one for one in file.figures}
    for one in evaluations:
        told: tuple[Figures, ...] = ()
        if one.quant == file.file and one.size == file.size and (not file.sha256 or one.is_of(file.sha256)):
            told = figures_of(one)
            file = _with_speed(file, one.shown_speed)
            file = replace(file, bpw=one.bpw if file.bpw is None else file.bpw)
        elif file.sha256 in ("", one.base_sha256) and one.base == file.file:
            told = figures_of_base(one)
        for figures in told:
            found.setdefault(figures.basis.key, figures)
    return replace(file, figures=tuple(found.values()))


def _with_speed(file: ComparedFile, speed: Speed | None) -> ComparedFile:
    if speed is None or file.generation is not None:
        return file
    return replace(
        file,
        prompt=Measure(value=speed.prompt_tps, error=speed.prompt_tps_error),
        generation=Measure(value=speed.generation_tps, error=speed.generation_tps_error),
        threads=speed.threads,
    )


def in_folder(folder: Path, *, out: Path, only: str = "") -> list[ComparedFile]:
    """The model files of a folder, or `only` the one of that name: of jobs that made them there, and GGUFs of anybody.
    `out` is the folder of results in whose records `evaluate` keeps what it measures.

    Raises SourceError for one that is broken, if it was named.
    """
    name = folder.absolute().name
    jobs = [job for job in JobStore(folder.absolute().parent).jobs() if job.request.folder == name]
    rows, _ = together([results(job, None, folder) for job in reversed(jobs)])
    here = [row for row in rows if (folder / row["file"]).exists()]
    files = [one for one in of_model(here, jobs, name) if only in ("", one.file)]
    known = {row["file"] for row in rows}
    for path in [folder / only] if only else sorted(folder.glob("*.gguf")):
        if path.name not in known and (found := _unknown(path, name, strict=bool(only))):
            files.append(found)
    known_here = [one for place in dict.fromkeys((out, folder.absolute().parent)) for one in _evaluations(place)]
    return [_measured_by_hand(_with_bpw(file, folder), folder / file.file, known_here) for file in files]


def _with_bpw(file: ComparedFile, folder: Path) -> ComparedFile:
    """With the bits per weight that its head tells, if no record does and it is a GGUF."""
    path = folder / file.file
    with contextlib.suppress(SourceError):
        if file.bpw is None and path.suffix == ".gguf":
            return replace(file, bpw=round(read_head(path).bpw, 3))
    return file


def _unknown(path: Path, place: str, *, strict: bool) -> ComparedFile | None:
    """A GGUF that no job has made here; None for one that holds no model."""
    try:
        head = read_head(path)
    except SourceError:
        if strict:
            raise
        return None
    if not head.elements or head.metadata.get("general.type", "") not in _MODEL_FILES:
        return None
    return ComparedFile(
        place=place,
        file=path.name,
        type=type_in(path.name) or ("" if head.quantized else head.outtype.upper()),
        size=head.file_size,
        bpw=round(head.bpw, 3),
        is_base=not head.quantized,
    )


def type_in(name: str) -> str:
    """The type that a GGUF's name ends in; empty if it ends in none."""
    label = name.removesuffix(".gguf").rpartition("-")[2].upper()
    return label if label in BY_NAME or label.lower() in OUTTYPES else ""


def _evaluations(out: Path) -> list[Evaluation]:
    found = []
    for path in sorted((out / STATE_REPO / EVALUATIONS).glob("*.json")):
        with contextlib.suppress(ValueError, OSError):
            found.append(from_json(path.read_text(encoding="utf-8")))
    return found


def _measured_by_hand(file: ComparedFile, path: Path, evaluations: Sequence[Evaluation]) -> ComparedFile:
    """With what `evaluate` says of these very bytes: their digest is taken only if something may be about them."""
    near = [one for one in evaluations if file.file in (one.base, one.quant)]
    near = [one for one in near if one.base == file.file or one.size == file.size]
    if near and not file.sha256:
        file = replace(file, sha256=sha256(path))
    return with_figures(file, near)


def points(groups: Iterable[Group]) -> list[Point]:
    """For the plot, smallest file first: a series for each group. Files of the same type in one group are told apart
    by where they are."""
    found = []
    for series, group in enumerate(group for group in groups if group.basis):
        often = Counter(file.type for file, _ in group.files)
        for file, figures in group.files:
            name = target.short(file.type) + (f" · {file.place}" if often[file.type] > 1 else "")
            kld = figures.kld.value if figures else None
            found.append(Point(name=name, size=file.size, kld=kld, series=series))
    return sorted(found, key=lambda point: point.size)


def picture(groups: Sequence[Group]) -> bytes:
    """The plot as a PNG. Raises UsageError if no file has a KLD to draw."""
    if not measured(drawn := points(groups)):
        raise UsageError("none of these files has a KLD to draw: measure them first.")
    words = Words(size="size", kld="KLD", title="")
    return png(drawn, words, [said(group.basis) for group in groups if group.basis])


def said(basis: Basis) -> str:
    """What a group's figures are against, and over."""
    return f"{basis.base}, over {basis.tokens:,} tokens of {basis.text}"


def in_repo(text: str, *, out: Path, token: str | None, stopped: Callable[[], bool] = never) -> list[ComparedFile]:
    """The GGUFs of the repo that `[ms:]owner/name[@revision][:file.gguf]` names, with what the records of jobs that
    published there say of these bytes, else what its card says. Raises SourceError, SourceAway, Cancelled."""
    repo = PublishedRepo.of(text, token=token, stopped=stopped)
    card = repo.read(CARD, limit=MOST_BYTES, token=token, stopped=stopped)
    told = read_tables(card, lambda name: repo.files[name].sha256 if name in repo.files else "") if card else {}
    name = RepoName.of(repo.name).repo_id
    jobs = [job for job in JobStore(out).jobs() if repo.name in job.request.repos]
    evaluations = [one for job in jobs for one in job.evaluations]
    found = []
    for file, source in repo.files.items():
        row = told.get(file, CardRow())
        if repo.chosen not in ("", file) or (not row.type and not type_in(file)):
            continue  # an imatrix, an adapter
        kind = row.type or type_in(file)
        bare = ComparedFile(
            place=name,
            file=file,
            type=kind,
            size=source.size,
            sha256=source.sha256,
            bpw=row.bpw,
            is_base=kind.lower() in OUTTYPES,
        )
        known = with_figures(bare, evaluations)
        if not known.figures:
            known = replace(known, figures=row.figures)
        if known.generation is None:
            known = replace(known, generation=row.generation, threads=row.threads)
        found.append(known)
    return found

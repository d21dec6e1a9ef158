"""The files of a model as rows of a table, plain text, and what a plot and a choice are made of. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from ggufy.core import metrics
from ggufy.core.job import FrontierPoint, Job
from ggufy.core.metrics import Pick, shown_latency, shown_speed
from ggufy.core.outputs import RWKVCPP
from ggufy.core.words import human_size
from ggufy.jobs.results import models
from ggufy.publish.kld_plot import Point
from ggufy.publish.links import file_address, repo_page
from ggufy.quantize.search import target
from ggufy.steps import STEPS
from ggufy.steps.outputs import output_of_row
from ggufy.ui.i18n import Texts, advice_key

_AS_LARGE = 0.02  # a file and a point of the frontier differ by no more
FILES_ROUTE = "files"  # the page serves /files/<job id>/<file name>


@dataclass(frozen=True, kw_only=True)
class FileMore:
    """What can be done with a file."""

    chats: bool
    commands: Mapping[str, str]  # by program, the line that runs it
    repo: str  # address of the repo that it is in; empty: none
    delete: str  # what is asked before it is deleted here; empty: this visitor may not, or it is not here


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One finished file."""

    job: str = ""  # id of the newest job that has it
    file: str
    link: str
    type: str
    size: str
    bpw: str
    imatrix: str = ""  # whether it needs one
    kld: str  # figures are empty where nothing was measured
    expected: str = ""  # KLD that the frontier lets expect of a size to order
    ppl: str = ""
    ppl_ratio: str
    same_top: str
    prompt: str = ""  # speed of reading
    speed: str
    memory: str = ""
    note: str = ""
    sha256: str
    key: str = ""  # of what can be opened below it; empty: nothing
    opened: FileMore | None = None
    tick: str = ""  # what it is compared by; empty: it is no model


def tick_of(folder: str, file: str) -> str:
    """What tells a file of a model from all others, between the page and its browser."""
    return f"{folder}/{file}"


def points(rows: Sequence[Mapping[str, Any]], base: str) -> tuple[Point, ...]:
    """The models among the files, smallest first."""
    found = [
        Point(name=target.short(row.get("type") or base), size=row["size"], kld=_kld(row)) for row in models(rows)
    ]
    return tuple(sorted(found, key=lambda point: point.size))


def picks(rows: Sequence[Mapping[str, Any]], base: str) -> tuple[Pick, ...]:
    """Which file to take for every amount of memory: each line holds from its amount on."""
    models = {point.name: point for point in points(rows, base)}
    sizes = {name: point.size for name, point in models.items()}
    klds = {name: point.kld for name, point in models.items() if point.kld is not None}
    return metrics.picks(sizes, klds)


def _kld(row: Mapping[str, Any]) -> float | None:
    if "type" not in row:
        return 0.0  # the base is what the others are compared with
    return float(row["evaluation"]["quality"]["kld"]) if "evaluation" in row else None


def file_row(
    job_id: str, row: Mapping[str, Any], texts: Texts, *, repo: str = "", frontier: Sequence[FrontierPoint] = ()
) -> FileRow:
    """One line of the results, from a record of `ggufy.jobs.results.results`; `repo` is the output repo's address."""
    over, speed = _figures(row)
    made_by = STEPS[row["kind"]]
    if row.get("same_tensors_as"):
        note = texts["same_as"].format(other=row["same_tensors_as"])
    elif row.get("mostly"):
        note = texts["mostly"].format(type=row["mostly"])
    else:
        note = advice(row, texts) if "type" in row else texts.get(f"note_{made_by.kind}", made_by.advice)
    return FileRow(
        job=job_id,
        file=row["file"],
        link=file_link(job_id, row["file"], repo=repo),
        type=target.short(row.get("type", "")) or _product(row, texts),
        size=human_size(row["size"]),
        bpw=f"{row['bpw']:.2f}" if "bpw" in row else "",
        imatrix=texts["yes" if row["needs_imatrix"] else "no"] if "needs_imatrix" in row else "",
        kld=" / ".join(f"{one['kld']:.4f}" for one in over),
        expected=_expected(row, frontier),
        ppl_ratio=" / ".join(f"{one['ppl_ratio']:.3f}" for one in over),
        same_top=" / ".join(f"{one['same_top']:.1f} %" for one in over),
        speed=shown_latency(speed) if row.get("format") == RWKVCPP else shown_speed(speed),
        note=note,
        sha256=row.get("sha256", ""),
    )


def _expected(row: Mapping[str, Any], frontier: Sequence[FrontierPoint]) -> str:
    """What the nearest point of the frontier says of a size to order, if there is one as large."""
    if not frontier or "type" not in row or row["type"] in output_of_row(row).types:
        return ""
    point = min(frontier, key=lambda one: abs(one.size - row["size"]))
    return f"{point.kld:.4f}" if abs(point.size - row["size"]) <= _AS_LARGE * row["size"] else ""


def _product(row: Mapping[str, Any], texts: Texts) -> str:
    """What a file that is no quant is called."""
    if "format" in row:
        return texts["product_base"]
    made_by = STEPS[row["kind"]]
    return texts.get(f"product_{made_by.kind}", made_by.product_name)


def advice(row: Mapping[str, Any], texts: Texts) -> str:
    """One line about a quant."""
    quant, output = row["type"], output_of_row(row)
    if quant in output.types:
        return texts.get(advice_key(output.name, quant), output.advice(quant))
    wanted, _ = target.of_label(quant)
    return texts[f"advice_order_{wanted.kind}"].format(amount=wanted.shown)


def repo_address(job: Job) -> str:
    """Where the job's results are on a hub; empty if they are in a folder here."""
    return repo_page(job.request.repo_id) if job.request.repo_id else ""


def file_link(job_id: str, name: str, *, repo: str) -> str:
    """Where a file can be downloaded: from its repo, or from this page."""
    if repo:
        return file_address(repo, name)
    return f"{FILES_ROUTE}/{quote(job_id, safe='')}/{quote(name, safe='')}"


def _figures(row: Mapping[str, Any]) -> tuple[list[dict[str, float]], dict[str, Any] | None]:
    """Quality over each text, and speed, of a measured file."""
    measured = row.get("evaluation") or {}
    over = [one["quality"] for one in (measured, *measured.get("others", ())) if one]
    return over, measured.get("speed")

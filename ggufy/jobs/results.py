"""The files of a job with their sizes and what was measured of them, for tables, the page and the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ggufy.core.job import Artifact, Job, first_with_the_same
from ggufy.core.metrics import comparable
from ggufy.steps import STEPS, files_made
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.outputs import output_of
from ggufy.steps.outputs.gguf import GGUF
from ggufy.steps.outputs.output_format import OutputFormat

Row = TypeVar("Row", bound=Mapping[str, Any])


def results(job: Job, forecast: JobForecast | None, folder: Path) -> list[dict[str, Any]]:
    """One record per file of a job: what the table shows and what --json prints. Of figures over several texts or
    numbers of tokens, those that can be compared."""
    known = {artifact.name: artifact for artifact in job.artifacts}
    measured = {one.quant: one for one in next(iter(comparable(job.evaluations)), [])}
    same_as = _same_tensors(job, forecast)
    output = output_of(job.request)
    rows: list[dict[str, Any]] = []
    for step in files_made(job.request):
        path, artifact = folder / step.product, known.get(step.product)
        published = bool(job.request.repo_id) and artifact is not None
        if not path.exists() and not published:
            continue
        size = path.stat().st_size if path.exists() else known[step.product].size
        row: dict[str, Any] = {"file": step.product, "kind": step.kind, "size": size}
        if artifact:
            row["sha256"] = artifact.sha256
        if output is not GGUF and (step.quant_type or (step.is_model and output.names.base_suffix != "gguf")):
            row["format"] = output.name
        if step.quant_type:
            row["type"] = step.quant_type
            if step.quant_type in output.types:
                row["needs_imatrix"] = output.types[step.quant_type].needs_imatrix
                row["same_tensors_as"] = same_as.get(step.quant_type)
                if artifact and artifact.making and artifact.making.mostly:
                    row["mostly"] = artifact.making.mostly
            if (bpw := _bits(step.quant_type, path, artifact, forecast, output)) is not None:
                row["bpw"] = round(bpw, 3)
            if artifact and artifact.making and artifact.making.mode:
                row["mode"] = artifact.making.mode
            if artifact and artifact.making and artifact.making.rounding:
                row["rounding"] = artifact.making.rounding
            if step.product in measured:
                row["evaluation"] = asdict(measured[step.product])
        rows.append(row)
    return rows


def together(each: Sequence[Sequence[dict[str, Any]]]) -> tuple[tuple[dict[str, Any], ...], dict[str, int]]:
    """Each file of some jobs of one folder once, from the `results` of each: quants by size; and by name the place of
    the job that it is of. Of what several jobs know of the same bytes, the first job's counts."""
    found: dict[str, dict[str, Any]] = {}
    owners: dict[str, int] = {}
    after: set[str] = set()  # no quants, but made after them
    for number, rows in enumerate(each):
        quants = False
        for row in rows:
            known, quants = found.get(row["file"]), quants or "type" in row
            if known is None:
                found[row["file"]], owners[row["file"]] = row, number
                after |= {row["file"]} if quants and "type" not in row else set()
            elif known["size"] == row["size"] and known.get("sha256") == row.get("sha256", known.get("sha256")):
                found[row["file"]] = row | known

    def place(row: Mapping[str, Any]) -> tuple[int, int]:
        return (1, row["size"]) if "type" in row else (2 if row["file"] in after else 0, 0)

    return tuple(sorted(found.values(), key=place)), owners


def models(rows: Iterable[Row]) -> list[Row]:
    """Those of `results`' records that are of models: the base, and quants, which have a type."""
    return [row for row in rows if STEPS[row["kind"]].is_model]


def _bits(
    quant: str, path: Path, artifact: Artifact | None, forecast: JobForecast | None, output: OutputFormat
) -> float | None:
    """Bits per weight: as the record has them, or as the forecast or the file itself says."""
    if artifact and artifact.making and artifact.making.bpw is not None:
        return artifact.making.bpw
    if forecast and quant in forecast.quants:
        return forecast.quants[quant].bpw
    return output.read_types(path)[0] if forecast and path.exists() else None


def _same_tensors(job: Job, forecast: JobForecast | None) -> dict[str, str]:
    recipes = {artifact.name: artifact.making.recipe for artifact in job.artifacts if artifact.making}
    known = {quant: recipes.get(job.request.file_of(quant), "") for quant in job.request.quant_types}
    return (forecast.same_as if forecast else {}) | first_with_the_same(known)

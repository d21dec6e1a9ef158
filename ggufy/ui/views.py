"""From jobs and snapshots to rows: everything a card of the page shows, as plain text. Pure, and without gradio.

Nothing here is escaped, and nothing is HTML; parts.py makes that of the rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from ggufy.files import human_size, human_time
from ggufy.job import FINISHED, Job, Status
from ggufy.plan import CONVERT, DOWNLOAD, FETCH, UPLOAD, UPLOADED, Step, plan
from ggufy.progress import DONE, RUNNING, WAITING, Snapshot, StepProgress
from ggufy.service import JobView
from ggufy.ui.i18n import Texts

FILES_ROUTE = "files"  # the page serves /files/<job id>/<file name>
# What a sentence says to people at a terminal, and how the page puts it; longer phrases come first.
_WORDS = {
    "run the same quantize command again": "start it again from the form",
    "run the same command again": "press Retry",
    "--imatrix none": "imatrix off",
    "--imatrix": "“Importance matrix”",
    "--outtype": "“Base type”",
    "--vocab": "“Own vocabulary”",
    "--types": "quant types",
    "--name": "“Name”",
    "--out": "GGUFY_OUT",
}
_SPOKEN = re.compile("|".join(rf"{re.escape(words)}\b" for words in _WORDS))


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One step of a job."""

    label: str
    state: str  # waiting, running or done
    state_text: str
    percent: int
    size: str
    time: str


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One finished file."""

    file: str
    link: str
    type: str
    size: str
    bpw: str
    needs_imatrix: str
    note: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class JobCard:
    """One job."""

    id: str
    name: str
    state: str  # a status, or cancelling
    state_text: str
    facts: tuple[str, ...]
    percent: int
    now: str  # what it is doing
    left: str  # how long it will take
    error: str
    action: str  # cancel, retry or nothing
    steps: tuple[StepRow, ...]
    steps_sum: str
    files: tuple[FileRow, ...]
    files_sum: str
    folder: str


def job_card(view: JobView, texts: Texts, *, now: datetime | None = None, ready: bool = True) -> JobCard:
    """The card of a job; `ready` says whether llama.cpp is."""
    job = view.job
    steps = _steps(view)
    done = sum(step.state == DONE for step in steps)
    running = next((step for step in steps if step.state == RUNNING), None)
    files = tuple(file_row(job.id, row, texts) for row in view.files)
    state = "cancelling" if view.stopping and job.status not in FINISHED else job.status.value
    return JobCard(
        id=job.id,
        name=job.request.name,
        state=state,
        state_text=texts[f"status_{state}"],
        facts=_facts(job, texts, now or datetime.now(UTC)),
        percent=round(100 * (done + (running.fraction if running else 0)) / len(steps)),
        now=_now(view, steps, texts, ready=ready),
        left=_left(view.snapshot, texts) if running else "",
        error=in_page_words(job.error),
        action=_action(view, state),
        steps=tuple(_step_row(step, view, texts) for step in steps),
        steps_sum=texts["steps_done"].format(done=done, total=len(steps)),
        files=files,
        files_sum=texts["files_sum"].format(count=len(files), size=human_size(sum(r["size"] for r in view.files))),
        folder=str(view.folder),
    )


def file_row(job_id: str, row: dict[str, Any], texts: Texts) -> FileRow:
    """One line of the results, from one of `ggufy.terminal.results`'s records."""
    kind = row.get("type", "")
    if row.get("same_tensors_as"):
        note = texts["same_as"].format(other=row["same_tensors_as"])
    else:
        note = texts[f"advice_{kind}"] if kind else texts["base_note" if row["kind"] == CONVERT else "imatrix_note"]
    return FileRow(
        file=row["file"],
        link=f"{FILES_ROUTE}/{quote(job_id, safe='')}/{quote(row['file'], safe='')}",
        type=kind or texts["base_gguf" if row["kind"] == CONVERT else "kind_imatrix"],
        size=human_size(row["size"]),
        bpw=f"{row['bpw']:.2f}" if "bpw" in row else "",
        needs_imatrix=texts["yes" if row["needs_imatrix"] else "no"] if kind else "",
        note=note,
        sha256=row.get("sha256", ""),
    )


def in_page_words(sentence: str) -> str:
    """An error's sentence with the page's names for options and commands."""
    return _SPOKEN.sub(lambda match: _WORDS[match[0]], sentence)


def age(then: str, texts: Texts, now: datetime) -> str:
    """How long ago an ISO 8601 time was."""
    minutes = int((now - datetime.fromisoformat(then)).total_seconds() // 60) if then else 0
    if minutes < 1:
        return texts["just_now"]
    if minutes < 60:
        return texts["minutes_ago"].format(count=minutes)
    if minutes < 48 * 60:
        return texts["hours_ago"].format(count=minutes // 60)
    return texts["days_ago"].format(count=minutes // 1440)


def _steps(view: JobView) -> tuple[StepProgress, ...]:
    """The live steps, or what the files say of a job that is not live."""
    if view.snapshot and view.snapshot.steps:
        return view.snapshot.steps
    there = {row["file"] for row in view.files}
    return tuple(
        StepProgress(step=step, state=DONE if _file(step) in there or (there and step.kind == DOWNLOAD) else WAITING)
        for step in plan(view.job.request)
    )


def _file(step: Step) -> str:
    return step.product.removeprefix(UPLOADED)


def _step_row(progress: StepProgress, view: JobView, texts: Texts) -> StepRow:
    step = progress.step
    known = {row["file"]: row["size"] for row in view.files}
    size = known.get(_file(step)) or progress.size or view.forecast.get(step.quant_type, 0)
    return StepRow(
        label=_label(progress, texts),
        state=progress.state,
        state_text=texts[f"state_{progress.state}"],
        percent=round(100 * progress.fraction) if progress.state == RUNNING else 100 * (progress.state == DONE),
        size=human_size(size) if size else "",
        time=human_time(progress.seconds) if progress.seconds else "",
    )


def _label(progress: StepProgress, texts: Texts) -> str:
    step = progress.step
    what = _file(step) if step.kind in (UPLOAD, FETCH) else step.quant_type
    return f"{texts[f'kind_{step.kind}']} {what}".strip()


def _facts(job: Job, texts: Texts, now: datetime) -> tuple[str, ...]:
    request = job.request
    source = PurePath(request.source.path).name
    count = len(request.quant_types)
    return (
        f"{request.source.model_id}:{source}" if request.source.model_id else source,
        texts["quants_one" if count == 1 else "quants"].format(count=count),
        texts["base"].format(outtype=request.outtype),
        texts[f"imatrix_{request.imatrix}"],
        age(job.updated if job.status in FINISHED else job.created, texts, now),
    )


def _now(view: JobView, steps: tuple[StepProgress, ...], texts: Texts, *, ready: bool) -> str:
    if view.job.status in FINISHED:
        return ""
    if view.snapshot is None:
        return texts["elsewhere"]
    if view.job.status == Status.QUEUED or not view.snapshot.steps:
        return texts["waiting_turn" if ready else "waiting_llama"]
    for number, step in enumerate(steps, start=1):
        if step.state == RUNNING:
            place = texts["step_of"].format(number=number, total=len(steps))
            return f"{place} · {_label(step, texts)} · {round(100 * step.fraction)} %"
    return texts["getting_ready"]


def _left(snapshot: Snapshot | None, texts: Texts) -> str:
    if snapshot is None:
        return ""
    elapsed = texts["elapsed"].format(time=human_time(snapshot.elapsed_s))
    if snapshot.eta_s is None:
        return elapsed
    return f"{texts['left'].format(time=human_time(snapshot.eta_s))} · {elapsed}"


def _action(view: JobView, state: str) -> str:
    if state in (Status.FAILED, Status.CANCELLED):
        return "retry"
    return "cancel" if view.snapshot is not None and state != "cancelling" else ""

"""From jobs and snapshots to rows: everything a card of the page shows, as plain text. Pure, and without gradio.

Nothing here is escaped, and nothing is HTML; parts.py makes that of the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from ggufy.core import metrics
from ggufy.core.job import RESTING, Job, Status
from ggufy.core.metrics import Pick, shown_latency, shown_speed
from ggufy.core.outputs import RWKVCPP
from ggufy.core.plan import COVARIANCES, SOURCE_PRODUCT, Products, base_type, imatrix_name
from ggufy.core.progress import DONE, RUNNING, WAITING, Snapshot, StepProgress
from ggufy.core.words import human_size, human_time
from ggufy.jobs.results import models
from ggufy.publish.kld_plot import Point
from ggufy.publish.links import file_address, repo_page
from ggufy.quantize.search import target
from ggufy.service.job_views import JobView
from ggufy.steps import STEPS, plan
from ggufy.steps.outputs import output_of, output_of_row
from ggufy.ui.i18n import Texts, advice_key
from ggufy.ui.job_facts import job_facts, writing_facts
from ggufy.ui.messages import told
from ggufy.ui.sizes import SizeRow, size_rows, start_at

_ENDING = ("cancelling", "pausing")
FILES_ROUTE = "files"  # the page serves /files/<job id>/<file name>


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
    imatrix: str  # whether it needs one
    kld: str  # figures are empty where nothing was measured
    ppl_ratio: str
    same_top: str
    speed: str
    note: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class JobCard:
    """One job. What only an opened section shows is empty unless it was asked for, see `job_card`."""

    id: str
    name: str
    state: str  # a status, or cancelling or pausing
    state_text: str
    facts: tuple[str, ...]
    writing: tuple[str, ...]  # what its texts are, and what is missing in them
    percent: int
    now: str  # what it is doing, or waits for
    left: str  # how long it will take
    error: str  # why it failed, or what it needs to go on
    actions: tuple[str, ...]  # what its buttons do: cancel, pause, resume, retry
    sections: tuple[str, ...]  # which of SECTIONS there are
    findable: bool  # the section of sizes is a button that finds what there is to choose, not a slider
    log: str
    steps: tuple[StepRow, ...]
    steps_sum: str
    files: tuple[FileRow, ...]
    files_sum: str
    where: str  # folder, or the repo's name
    link: str  # address of the repo; empty: a folder
    points: tuple[Point, ...]
    picks: tuple[Pick, ...]
    sizes: tuple[SizeRow, ...]  # smallest first
    size_at: int  # place of the one that is shown first
    measured: bool

    @property
    def busy(self) -> bool:
        return self.state in ("running", "queued", *_ENDING)


SECTIONS = ("files", "plot", "sizes", "steps", "log")


def job_card(
    view: JobView,
    texts: Texts,
    *,
    now: datetime | None = None,
    ready: bool = True,
    sizes_known: bool = False,
    shown: Collection[str] = SECTIONS,
) -> JobCard:
    """The card of a job; `ready` says if llama.cpp is, `sizes_known` if another job finds what sizes there are, and
    `shown` which sections are open: the rows of others are not made."""
    job = view.job
    steps = _steps(view)
    done = sum(step.state == DONE for step in steps)
    running = next((step for step in steps if step.state == RUNNING), None)
    repo = repo_address(job)
    state = view.stopping if view.stopping and job.status not in RESTING else job.status.value
    files_sum = texts["files_sum"].format(count=len(view.files), size=human_size(sum(r["size"] for r in view.files)))
    done_now = job.status is Status.DONE
    findable = done_now and not job.frontier and not sizes_known and output_of(job.request).to_order
    return JobCard(
        id=job.id,
        name=job.request.name,
        state=state,
        state_text=texts[f"status_{state}"],
        facts=job_facts(job, texts, now or datetime.now(UTC)),
        writing=writing_facts(job, texts),
        percent=round(100 * (done + (running.fraction if running else 0)) / len(steps)),
        now=_now(view, steps, texts, ready=ready),
        left=_left(view.snapshot, texts) if running else "",
        error=told(job.error, texts),
        actions=_actions(view, state),
        sections=_sections(view, findable=findable),
        findable=findable,
        log=view.log,
        steps=tuple(_step_row(step, view, texts) for step in steps) if "steps" in shown else (),
        steps_sum=texts["steps_done"].format(done=done, total=len(steps)),
        files=tuple(file_row(job.id, row, texts, repo=repo) for row in view.files) if "files" in shown else (),
        files_sum=files_sum,
        where=", ".join(job.request.repos) or str(view.folder),
        link=repo,
        points=points(view.files, base_type(job.request)) if "plot" in shown else (),
        picks=picks(view.files, base_type(job.request)) if "files" in shown else (),
        sizes=size_rows(job.frontier) if "sizes" in shown and done_now else (),
        size_at=start_at(job) if "sizes" in shown else 0,
        measured=any("evaluation" in row for row in view.files),
    )


def _sections(view: JobView, *, findable: bool) -> tuple[str, ...]:
    there = {
        "files": bool(view.files),
        "plot": len(models(view.files)) > 2,
        "sizes": findable or (view.job.status is Status.DONE and len(view.job.frontier) > 1),
        "steps": True,
        "log": view.logged or bool(view.log),
    }
    return tuple(name for name in SECTIONS if there[name])


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


def file_row(job_id: str, row: dict[str, Any], texts: Texts, *, repo: str = "") -> FileRow:
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
        file=row["file"],
        link=file_link(job_id, row["file"], repo=repo),
        type=target.short(row.get("type", "")) or _product(row, texts),
        size=human_size(row["size"]),
        bpw=f"{row['bpw']:.2f}" if "bpw" in row else "",
        imatrix=texts["yes" if row["needs_imatrix"] else "no"] if "needs_imatrix" in row else "",
        kld=" / ".join(f"{one['kld']:.4f}" for one in over),
        ppl_ratio=" / ".join(f"{one['ppl_ratio']:.3f}" for one in over),
        same_top=" / ".join(f"{one['same_top']:.1f} %" for one in over),
        speed=shown_latency(speed) if row.get("format") == RWKVCPP else shown_speed(speed),
        note=note,
        sha256=row.get("sha256", ""),
    )


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


def _steps(view: JobView) -> tuple[StepProgress, ...]:
    """The live steps, or what the files say of a job that is not live."""
    if view.snapshot and view.snapshot.steps:
        return view.snapshot.steps
    there = {row["file"] for row in view.files}
    means = {SOURCE_PRODUCT} if there else set()  # which have led to these files
    means |= {COVARIANCES} if imatrix_name(view.job.request) in there else set()
    products = Products(
        job=view.job,
        here=(there | means).__contains__,
        arrived=there.__contains__,
        measured={figures.quant for figures in view.job.evaluations},
    )
    return tuple(
        StepProgress(step=step, state=DONE if step.done(products) else WAITING) for step in plan(view.job.request)
    )


def _step_row(progress: StepProgress, view: JobView, texts: Texts) -> StepRow:
    step = progress.step
    known = {row["file"]: row["size"] for row in view.files}
    size = known.get(step.file_name) or progress.size or view.forecast.get(step.quant_type, 0)
    if not step.file_name:
        size = 0
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
    what = target.short(step.quant_type) or step.subject
    return f"{texts.get(f'kind_{step.kind}', step.kind)} {what}".strip()


def _now(view: JobView, steps: tuple[StepProgress, ...], texts: Texts, *, ready: bool) -> str:
    if view.job.status in RESTING:
        return ""
    if view.snapshot is None:
        return texts["elsewhere"]
    if view.snapshot.waiting:
        return told(view.snapshot.waiting, texts)
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


def _actions(view: JobView, state: str) -> tuple[str, ...]:
    if state in (Status.FAILED, Status.CANCELLED):
        return ("retry",)
    if state == Status.PAUSED:
        return ("resume", "cancel")
    return ("pause", "cancel") if view.snapshot is not None and state not in _ENDING else ()

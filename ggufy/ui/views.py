"""From jobs and snapshots to rows: everything that the page shows of a job, as plain text. Pure, and without gradio.

Nothing here is escaped, and nothing is HTML; job_parts.py makes that of the rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from ggufy.core.job import RESTING, Status
from ggufy.core.plan import COVARIANCES, SOURCE_PRODUCT, Products, imatrix_name
from ggufy.core.progress import DONE, RUNNING, WAITING, Snapshot, StepProgress
from ggufy.core.words import human_size, human_time
from ggufy.quantize.search import target
from ggufy.service.job_views import JobView
from ggufy.steps import plan
from ggufy.ui.i18n import Texts
from ggufy.ui.job_facts import job_facts, writing_facts
from ggufy.ui.messages import told

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
class JobLine:
    """One job. What only an opened section shows is empty unless it was asked for, see `job_line`."""

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
    log: str
    steps: tuple[StepRow, ...]
    steps_sum: str
    delete: str = ""  # what is asked before it is taken from the list; empty: it cannot be

    @property
    def busy(self) -> bool:
        return self.state in ("running", "queued", *_ENDING)

    @property
    def rests(self) -> bool:
        """True if nobody has to look at it any more."""
        return self.state in (Status.DONE, Status.CANCELLED)


SECTIONS = ("steps", "log")


def job_line(
    view: JobView,
    texts: Texts,
    *,
    now: datetime | None = None,
    ready: bool = True,
    shown: Collection[str] = SECTIONS,
) -> JobLine:
    """A job as its model's card shows it; `ready` says if llama.cpp is, and `shown` which sections are open: the rows
    of others are not made."""
    job = view.job
    steps = _steps(view)
    done = sum(step.state == DONE for step in steps)
    running = next((step for step in steps if step.state == RUNNING), None)
    state = view.stopping if view.stopping and job.status not in RESTING else job.status.value
    there = {"steps": job.status is not Status.DONE, "log": view.logged or bool(view.log)}
    return JobLine(
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
        sections=tuple(name for name in SECTIONS if there[name]),
        log=view.log,
        steps=tuple(_step_row(step, view, texts) for step in steps) if "steps" in shown else (),
        steps_sum=texts["steps_done"].format(done=done, total=len(steps)),
    )


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
    if state == "pausing":  # which takes as long as a call to a slow Hub does
        return ("cancel",)
    return ("pause", "cancel") if view.snapshot is not None and state not in _ENDING else ()

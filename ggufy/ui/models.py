"""Jobs by model, and the card of one: its jobs, and one table, plot and slider for the files of all of them. Pure.

A model is what shares an output folder: the jobs there go on with each other's base and imatrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ggufy.core.job import RESTING, Status
from ggufy.core.metrics import Pick
from ggufy.core.plan import base_type
from ggufy.core.words import human_size, human_time
from ggufy.jobs.estimate import finding_seconds
from ggufy.jobs.results import models, together
from ggufy.publish.kld_plot import Point
from ggufy.publish.links import repo_page
from ggufy.service.job_views import JobView
from ggufy.steps.outputs import output_of
from ggufy.ui.file_rows import FileRow, file_row, picks, points, repo_address, tick_of
from ggufy.ui.i18n import Texts
from ggufy.ui.job_facts import age, model_facts
from ggufy.ui.sizes import SizeRow, size_rows, start_at
from ggufy.ui.views import JobLine

SECTIONS = ("files", "plot", "sizes", "jobs")
_FINDS = frozenset(Status) - {Status.FAILED, Status.CANCELLED}


@dataclass(frozen=True, kw_only=True)
class Model:
    """The jobs of one output folder, newest first, and their files together."""

    folder: str
    views: tuple[JobView, ...]
    rows: tuple[dict[str, Any], ...]
    owners: Mapping[str, JobView]  # by name of a file, the job that it is of

    @property
    def lead(self) -> JobView:
        """The job that the card speaks of first: the one at work, else one that waits, else the newest."""
        return min(self.views, key=lambda view: urgency(view.job.status))

    @property
    def rests(self) -> bool:
        """True if none of its jobs waits or runs."""
        return all(view.job.status in RESTING for view in self.views)

    @property
    def whole(self) -> JobView:
        """As if one job had made every file."""
        here = frozenset[str]().union(*(view.here for view in self.views))
        return replace(self.lead, files=self.rows, here=here)

    @property
    def changed(self) -> str:
        """When something happened last."""
        return max(v.job.updated if v.job.status in RESTING else v.job.created for v in self.views)


def urgency(status: Status) -> int:
    """What is at work stands above what waits, and that above the rest."""
    return {Status.RUNNING: 0, Status.QUEUED: 1}.get(status, 2)


def by_model(views: Iterable[JobView]) -> list[Model]:
    """Jobs (newest first) by model: those at work, those that wait, then the others, newest first."""
    found: dict[str, list[JobView]] = {}
    for view in views:
        found.setdefault(view.job.request.folder, []).append(view)
    made = [_model(folder, tuple(group)) for folder, group in found.items()]
    return sorted(made, key=lambda model: urgency(model.lead.job.status))


def _model(folder: str, views: tuple[JobView, ...]) -> Model:
    rows, owners = together([view.files for view in views])
    return Model(folder=folder, views=views, rows=rows, owners={name: views[at] for name, at in owners.items()})


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """One model. What only an opened section shows is empty unless it was asked for, see `model_card`."""

    id: str  # name of its folder
    name: str
    state: str  # of the job that it speaks of first
    state_text: str
    facts: tuple[str, ...]
    age: str
    jobs: tuple[JobLine, ...]  # the newest, and those that somebody has to look at: what is at work first
    earlier: tuple[JobLine, ...]
    sections: tuple[str, ...]  # which of SECTIONS there are
    files: tuple[FileRow, ...]
    files_sum: str
    where: tuple[tuple[str, str], ...]  # folder or repos, each with its address if it has one
    points: tuple[Point, ...]
    picks: tuple[Pick, ...]
    measured: bool
    sizer: str  # id of the job that sizes are ordered from
    findable: bool  # the section of sizes is a button that finds what there is to choose, not a slider
    finding_time: str  # how long that takes; empty: it is no button
    sizes: tuple[SizeRow, ...]  # smallest first
    size_at: int  # place of the one that is shown first
    delete: str = ""  # what is asked before all of it is deleted; empty: it cannot be

    @property
    def busy(self) -> bool:
        return any(line.busy for line in self.jobs)


def deletable(model: Model, card: ModelCard, texts: Texts) -> ModelCard:
    """The card for who may delete: with what is asked before the model, or one of its jobs, is."""
    if not model.rests:
        return card
    here = {name for view in model.views for name in view.here} & {row["file"] for row in model.rows}
    size = human_size(sum(row["size"] for row in model.rows if row["file"] in here))
    question = texts["confirm_model"].format(name=card.name, count=len(here), size=size, jobs=len(model.views))
    question += " " + kept_where([repo for repo, address in card.where if address], texts)
    listed = Counter(row["file"] for view in model.views for row in view.files)
    free = {
        view.job.id
        for view in model.views
        if all(listed[row["file"]] > 1 for row in view.files) and len(model.views) > 1
    }

    def told(lines: tuple[JobLine, ...]) -> tuple[JobLine, ...]:
        return tuple(replace(one, delete=texts["confirm_job"] if one.id in free else "") for one in lines)

    return replace(card, delete=question, jobs=told(card.jobs), earlier=told(card.earlier))


def kept_where(repos: Sequence[str], texts: Texts) -> str:
    """What of a thing remains after it is deleted here."""
    return texts["confirm_published"].format(repos=texts["comma"].join(repos)) if repos else texts["confirm_lost"]


def model_card(
    model: Model,
    lines: Sequence[JobLine],
    texts: Texts,
    *,
    now: datetime | None = None,
    shown: Collection[str] = SECTIONS,
    threads: int = 1,
) -> ModelCard:
    """The card of a model with the `lines` of its jobs; `shown` says which sections are open, `threads` what a job
    would be given."""
    lead, rows = model.lead, model.rows
    by_urgency = sorted(zip(lines, model.views, strict=True), key=lambda pair: urgency(pair[1].job.status))
    near = [line for line, _ in by_urgency if line is lines[0] or not line.rests]
    earlier = tuple(line for line in lines if line not in near)
    base, repos = base_type(lead.job.request), dict.fromkeys(r for v in model.views for r in v.job.request.repos)
    sizer = _sizer(model)
    frontier = sizer.job.frontier if sizer else ()
    findable = len(frontier) < 2
    there = {
        "files": bool(rows),
        "plot": len(models(rows)) > 2,
        "sizes": sizer is not None and not (findable and _being_found(model, sizer)),
        "jobs": bool(earlier),
    }
    files = [
        replace(
            file_row(view.job.id, row, texts, repo=repo_address(view.job), frontier=frontier),
            key=f"file {model.folder}/{row['file']}",
            tick=tick_of(model.folder, row["file"]) if models([row]) else "",
        )
        for row in (rows if "files" in shown else ())
        for view in (model.owners[row["file"]],)
    ]
    return ModelCard(
        id=model.folder,
        name=lead.job.request.name,
        state=near[0].state,
        state_text=near[0].state_text,
        facts=model_facts(lead.job.request, texts),
        age=age(model.changed, texts, now or datetime.now(UTC)),
        jobs=tuple(near),
        earlier=earlier,
        sections=tuple(name for name in SECTIONS if there[name]),
        files=tuple(files),
        files_sum=texts["files_sum"].format(count=len(rows), size=human_size(sum(row["size"] for row in rows))),
        where=tuple((repo, repo_page(repo)) for repo in repos) or ((str(lead.folder), ""),),
        points=points(rows, base) if "plot" in shown else (),
        picks=picks(rows, base) if "files" in shown else (),
        measured=any("evaluation" in row for row in rows),
        sizer=sizer.job.id if sizer else "",
        findable=findable,
        finding_time=_finding_time(sizer, threads) if sizer and findable and "sizes" in shown else "",
        sizes=size_rows(frontier) if "sizes" in shown else (),
        size_at=start_at(sizer.job) if sizer and "sizes" in shown else 0,
    )


def _sizer(model: Model) -> JobView | None:
    """The newest finished job whose sizes are known, else the newest from which they could be found."""
    done = [view for view in model.views if view.job.status is Status.DONE]
    known = [view for view in done if len(view.job.frontier) > 1]
    findable = [view for view in done if not view.job.frontier and output_of(view.job.request).to_order]
    return next(iter(known or findable), None)


def _finding_time(sizer: JobView, threads: int) -> str:
    return human_time(finding_seconds(sizer.job, sizer.here, threads=threads))


def _being_found(model: Model, sizer: JobView) -> bool:
    """True if another job finds which sizes there are, or has found that there is no choice."""
    asked = sizer.job.request.inputs()
    return any(
        view.job.request.analysed and view.job.status in _FINDS and view.job.request.inputs() == asked
        for view in model.views
    )

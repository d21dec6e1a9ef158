"""The banner, the machine's line, and the column with every model and its jobs. A timer asks for what is new; buttons
report the id of a job.

The page never waits for work: what is drawn is a snapshot, and every tab shows the same one. A tab says what it shows,
by digests, and what its visitor has opened; it gets the pieces that are new. So an idle page costs next to nothing,
however many jobs there are.
"""

from __future__ import annotations

import hashlib
import heapq
import html
import operator
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import gradio as gr

from ggufy.core.errors import GgufyError
from ggufy.core.job import RESTING, Status
from ggufy.jobs.queue import TOLD
from ggufy.jobs.results import models as model_rows
from ggufy.service.access import Visitor, is_owner, may_chat, may_work
from ggufy.service.job_views import JobView
from ggufy.service.service import Services
from ggufy.ui import compare_parts, job_parts, model_parts, parts, views
from ggufy.ui.commands import commands
from ggufy.ui.comparing import MOST, search, ticked_files
from ggufy.ui.file_rows import FileMore, FileRow, repo_address
from ggufy.ui.i18n import Texts, texts_of
from ggufy.ui.job_facts import age
from ggufy.ui.job_parts import Piece
from ggufy.ui.messages import told
from ggufy.ui.models import SECTIONS, Model, by_model, deletable, kept_where, model_card
from ggufy.ui.visitors import Profile, visitor_of
from ggufy.ui.wiring import OWN, QUIET, script

POLL_S = 1.0
PAGE = 20  # models that are listed, and as many more each time that somebody asks
_NEWS = 10  # jobs whose ends a tab hears of
UNFOLDED = 5  # the newest of them show more than one line
_MOST_OPENED = 1000  # what a visitor may have opened or closed
_LONGEST_FIND = 200  # letters
_MOST_MADE = 256  # cards that are kept as they were made


@dataclass(frozen=True, kw_only=True)
class WantedView:
    """What a tab shows and wants to show."""

    shown: str = ""  # digests of its pieces, in order
    opened: dict[str, bool] | None = None  # by key: what the visitor has opened or closed
    count: int = PAGE  # models
    compared: tuple[str, ...] | None = None  # ticks of files, if the window that compares them is open
    find: str = ""  # what is searched for in it

    @classmethod
    def of(cls, value: Any) -> Self:
        """From what a browser sent, which may be anything."""
        found = value if isinstance(value, dict) else {}
        opened, count, shown = found.get("opened"), found.get("count"), found.get("shown")
        ticks, find = found.get("compared"), found.get("find")
        return cls(
            shown=shown if isinstance(shown, str) else "",
            opened=dict(list(opened.items())[:_MOST_OPENED]) if isinstance(opened, dict) else {},
            count=max(PAGE, min(count, 10_000)) if isinstance(count, int) else PAGE,
            compared=tuple(map(str, ticks[:MOST])) if isinstance(ticks, list) else None,
            find=find[:_LONGEST_FIND] if isinstance(find, str) else "",
        )

    def files_of(self, folder: str) -> list[str]:
        """Keys of the files of a model below which more is to be shown."""
        return [key for key, opened in (self.opened or {}).items() if opened and key.startswith(f"file {folder}/")]

    def opens(self, key: str, *, otherwise: bool) -> bool:
        return bool((self.opened or {}).get(key, otherwise))


class JobsPanel:
    """Banner and jobs; `drawn` are the components that `draw` fills."""

    def __init__(self, services: Services):
        self.services = services
        self._made: OrderedDict[tuple[Any, ...], tuple[tuple[JobView, ...], list[Piece]]] = OrderedDict()
        self._grouped: tuple[tuple[JobView, ...], list[Model]] = ((), [])
        self._lock = threading.Lock()
        self.head = gr.HTML(js_on_load=script("actions"), elem_id="gg-machine", **OWN)
        self.jobs = gr.HTML(
            {"shown": "", "opened": {}, "count": PAGE},
            patch={},
            html_template='<section class="gg-jobs"></section><p class="gg-spoken" aria-live="polite"></p>',
            js_on_load=script("jobs"),
            elem_id="gg-jobs",
            **OWN,
        )
        self.seen = gr.State([])  # digests of the banner and of the machine's line

    @staticmethod
    def banner_above() -> gr.HTML:
        return gr.HTML(js_on_load=script("actions"), elem_id="gg-banner", **OWN)

    def connect(self, page: gr.Blocks, banner: gr.HTML) -> None:
        self.drawn = [banner, self.head, self.jobs, self.seen]
        self.asked = [self.jobs, self.seen]
        page.load(self.look, self.asked, self.drawn, **QUIET)
        gr.Timer(POLL_S).tick(self.look, self.asked, self.drawn, **QUIET)
        self.jobs.look(self.look, self.asked, self.drawn, **QUIET)
        gr.on([banner.click, self.head.click, self.jobs.click], self.act, self.asked, self.drawn, **QUIET)

    def show_after(self, event: Any) -> None:
        """Looks at the jobs when an event has ended."""
        event.then(self.look, self.asked, self.drawn, **QUIET)

    def act(self, wanted: Any, seen: Any, event: gr.EventData, request: gr.Request, profile: Profile) -> list[Any]:
        """A button of a card, of the machine, or of the banner."""
        try:
            self._act(
                str(getattr(event, "action", "")),
                str(getattr(event, "job", "")),
                str(getattr(event, "size", "")),
                str(getattr(event, "file", "")),
                visitor_of(self.services, request, profile),
            )
        except GgufyError as error:
            gr.Warning(html.escape(told(error.message, texts_of(request))))
        return self.look(wanted, seen, request, profile)

    def _act(self, action: str, job: str, size: str, file: str, visitor: Visitor) -> None:
        services = self.services
        if action == "cancel":
            services.cancel(job, visitor)
        elif action == "pause":
            services.pause(job, visitor)
        elif action in ("retry", "resume"):
            services.retry(job, visitor)
        elif action == "make-size" and size.isdecimal() and len(size) < 20:
            services.make_size(job, int(size), visitor)
        elif action == "find-sizes":
            services.find_sizes(job, visitor)
        elif action == "delete-file":
            services.library.delete_file(job, file, visitor)
        elif action == "delete-job":
            services.library.delete_job(job, visitor)
        elif action == "delete-model":
            services.library.delete_model(job, visitor)
        elif action == "again":
            services.prepare_again(visitor)
        elif action == "threads" and job.isdecimal() and len(job) < 5:
            services.set_threads(int(job), visitor)
        elif action == "share" and job.isdecimal() and len(job) < 5:
            services.set_cpu_percent(int(job), visitor)

    def look(self, wanted: Any, seen: Any, request: gr.Request, profile: Profile) -> list[Any]:
        """Banner, the machine's line and the jobs, as far as this tab does not show them already."""
        texts, visitor, services = texts_of(request), visitor_of(self.services, request, profile), self.services
        may = may_work(visitor, services.settings)
        tokenless = may and services.settings.space_id and services.settings.hf_token is None
        notes = [texts["space_no_token"]] if tokenless else []
        banner = parts.banner(services.preparation, texts, may_work=may, notes=notes)
        single = [banner, job_parts.head(services.machine(), texts, may_work=may)]
        now, before = [_digest(text) for text in single], seen if isinstance(seen, list) else []
        fresh = [text if before[i : i + 1] != now[i : i + 1] else gr.skip() for i, text in enumerate(single)]
        asked = WantedView.of(wanted)
        patch = patch_of(self._pieces(asked, texts, visitor, may=may), asked.shown)
        return [*fresh, gr.HTML(patch=patch) if patch else gr.skip(), gr.skip() if now == before else now]

    def _pieces(self, wanted: WantedView, texts: Texts, visitor: Visitor, *, may: bool) -> list[Piece]:
        """Everything that the tab is to show its visitor, in its order."""
        models = self._by_model(self.services.views(visitor))
        pieces: list[Piece] = []
        older = 0
        for place, model in enumerate(models):
            if place >= wanted.count and model.lead.job.status in RESTING:
                older += 1
                continue
            pieces += self._card(model, place, wanted, texts, visitor, may=may)
        if older:
            pieces.append(model_parts.more(older, PAGE, texts))
        if any(model_rows(model.rows) for model in models):
            pieces.insert(0, compare_parts.bar(texts))
            if wanted.compared is not None:
                ticked = ticked_files(self.services, models, wanted.compared)
                pieces += compare_parts.window(ticked, search(models, wanted.find), texts)
        return [*pieces, self._news(models, texts)] if pieces else [model_parts.nothing(texts, may_work=may)]

    def _news(self, models: Sequence[Model], texts: Texts) -> Piece:
        """How the last jobs ended, by their ids, and the percentage of the one that runs."""
        ended = [v for model in models for v in model.views if v.job.status in TOLD]
        last = heapq.nlargest(_NEWS, ended, key=lambda view: view.job.updated)
        told = {v.job.id: f"{v.job.request.name}: {texts[f'status_{v.job.status}']}" for v in last}
        first = models[0].lead
        runs = first.job.status is Status.RUNNING
        return model_parts.news(told, views.job_line(first, texts, shown=()).percent if runs else None)

    def _by_model(self, views: tuple[JobView, ...]) -> list[Model]:
        """Those of a moment ago, if nothing has changed."""
        known = self._grouped
        if known[0] is not views:
            known = self._grouped = views, by_model(views)
        return known[1]

    def _card(
        self, model: Model, place: int, wanted: WantedView, texts: Texts, visitor: Visitor, *, may: bool
    ) -> list[Piece]:
        """The pieces of one model: those that were made before, if nothing of it has changed."""
        ready, now = self.services.preparation.ready, datetime.now(UTC)
        names = [f"{name} {model.folder}" for name in ("card", *SECTIONS)]
        names += [f"{name} {view.job.id}" for view in model.views for name in views.SECTIONS]
        own = is_owner(visitor, self.services.settings)
        files = wanted.files_of(model.folder)
        chosen = (
            *((wanted.opened or {}).get(name) for name in names),
            *files,
            may_chat(visitor, self.services.settings),
            own,
            threads := self.services.limit(),
        )
        then = age(model.changed, texts, now)
        key = (model.folder, texts["language"], may, ready, place == 0, place < UNFOLDED, then, chosen)
        with self._lock:
            made = self._made.get(key)
        if made and len(made[0]) == len(model.views) and all(map(operator.is_, made[0], model.views)):
            return made[1]
        lines = [views.job_line(view, texts, now=now, ready=ready, shown=()) for view in model.views]
        card = model_card(model, lines, texts, now=now, shown=())
        attention = any(line.busy and line.state != "queued" for line in lines) or bool(
            card.jobs[0].error and card.state == "paused"
        )
        folded = not wanted.opens(f"card {card.id}", otherwise=place < UNFOLDED or attention)
        opened, whole = set[str](), True
        if not folded:
            usual = model_parts.opened_at_first(card, newest=place == 0)
            opened = {name for name in card.sections if wanted.opens(f"{name} {card.id}", otherwise=name in usual)}
            listed = [key for line in lines for key in (f"{name} {line.id}" for name in line.sections)]
            opened |= {key for key in listed if wanted.opens(key, otherwise=key in usual)}
            if opened:
                model, whole = self._detailed(model, opened, may=may)
                lines = [views.job_line(v, texts, now=now, ready=ready, shown=_kinds(v, opened)) for v in model.views]
                card = model_card(model, lines, texts, now=now, shown=opened, threads=threads)
                rows = (self._with_more(row, model, texts, visitor) if row.key in files else row for row in card.files)
                card = replace(card, files=tuple(rows))
        card = deletable(model, card, texts) if own and not folded else card
        pieces = model_parts.model(card, texts, may_work=may, folded=folded, opened=opened)
        if whole and all(view.job.status in RESTING for view in model.views):
            with self._lock:
                self._made[key] = model.views, pieces
                self._made.move_to_end(key)
                while len(self._made) > _MOST_MADE:
                    self._made.popitem(last=False)
        return pieces

    def _with_more(self, row: FileRow, model: Model, texts: Texts, visitor: Visitor) -> FileRow:
        """A file with what can be done with it."""
        services, view = self.services, model.owners[row.file]
        chats = may_chat(visitor, services.settings) and row.file in services.chats.models(visitor)
        path = view.folder / row.file if services.settings.space_id is None else Path(row.file)
        record = next(one for one in model.rows if one["file"] == row.file)
        lines = commands(view.job.request, record, path, services.chats.format_of(row.file, visitor))
        delete = ""
        if model.rests and row.file in view.here and is_owner(visitor, services.settings):
            delete = texts["confirm_file"].format(file=row.file, size=row.size)
            delete += " " + kept_where(view.job.request.repos, texts)
        return replace(row, opened=FileMore(chats=chats, commands=lines, repo=repo_address(view.job), delete=delete))

    def _detailed(self, model: Model, opened: Collection[str], *, may: bool) -> tuple[Model, bool]:
        """The model with what opened sections show: what the heads of its files say, and logs; and whether nothing is
        left to be read."""
        services, whole = self.services, True
        if "files" in opened:
            seen = services.detailed(model.whole, log=False)
            model, whole = replace(model, rows=seen.files), seen.whole
        found = tuple(
            services.detailed(view, heads=False) if may and f"log {view.job.id}" in opened else view
            for view in model.views
        )
        return replace(model, views=found), whole


def patch_of(pieces: Sequence[Piece], shown: str) -> dict[str, Any]:
    """What a tab has to change that shows the pieces with these digests: the order of all, and those that are new;
    nothing if it shows just them."""
    digests = {key: _digest(key + text) for key, text in pieces}
    if " ".join(digests.values()) == shown:
        return {}
    known = set(shown.split())
    return {
        "order": list(digests.items()),
        "html": {key: text for key, text in pieces if digests[key] not in known},
    }


def _kinds(view: JobView, opened: Collection[str]) -> set[str]:
    """Which sections of a job are open."""
    return {key.partition(" ")[0] for key in opened if key.partition(" ")[2] == view.job.id}


def _digest(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()

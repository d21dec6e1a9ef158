"""The banner, the machine's line, and the column with every job. A timer asks for what is new; buttons report the id
of a job.

The page never waits for work: what is drawn is a snapshot, and every tab shows the same one. A tab says what it shows,
by digests, and what its visitor has opened; it gets the pieces that are new. So an idle page costs next to nothing,
however many jobs there are.
"""

from __future__ import annotations

import hashlib
import html
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import gradio as gr

from ggufy.core.errors import GgufyError
from ggufy.core.job import RESTING, Status
from ggufy.service.access import Visitor, may_work
from ggufy.service.job_views import JobView
from ggufy.service.service import Services
from ggufy.ui import job_parts, parts
from ggufy.ui.i18n import Texts, texts_of
from ggufy.ui.job_facts import age
from ggufy.ui.messages import told
from ggufy.ui.views import SECTIONS, job_card
from ggufy.ui.visitors import Profile, visitor_of
from ggufy.ui.wiring import HERE, OWN, QUIET

POLL_S = 1.0
PAGE = 20  # jobs that are listed, and as many more each time that somebody asks
UNFOLDED = 5  # the newest of them show more than one line
_FINDS = set(Status) - {Status.FAILED, Status.CANCELLED}
_MOST_OPENED = 1000  # what a visitor may have opened or closed
_MOST_MADE = 256  # cards that are kept as they were made


@dataclass(frozen=True, kw_only=True)
class WantedView:
    """What a tab shows and wants to show."""

    shown: str = ""  # digests of its pieces, in order
    opened: dict[str, bool] | None = None  # by key: what the visitor has opened or closed
    count: int = PAGE  # jobs

    @classmethod
    def of(cls, value: Any) -> Self:
        """From what a browser sent, which may be anything."""
        found = value if isinstance(value, dict) else {}
        opened, count, shown = found.get("opened"), found.get("count"), found.get("shown")
        return cls(
            shown=shown if isinstance(shown, str) else "",
            opened=dict(list(opened.items())[:_MOST_OPENED]) if isinstance(opened, dict) else {},
            count=max(PAGE, min(count, 10_000)) if isinstance(count, int) else PAGE,
        )

    def opens(self, key: str, *, otherwise: bool) -> bool:
        return bool((self.opened or {}).get(key, otherwise))


class JobsPanel:
    """Banner and jobs; `drawn` are the components that `draw` fills."""

    def __init__(self, services: Services):
        self.services = services
        self._made: OrderedDict[tuple[Any, ...], tuple[JobView, list[job_parts.Piece]]] = OrderedDict()
        self._lock = threading.Lock()
        self.head = gr.HTML(js_on_load=_script("actions"), elem_id="gg-machine", **OWN)
        self.jobs = gr.HTML(
            {"shown": "", "opened": {}, "count": PAGE},
            patch={},
            html_template='<section class="gg-jobs"></section>',  # jobs.js fills it
            js_on_load=_script("jobs"),
            elem_id="gg-jobs",
            **OWN,
        )
        self.seen = gr.State([])  # digests of the banner and of the machine's line

    @staticmethod
    def banner_above() -> gr.HTML:
        return gr.HTML(js_on_load=_script("actions"), elem_id="gg-banner", **OWN)

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
                visitor_of(self.services, request, profile),
            )
        except GgufyError as error:
            gr.Warning(html.escape(told(error.message, texts_of(request))))
        return self.look(wanted, seen, request, profile)

    def _act(self, action: str, job: str, size: str, visitor: Visitor) -> None:
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
        banner = parts.banner(services.preparation, texts, may_work=may, notes=self._notes(texts, may=may))
        single = [banner, job_parts.head(services.machine(), texts, may_work=may)]
        now, before = [_digest(text) for text in single], seen if isinstance(seen, list) else []
        fresh = [text if before[i : i + 1] != now[i : i + 1] else gr.skip() for i, text in enumerate(single)]
        asked = WantedView.of(wanted)
        patch = patch_of(self._pieces(asked, texts, visitor, may=may), asked.shown)
        return [*fresh, gr.HTML(patch=patch) if patch else gr.skip(), gr.skip() if now == before else now]

    def _pieces(self, wanted: WantedView, texts: Texts, visitor: Visitor, *, may: bool) -> list[job_parts.Piece]:
        """Everything that the tab is to show its visitor, in its order."""
        views = self.services.views(visitor)
        known = {
            view.job.request.inputs() for view in views if view.job.request.analysed and view.job.status in _FINDS
        }
        pieces: list[job_parts.Piece] = []
        older = 0
        for place, view in enumerate(views):
            if place >= wanted.count and view.job.status in RESTING:
                older += 1
                continue
            sizes_known = view.job.request.inputs() in known
            pieces += self._card(view, place, wanted, texts, may=may, sizes_known=sizes_known)
        if older:
            pieces.append(job_parts.more(older, PAGE, texts))
        return pieces or [job_parts.nothing(texts, may_work=may)]

    def _card(
        self, view: JobView, place: int, wanted: WantedView, texts: Texts, *, may: bool, sizes_known: bool
    ) -> list[job_parts.Piece]:
        """The pieces of one job: those that were made before, if nothing of it has changed."""
        job, ready = view.job, self.services.preparation.ready
        then = age(job.updated if job.status in RESTING else job.created, texts, datetime.now(UTC))
        chosen = tuple((wanted.opened or {}).get(f"{name} {job.id}") for name in ("card", *SECTIONS))
        key = (job.id, texts["language"], may, ready, sizes_known, place == 0, place < UNFOLDED, then, chosen)
        with self._lock:
            made = self._made.get(key)
        if made and made[0] is view:
            return made[1]
        card = job_card(view, texts, ready=ready, sizes_known=sizes_known, shown=())
        attention = card.state in ("running", "cancelling", "pausing") or bool(card.error and card.state == "paused")
        folded = not wanted.opens(f"card {card.id}", otherwise=place < UNFOLDED or attention)
        usual = job_parts.opened_at_first(card, newest=place == 0)
        opened = {name for name in card.sections if wanted.opens(f"{name} {card.id}", otherwise=name in usual)}
        shown = view
        if opened and not folded:
            shown = self.services.detailed(view, heads="files" in opened, log="log" in opened and may)
            card = job_card(shown, texts, ready=ready, sizes_known=sizes_known, shown=opened)
        pieces = job_parts.job(card, texts, may_work=may, folded=folded, opened=opened)
        if shown.whole and job.status in RESTING:
            with self._lock:
                self._made[key] = view, pieces
                self._made.move_to_end(key)
                while len(self._made) > _MOST_MADE:
                    self._made.popitem(last=False)
        return pieces

    def _notes(self, texts: Texts, *, may: bool) -> list[str]:
        """What a Space's visitor, or its owner, should know."""
        settings = self.services.settings
        notes = []
        if not may:
            notes.append(f"{texts['space_closed']} {texts['space_sign_in' if settings.login else 'space_no_login']}")
        if may and settings.space_id and settings.hf_token is None:
            notes.append(texts["space_no_token"])
        return notes


def patch_of(pieces: Sequence[job_parts.Piece], shown: str) -> dict[str, Any]:
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


def _digest(text: str) -> str:
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()


def _script(name: str) -> str:
    return (HERE / f"{name}.js").read_text(encoding="utf-8")

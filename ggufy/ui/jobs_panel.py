"""The banner, and the column with every job. A timer asks for what is new; buttons report the id of a job.

The page never waits for work: what is drawn is a snapshot, and every tab shows the same one.
"""

from __future__ import annotations

import hashlib
import html
from typing import Any

import gradio as gr

from ggufy.access import Visitor, may_work
from ggufy.errors import GgufyError
from ggufy.job import Status
from ggufy.service import Services
from ggufy.ui import job_parts, parts
from ggufy.ui.i18n import Texts, texts_of
from ggufy.ui.quantize_tab import HERE, OWN, QUIET
from ggufy.ui.views import job_card, told
from ggufy.ui.visitors import Profile, visitor_of

POLL_S = 1.0
_FINDS = set(Status) - {Status.FAILED, Status.CANCELLED}
SHOWN = 20  # jobs on the page; a card of 31 files is 30 kB of HTML, drawn every second while something runs


class JobsPanel:
    """Banner and jobs; `drawn` are the components that `draw` fills."""

    def __init__(self, services: Services):
        self.services = services
        self.jobs = gr.HTML(js_on_load=_script(), elem_id="gg-jobs", **OWN)
        self.seen = gr.State("")  # digest of what a browser tab shows

    @staticmethod
    def banner_above() -> gr.HTML:
        return gr.HTML(js_on_load=_script(), elem_id="gg-banner", **OWN)

    def connect(self, banner: gr.HTML) -> None:
        self.drawn = [banner, self.jobs, self.seen]
        gr.Timer(POLL_S).tick(self.look, self.seen, self.drawn, **QUIET)
        gr.on([banner.click, self.jobs.click], self.act, None, self.drawn, **QUIET)

    def look(self, shown: Any, request: gr.Request, profile: Profile) -> list[Any]:
        """What is new since the last look."""
        return self.draw(request, profile, shown if isinstance(shown, str) else "")

    def act(self, event: gr.EventData, request: gr.Request, profile: Profile) -> list[Any]:
        """A button of a card, of the machine, or of the banner."""
        try:
            self._act(
                str(getattr(event, "action", "")),
                str(getattr(event, "job", "")),
                str(getattr(event, "size", "")),
                visitor_of(self.services, request, profile),
            )
        except GgufyError as error:
            gr.Warning(html.escape(told(str(error), texts_of(request))))
        return self.draw(request, profile)

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

    def draw(self, request: gr.Request, profile: Profile, shown: str = "") -> list[Any]:
        """Banner, jobs and their digest; nothing at all when the tab shows just this already."""
        texts, visitor, services = texts_of(request), visitor_of(self.services, request, profile), self.services
        state, may = services.preparation, may_work(visitor, services.settings)
        banner = parts.banner(state, texts, may_work=may, notes=self._notes(texts, may=may))
        views = services.views(visitor)
        known = {
            view.job.request.inputs() for view in views if view.job.request.analysed and view.job.status in _FINDS
        }
        cards = [
            job_card(view, texts, ready=state.ready, sizes_known=view.job.request.inputs() in known)
            for view in views[:SHOWN]
        ]
        older = len(views) - len(cards)
        jobs = job_parts.jobs(cards, texts, may_work=may, machine=services.machine(), older=older)
        digest = hashlib.sha256((banner + jobs).encode()).hexdigest()
        return [gr.skip()] * 3 if digest == shown else [banner, jobs, digest]

    def _notes(self, texts: Texts, *, may: bool) -> list[str]:
        """What a Space's visitor, or its owner, should know."""
        settings = self.services.settings
        notes = []
        if not may:
            notes.append(f"{texts['space_closed']} {texts['space_sign_in' if settings.login else 'space_no_login']}")
        if may and settings.space_id and settings.hf_token is None:
            notes.append(texts["space_no_token"])
        return notes


def _script() -> str:
    return (HERE / "jobs.js").read_text(encoding="utf-8")

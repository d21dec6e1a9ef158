"""Below the form, for the page's owner: repos that are followed, and what it takes to follow another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import gradio as gr

from ggufy.core.words import human_time
from ggufy.jobs.follow import DEFAULT_EVERY, next_look
from ggufy.jobs.values import LONGEST
from ggufy.publish.markup import Markup, el, join
from ggufy.records.followed import Followed
from ggufy.service.access import Visitor, is_owner
from ggufy.service.service import Services
from ggufy.ui import parts
from ggufy.ui.form import short_text
from ggufy.ui.i18n import Texts, texts_of
from ggufy.ui.job_facts import age
from ggufy.ui.messages import told
from ggufy.ui.quantize_tab import QuantizeTab
from ggufy.ui.visitors import Profile, visitor_of
from ggufy.ui.wiring import OWN, QUEUED, QUIET, script

logger = logging.getLogger(__name__)
_EVERY = ("30m", DEFAULT_EVERY, "1d")


class FollowPanel:
    """Its components and events, added to the Blocks that is being built."""

    def __init__(self, services: Services, i18n: gr.I18n):
        self.services = services
        anybody = services.settings.space_id is None
        with gr.Accordion(i18n("followed"), open=False, visible=anybody, elem_id="gg-follow") as self.box:
            self.list = gr.HTML(js_on_load=script("actions"), elem_id="gg-followed", **OWN)
            self.source = gr.Textbox(
                label=i18n("follow_source"),
                info=i18n("follow_source_info"),
                max_lines=1,
                max_length=LONGEST,
                elem_id="gg-follow-source",
            )
            self.every = gr.Radio(
                [(i18n(f"follow_{every}"), every) for every in _EVERY],
                value=DEFAULT_EVERY,
                label=i18n("follow_every"),
                elem_id="gg-follow-every",
            )
            self.add = gr.Button(i18n("follow"), elem_id="gg-follow-add")
            self.message = gr.HTML(elem_id="gg-follow-message", **OWN)

    def connect(self, page: gr.Blocks, form: QuantizeTab) -> None:
        """The jobs of a repo have the options of the `form`."""
        self.form = form
        shown = [self.message, self.list]
        asked = {self.source, self.every, *form.fields().values()}
        self.add.click(self.follow, asked, shown, **QUEUED)
        self.list.click(self.unfollow, None, shown, **QUIET)
        self.box.expand(self.show, None, self.list, **QUIET)
        page.load(self.greet, None, [self.box, self.list], **QUIET)

    # ---- handlers

    def greet(self, request: gr.Request, profile: Profile) -> list[Any]:
        """Nothing for visitors."""
        visitor = visitor_of(self.services, request, profile)
        own = is_owner(visitor, self.services.settings)
        return [gr.Accordion(visible=own), self._listed(texts_of(request), visitor)]

    def show(self, request: gr.Request, profile: Profile) -> Markup:
        """The list as it is now."""
        return self._listed(texts_of(request), visitor_of(self.services, request, profile))

    def follow(self, form: dict[Any, Any], request: gr.Request, profile: Profile) -> list[Markup]:
        """Begins to follow a repo."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        source, every = short_text(form[self.source]), short_text(form[self.every])

        def work() -> Markup:
            self.services.following.follow(source, self.form.wish(form, source=source), every, visitor)
            return parts.message(texts["follow_done"].format(source=source), "good")

        return self._done(work, texts, visitor)

    def unfollow(self, event: gr.EventData, request: gr.Request, profile: Profile) -> list[Markup]:
        """Follows a repo no longer."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)

        def work() -> Markup:
            self.services.following.remove(short_text(getattr(event, "job", "")), visitor)
            return Markup("")

        return self._done(work, texts, visitor)

    def _done(self, work: Callable[[], Markup], texts: Texts, visitor: Visitor) -> list[Markup]:
        """What `work` says, or what went wrong, and the list."""
        try:
            said = work()
        except Exception as error:  # one of the three edges
            said = parts.failure(error, texts, "a repo could not be followed")
        return [said, self._listed(texts, visitor)]

    def _listed(self, texts: Texts, visitor: Visitor) -> Markup:
        return listed(self.services.following.repos(visitor), texts, datetime.now(UTC))


def listed(repos: Iterable[Followed], texts: Texts, now: datetime) -> Markup:
    """A few lines for each repo: when it was and will be looked at, what went wrong, and a button that removes it."""
    rows = [_row(one, texts, now) for one in repos]
    return join(*rows) if rows else el("p", texts["follow_none"], class_="gg-quiet gg-hint")


def _row(one: Followed, texts: Texts, now: datetime) -> Markup:
    left = (next_look(one) - now).total_seconds()
    looked = texts["follow_looked"].format(age=age(one.looked, texts, now)) if one.looked else texts["follow_never"]
    due = texts["follow_next"].format(time=human_time(left)) if left > 0 else texts["follow_soon"]
    remove = parts.button(
        texts["unfollow"], "unfollow", one.source, label=texts["unfollow_repo"].format(name=one.source)
    )
    wrong = [el("p", told(text, texts), class_="gg-quiet gg-hint") for text in (one.trouble, one.refused) if text]
    return el(
        "div",
        el("div", el("strong", one.source, class_="gg-cut"), el("span", remove, class_="gg-right"), class_="gg-line"),
        el("p", f"{looked} · {due}", class_="gg-quiet gg-numbers gg-hint"),
        *wrong,
        class_="gg-followed",
    )

"""The tab that makes quants: the form on the left, every job on the right.

The page never waits for work. A timer asks for the jobs and draws them; a button hands over a wish or the id of a job
and is done. What a handler gets comes from a visitor and may be anything; `Services` decides what is allowed.
"""

from __future__ import annotations

import hashlib
import html
import logging
from pathlib import Path
from typing import Any

import gradio as gr

from ggufy.catalog import OUTTYPES, QUANT_TYPES, parse_types
from ggufy.errors import GgufyError, UsageError
from ggufy.intake import Wish
from ggufy.service import Services
from ggufy.ui import parts
from ggufy.ui.i18n import TEXTS, Texts, pick
from ggufy.ui.views import job_card

logger = logging.getLogger(__name__)
POLL_S = 1.0
SHOWN = 20  # jobs on the page; a card of 31 files is 30 kB of HTML, drawn every second while something runs
HERE = Path(__file__).parent
_OWN: dict[str, Any] = {"apply_default_css": False, "padding": False}  # page.css does it
# Nothing is shown while it runs, and nothing is in the API that gradio documents. Whoever looks can still call it, so
# every handler is for strangers.
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class QuantizeTab:
    """The tab's components and events, added to the Blocks that is being built."""

    def __init__(self, services: Services, i18n: gr.I18n):
        self.services = services
        self.may = not services.settings.read_only
        jobs_js = (HERE / "jobs.js").read_text(encoding="utf-8")
        self.header = gr.HTML(parts.header(TEXTS["en"]), **_OWN)
        self.banner = gr.HTML(js_on_load=jobs_js, elem_id="gg-banner", **_OWN)
        with gr.Row(elem_id="gg-columns"):
            with gr.Column(scale=2, min_width=340, elem_id="gg-form"):
                self._form(i18n)
            with gr.Column(scale=3, min_width=340):
                self.jobs = gr.HTML(js_on_load=jobs_js, elem_id="gg-jobs", **_OWN)
        self.seen = gr.State("")  # digest of what a browser tab shows
        self._connect()

    def _form(self, i18n: gr.I18n) -> None:
        self.title = gr.HTML(parts.title(TEXTS["en"]), **_OWN)
        self.source = self._text(i18n, "source", "demo")
        self.types = gr.HTML(
            [row.name for row in QUANT_TYPES if row.recommended],
            rows=parts.types(TEXTS["en"]),
            html_template="${rows}",  # safe: the rows are ours alone (see markup.py)
            js_on_load=(HERE / "types.js").read_text(encoding="utf-8"),
            elem_id="gg-types",
            **_OWN,
        )
        self.imatrix = gr.Checkbox(True, label=i18n("imatrix"), info=i18n("imatrix_info"), interactive=self.may)
        self.outtype = gr.Radio(
            ["auto", *OUTTYPES],
            value="auto",
            label=i18n("outtype"),
            info=i18n("outtype_info"),
            interactive=self.may,
            elem_id="gg-outtype",
        )
        with gr.Accordion(i18n("more"), open=False):
            self.vocab = self._text(i18n, "vocab")
            self.name = self._text(i18n, "name")
        self.start = gr.Button(i18n("start"), variant="primary", interactive=self.may, elem_id="gg-start")
        self.message = gr.HTML(elem_id="gg-message", **_OWN)

    def _text(self, i18n: gr.I18n, key: str, value: str = "") -> gr.Textbox:
        return gr.Textbox(value, label=i18n(key), info=i18n(f"{key}_info"), max_lines=1, interactive=self.may)

    def _connect(self) -> None:
        drawn = [self.banner, self.jobs, self.seen]
        gr.on(None, self.greet, outputs=[self.header, self.title, self.types, *drawn], **_QUIET)
        gr.Timer(POLL_S).tick(self.look, self.seen, drawn, **_QUIET)
        gr.on([self.banner.click, self.jobs.click], self.act, outputs=drawn, **_QUIET)
        tell = "(on) => { document.dispatchEvent(new CustomEvent('ggufy-imatrix', { detail: on })); }"
        self.imatrix.change(None, self.imatrix, js=tell, api_visibility="private")
        presses = [self.start.click, self.source.submit, self.vocab.submit, self.name.submit]
        pressed = gr.on(presses, self.check, None, self.message, **_QUIET)
        # Looking at a source takes a while (a digest of gigabytes, the Hub), so this one waits in gradio's queue.
        queued = _QUIET | {"queue": True, "concurrency_limit": 4}
        pressed.then(self.begin, set(self._fields()), [self.message, *drawn], **queued)

    def _fields(self) -> list[Any]:
        return [self.source, self.types, self.imatrix, self.outtype, self.vocab, self.name]

    # ---- handlers

    def greet(self, request: gr.Request) -> list[Any]:
        """The whole page, in the visitor's language."""
        texts = _texts(request)
        table = gr.HTML(rows=parts.types(texts))
        return [parts.header(texts), parts.title(texts), table, *_draw(self.services, texts)]

    def look(self, shown: str, request: gr.Request) -> list[Any]:
        """What is new since the last look."""
        return _draw(self.services, _texts(request), shown)

    def check(self, request: gr.Request) -> str:
        """Says at once that Start was pressed."""
        return parts.message(_texts(request)["checking"], "busy")

    def begin(self, form: dict[Any, Any], request: gr.Request) -> list[Any]:
        """Starts a job."""
        texts = _texts(request)
        said = _begin(self.services, [form[field] for field in self._fields()], texts)
        return [said, *_draw(self.services, texts)]

    def act(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        """Cancel, retry, or another try with llama.cpp."""
        _act(self.services, str(getattr(event, "action", "")), str(getattr(event, "job", "")))
        return _draw(self.services, _texts(request))


def _texts(request: gr.Request) -> Texts:
    return pick(request.headers.get("accept-language", ""))


def _draw(services: Services, texts: Texts, shown: str = "") -> list[Any]:
    """Banner, jobs and their digest; nothing at all when the tab shows just this already."""
    state, read_only = services.preparation, services.settings.read_only
    banner = parts.banner(state, texts, read_only=read_only)
    views = services.views()
    cards = [job_card(view, texts, ready=state.ready) for view in views[:SHOWN]]
    jobs = parts.jobs(cards, texts, read_only=read_only, older=len(views) - len(cards))
    digest = hashlib.sha256((banner + jobs).encode()).hexdigest()
    return [gr.skip()] * 3 if digest == shown else [banner, jobs, digest]


def _begin(services: Services, values: list[Any], texts: Texts) -> str:
    """Starts a job from the form's fields; returns what to tell the visitor."""
    try:
        job = services.submit(_wish(values))
    except GgufyError as error:
        return parts.message(str(error))
    except Exception:  # one of the three edges: a visitor sees a sentence, the log has the rest
        logger.exception("a job could not be started")
        return parts.message(texts["unexpected"])
    return parts.message(texts["submitted"].format(name=job.request.name), "good")


def _wish(values: list[Any]) -> Wish:
    types, imatrix = values[1:3]
    source, outtype, vocab, name = ("" if v is None else v for v in (values[0], *values[3:]))
    if not isinstance(types, list) or not all(isinstance(v, str) for v in (source, outtype, vocab, name, *types)):
        raise UsageError("the form came back damaged: reload the page.")
    if not source.strip():
        raise UsageError("no source given: enter demo, a path, or owner/repo:file.pth.")
    if not types:
        raise UsageError("no quant type chosen: check at least one.")
    return Wish(
        source=source.strip(),
        quant_types=parse_types(",".join(types)),
        outtype=None if outtype in ("auto", "") else outtype,
        imatrix="auto" if imatrix else "none",
        vocab=vocab.strip() or None,
        name=name.strip() or None,
    )


def _act(services: Services, action: str, job_id: str) -> None:
    try:
        if action == "cancel":
            services.cancel(job_id)
        elif action == "retry":
            services.retry(job_id)
        elif action == "again":
            services.prepare_again()
    except GgufyError as error:
        gr.Warning(html.escape(str(error)))

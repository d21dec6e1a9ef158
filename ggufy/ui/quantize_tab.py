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
HERE = Path(__file__).parent
# Not in the API that gradio documents, not shown while it runs; "private" hides only, so handlers check everything.
_OWN: dict[str, Any] = {"apply_default_css": False, "padding": False}
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def quantize_tab(services: Services, i18n: gr.I18n) -> None:
    """Adds the tab's components and events to the Blocks that is being built."""
    may = not services.settings.read_only
    english = TEXTS["en"]
    jobs_js = (HERE / "jobs.js").read_text(encoding="utf-8")
    header = gr.HTML(parts.header(english), **_OWN)
    banner = gr.HTML(js_on_load=jobs_js, elem_id="gg-banner", **_OWN)
    with gr.Row(elem_id="gg-columns"):
        with gr.Column(scale=2, min_width=340, elem_id="gg-form"):
            title = gr.HTML(parts.title(english), **_OWN)
            source = gr.Textbox("demo", label=i18n("source"), info=i18n("source_info"), max_lines=1, interactive=may)
            types = gr.HTML(
                [row.name for row in QUANT_TYPES if row.recommended],
                rows=parts.types(english),
                html_template="${rows}",  # safe: the rows are ours alone (see markup.py)
                js_on_load=(HERE / "types.js").read_text(encoding="utf-8"),
                elem_id="gg-types",
                **_OWN,
            )
            imatrix = gr.Checkbox(True, label=i18n("imatrix"), info=i18n("imatrix_info"), interactive=may)
            outtype = gr.Radio(
                ["auto", *OUTTYPES],
                value="auto",
                label=i18n("outtype"),
                info=i18n("outtype_info"),
                interactive=may,
                elem_id="gg-outtype",
            )
            with gr.Accordion(i18n("more"), open=False):
                vocab = gr.Textbox(label=i18n("vocab"), info=i18n("vocab_info"), max_lines=1, interactive=may)
                name = gr.Textbox(label=i18n("name"), info=i18n("name_info"), max_lines=1, interactive=may)
            start = gr.Button(i18n("start"), variant="primary", interactive=may, elem_id="gg-start")
            message = gr.HTML(elem_id="gg-message", **_OWN)
        with gr.Column(scale=3, min_width=340):
            jobs = gr.HTML(js_on_load=jobs_js, elem_id="gg-jobs", **_OWN)
    seen = gr.State("")  # digest of what this tab shows

    def greet(request: gr.Request) -> list[Any]:
        texts = _texts(request)
        return [parts.header(texts), parts.title(texts), gr.HTML(rows=parts.types(texts)), *_draw(services, texts, "")]

    def look(shown: str, request: gr.Request) -> list[Any]:
        return _draw(services, _texts(request), shown)

    def check(request: gr.Request) -> str:
        return parts.message(_texts(request)["checking"], "busy")

    def begin(form: dict[Any, Any], request: gr.Request) -> list[Any]:
        texts = _texts(request)
        return [_begin(services, [form[field] for field in fields], texts), *_draw(services, texts, "")]

    def act(event: gr.EventData, request: gr.Request) -> list[Any]:
        _act(services, str(getattr(event, "action", "")), str(getattr(event, "job", "")))
        return _draw(services, _texts(request), "")

    drawn = [banner, jobs, seen]
    gr.on(None, greet, outputs=[header, title, types, *drawn], **_QUIET)
    gr.Timer(POLL_S).tick(look, seen, drawn, **_QUIET)
    gr.on([banner.click, jobs.click], act, outputs=drawn, **_QUIET)
    imatrix.change(
        None,
        imatrix,
        js="(on) => { document.dispatchEvent(new CustomEvent('ggufy-imatrix', { detail: on })); }",
        api_visibility="private",
    )
    fields = [source, types, imatrix, outtype, vocab, name]
    pressed = gr.on([start.click, source.submit, vocab.submit, name.submit], check, None, message, **_QUIET)
    # Looking at a source takes a while (a digest of gigabytes, the Hub), so this one waits in gradio's queue.
    pressed.then(begin, set(fields), [message, *drawn], **_QUIET | {"queue": True, "concurrency_limit": 4})


def _texts(request: gr.Request) -> Texts:
    return pick(request.headers.get("accept-language", ""))


def _draw(services: Services, texts: Texts, shown: str) -> list[Any]:
    """Banner, jobs and their digest; nothing at all when the tab shows just this already."""
    state, read_only = services.preparation, services.settings.read_only
    banner = parts.banner(state, texts, read_only=read_only)
    cards = [job_card(view, texts, ready=state.ready) for view in services.views()]
    jobs = parts.jobs(cards, texts, read_only=read_only)
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

"""The form that makes a job: source, what it is, quant types, what it costs, Start; everything rare is folded away.

What a handler gets comes from a visitor and may be anything; `Services` decides what is allowed. A source is looked at
when its visitor has stopped typing (source.js); an answer that comes after a newer question is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from ggufy.core.catalog import OUTTYPES, QUANT_TYPES
from ggufy.core.errors import GgufyError, HubAway, SourceAway
from ggufy.core.job import MIX_KINDS, RWKV_MIX
from ggufy.core.outputs import GGUF, OUTPUT_NAMES, RWKVCPP
from ggufy.jobs.estimate import BaseOptions, EstimateOptions
from ggufy.jobs.options import BY_NAME, MTP, OPTIONS, ROUNDINGS, JobOptions
from ggufy.jobs.values import LONGEST
from ggufy.models.chat_format import AUTO, FORMATS
from ggufy.publish.markup import Markup
from ggufy.quantize.search.target import MODES, STANDARD
from ggufy.service.access import is_owner, may_work
from ggufy.service.service import Services
from ggufy.ui import parts, source_parts
from ggufy.ui.form import IMATRIX, base_options, estimate_options, job_options, short_text
from ggufy.ui.i18n import TEXTS, Texts, texts_of
from ggufy.ui.kept_form import outlive_reloads
from ggufy.ui.messages import told
from ggufy.ui.newest import Newest
from ggufy.ui.visitors import Profile, visitor_of
from ggufy.ui.wiring import OWN, QUEUED, QUIET, script

logger = logging.getLogger(__name__)
# The demo is measured unless its visitor says no, other models if they say yes.
_MEASURE_THE_DEMO = """(source, measure) => {
  const [demo, before] = [String(source.trim() === "demo"), document.body.dataset.demo ?? "true"];
  document.body.dataset.demo = demo;
  return demo === before ? measure : demo === "true";
}"""


def _named(i18n: gr.I18n, key: str, called: str = "") -> dict[str, Any]:
    """Label, explanation and id of a field, by its key among the texts."""
    return {"label": i18n(key), "info": i18n(f"{key}_info"), "elem_id": f"gg-{(called or key).replace('_', '-')}"}


class QuantizeTab:
    """The form's components and events, added to the Blocks that is being built."""

    def __init__(self, services: Services, i18n: gr.I18n):
        self.services, self.newest, self.priced = services, Newest(), Newest()
        self.title = gr.HTML(parts.title(TEXTS["en"]), **OWN)
        with gr.Column(visible=False, elem_id="gg-guest") as self.guest:
            gr.DuplicateButton(i18n("space_duplicate"), elem_id="gg-duplicate")
            gr.Markdown(i18n("space_duplicate_info"))
        self.source = self._text(i18n, "source", "demo")
        hint = source_parts.hint(TEXTS["en"]["looking"], "gg-busy")
        self.panel = gr.HTML(hint, js_on_load=script("source"), elem_id="gg-panel", **OWN)
        self.output = gr.Radio(
            [(i18n(f"output_{name}"), name) for name in OUTPUT_NAMES],
            value=GGUF,
            label=i18n("output"),
            show_label=False,  # the form fits one screen
            container=False,
            elem_id="gg-output",
        )
        self.types = gr.HTML(
            [row.name for row in QUANT_TYPES if row.recommended],
            rows=parts.types(TEXTS["en"]),
            html_template="${rows}",  # safe: the rows are ours alone (see markup.py)
            js_on_load=script("types"),
            elem_id="gg-types",
            **OWN,
        )
        with gr.Row(elem_id="gg-sizes-wanted"):
            self.memory = self._text(i18n, "memory", placeholder="8", min_width=120, interactive=True)
            self.targets = self._text(i18n, "targets", placeholder="1.2GB, 3.3bpw, mem4GB", min_width=120)
        self.mode = self._choice(i18n, "mode", MODES, STANDARD)
        with gr.Column(elem_id="gg-go"):
            there = "document.dispatchEvent(new Event('ggufy-chosen'));"  # for types.js
            gr.HTML(parts.chosen(), js_on_load=there, elem_id="gg-chosen", **OWN)
            self.cost = gr.HTML(elem_id="gg-cost", **OWN)
            self.start = gr.Button(i18n("start"), variant="primary", elem_id="gg-start")
            self.message = gr.HTML(elem_id="gg-message", **OWN)
        with gr.Accordion(i18n("more"), open=False, elem_id="gg-more"):
            self._options(i18n)

    def _options(self, i18n: gr.I18n) -> None:
        """What is rare, by what it is about."""
        gr.Markdown(i18n("group_texts"), elem_classes="gg-group")
        self.imatrix = self._choice(i18n, "imatrix_kind", IMATRIX, IMATRIX[0], "imatrix")
        self.imatrix_path = self._text(i18n, "imatrix_path", visible=False)
        self.chunks = self._number(i18n, "chunks")
        self.evaluate = self._flag(i18n, "evaluate", value=True)
        self.evaluation = self._text(i18n, "evaluation", "bundled")
        self.evaluation_chunks = self._number(i18n, "evaluation_chunks")
        gr.Markdown(i18n("group_names"), elem_classes="gg-group")
        self.name = self._text(i18n, "name")
        self.chat_format = self._choice(i18n, "chat_format", (AUTO, *FORMATS), AUTO)
        gr.Markdown(i18n("group_parts"), elem_classes="gg-group")
        self.vocab = self._text(i18n, "vocab")
        self.lora = self._text(i18n, "lora")
        self.lora_alpha = self._text(i18n, "lora_alpha")
        self.lora_init = self._text(i18n, "lora_init")
        self.lora_as_file = self._flag(i18n, "lora_as_file")
        # A value that is a key of the page's texts, as `base` is, would come back from the browser translated.
        self.mtp = self._choice(i18n, "mtp", (AUTO, *MTP[1:]), AUTO)
        self.mmproj = self._choice(i18n, "mmproj", ("auto", "none"), "auto")
        published = bool(self.services.workspace.hubs)
        gr.Markdown(i18n("group_publishing"), visible=published, elem_classes="gg-group")
        self.repo = self._text(i18n, "repo", visible=published)
        self.private = self._flag(i18n, "private", visible=published)
        self.keep_card = self._flag(i18n, "keep_card", visible=published)
        gr.Markdown(i18n("group_experts"), elem_classes="gg-group")
        self.outtype = self._choice(i18n, "outtype", (AUTO, *OUTTYPES), AUTO)
        self.mix = self._choice(i18n, "mix", MIX_KINDS, RWKV_MIX)
        self.rounding = self._choice(i18n, "rounding", ROUNDINGS, ROUNDINGS[0])
        self.awq = self._flag(i18n, "awq")

    def _flag(self, i18n: gr.I18n, key: str, *, value: bool = False, visible: bool = True) -> gr.Checkbox:
        return gr.Checkbox(value, visible=visible, **_named(i18n, key))

    def _number(self, i18n: gr.I18n, key: str) -> gr.Number:
        return gr.Number(BY_NAME[key].default, precision=0, **_named(i18n, key))

    def _choice(self, i18n: gr.I18n, key: str, choices: Sequence[str], value: str, called: str = "") -> gr.Radio:
        """Choices without a text of their own are called by their names."""
        texts = [(f"{called or key}_{choice}", choice) for choice in choices]
        return gr.Radio(
            [(i18n(text) if text in TEXTS["en"] else choice, choice) for text, choice in texts],
            value=value,
            **_named(i18n, key, called),
        )

    def _text(self, i18n: gr.I18n, key: str, value: str = "", **more: Any) -> gr.Textbox:
        return gr.Textbox(value, max_lines=1, max_length=LONGEST, **_named(i18n, key), **more)

    def connect(self, page: gr.Blocks, show: Callable[[Any], None]) -> None:
        """`show` makes an event be followed by a look at the jobs."""
        tell = "(kind) => { document.dispatchEvent(new CustomEvent('ggufy-imatrix', { detail: kind !== 'off' })); }"
        self.imatrix.change(None, self.imatrix, js=tell, api_visibility="private")
        self.imatrix.change(self.choose_imatrix, self.imatrix, [self.imatrix_path, self.chunks], **QUIET)
        self.evaluate.change(self.choose_evaluate, self.evaluate, [self.evaluation, self.evaluation_chunks], **QUIET)
        self.source.change(
            None, [self.source, self.evaluate], self.evaluate, js=_MEASURE_THE_DEMO, api_visibility="private"
        )
        looked = [self.panel, self.types, self.cost]
        fields = set(self.fields().values())
        several: dict[str, Any] = {"trigger_mode": "multiple"}  # the newest does not wait for those before
        self.panel.look(self.look, fields, looked, **QUEUED, **several)  # see source.js
        gr.on(
            [self.outtype.change, self.mix.change, self.output.change, self.rounding.change],
            self.look,
            fields,
            looked,
            **QUEUED,
            **several,
        )
        self.output.change(self.choose_output, self.output, self.only_gguf, **QUIET)
        outlive_reloads(page, self.fields()).then(self.look, fields, looked, **QUEUED)
        self.panel.click(self.choose, [self.source, self.output], [self.source, self.output], **QUIET).then(
            self.look, fields, looked, **QUEUED, **several
        )
        last: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}
        self.panel.price(self.price, fields, self.cost, **last)
        counts = (self.chunks, self.evaluation_chunks)
        priced = (self.types, self.imatrix, self.evaluate, self.mode, self.evaluation, self.awq, *counts)
        gr.on([one.change for one in priced], self.price, fields, self.cost, **last)
        pressed = self.start.click(self.check, None, self.message, **QUIET)
        show(pressed.then(self.begin, fields, self.message, **QUEUED))
        show(self.panel.several(self.begin_ticked, fields, self.message, **QUEUED))

    def fields(self) -> dict[str, Any]:
        """What decides the job, by what the page calls it."""
        names = dict.fromkeys(["source", "imatrix_path", *(option.page for option in OPTIONS if option.page)])
        return {name: getattr(self, name) for name in names}

    def values(self, form: Mapping[Any, Any]) -> dict[str, Any]:
        """As `fields`, of what gradio sends."""
        return {name: form[field] for name, field in self.fields().items()}

    # ---- handlers

    def look(self, form: dict[Any, Any], request: gr.Request, profile: Profile) -> Iterator[list[Any]]:
        """What the source is, and a moment later what its quants would be; or what the Hub has of that name."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        newest, priced = self.newest.begin(session := str(request.session_hash)), self.priced.look(session)
        values = self.values(form)
        text, base, order = short_text(values["source"]), base_options(values), estimate_options(values)
        for panel, table, cost in self._looked(text, base, order, texts, visitor):
            if not newest():
                break
            about = source_parts.about(text, panel) if isinstance(panel, Markup) else panel
            yield [about, table, cost if priced() else gr.skip()]  # what was chosen since has a price of its own
        yield [gr.skip()] * 3  # when this ends gradio shows the last ones again, maybe over those of a newer look

    def _looked(
        self, text: str, base: BaseOptions, order: EstimateOptions, texts: Texts, visitor: Any
    ) -> Iterator[list[Any]]:
        """As `look`: panel, table and cost, first without anything of the source that was there before."""
        table = gr.HTML(rows=parts.types(texts, base.output))
        try:
            if not text:
                yield [source_parts.hint(texts["source_empty"]), table, ""]
                return
            query = self.services.is_query(text, visitor)
            yield [source_parts.hint(texts["searching" if query else "looking"], "gg-busy"), table, ""]
            if query:
                yield [source_parts.suggestions(self.services.search(text, visitor), texts), gr.skip(), ""]
                return
            if here := self.services.models_in(text, visitor):
                yield [source_parts.local_files(here, texts), gr.skip(), ""]
                return
            report = self.services.inspect(text, visitor, vocab=base.vocab, output=base.output)
            yield [source_parts.report(report, texts), gr.skip(), gr.skip()]
            if report.problem:
                return
            preview = self.services.look(text, visitor, base)
            sizes = preview.sizes
            known = (sizes.quants, sizes.same_as, sizes.instead) if sizes else ()
            rows = parts.types(texts, base.output, *known)
            cost = self._cost(text, base, order, texts, visitor)
            yield [gr.skip(), gr.HTML(rows=rows), cost]
        except Exception as error:  # one of the three edges
            failure = parts.failure(error, texts, "a source could not be looked at")
            away = isinstance(error, HubAway | SourceAway)
            yield [source_parts.asked_again(failure) if away else failure, gr.skip(), ""]

    def price(self, form: dict[Any, Any], request: gr.Request, profile: Profile) -> Any:
        """The cost of the types that are chosen now."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        newest, priced = self.newest.look(session := str(request.session_hash)), self.priced.begin(session)
        values = self.values(form)
        text, base, order = short_text(values["source"]), base_options(values), estimate_options(values)
        cost = self._cost(text, base, order, texts, visitor)
        return cost if newest() and priced() else gr.skip()  # a look that began meanwhile may be at something else

    def _cost(self, text: str, base: BaseOptions, order: EstimateOptions, texts: Texts, visitor: Any) -> Markup:
        try:
            found = self.services.cost(text, visitor, order, base)
        except GgufyError as error:  # if it is the source, the panel says what is wrong
            return parts.note(told(error.message, texts)) if order.targets else Markup("")
        asked = order.quant_types or order.targets
        return source_parts.cost(found, texts) if found and asked else Markup("")

    def choose(self, source: Any, output: Any, event: gr.EventData) -> list[Any]:
        """A repo or a file of it was picked from the panel, or another format."""
        picked = short_text(getattr(event, "job", ""))
        if getattr(event, "action", "") == "format":
            return [source, picked if picked in OUTPUT_NAMES else output]
        return [picked, output]

    @property
    def only_gguf(self) -> list[Any]:
        """What decides something of GGUFs only."""
        these = [self.imatrix, self.mix, self.rounding, self.awq, self.chat_format, self.mtp, self.mmproj]
        return [*these, self.memory, self.targets, self.mode]

    def choose_output(self, output: Any) -> list[Any]:
        return [type(one)(visible=output != RWKVCPP) for one in self.only_gguf]

    def choose_imatrix(self, kind: Any) -> list[Any]:
        return [gr.Textbox(visible=kind in ("own", "have")), gr.Number(visible=kind in ("bundled", "own"))]

    def choose_evaluate(self, on: Any) -> list[Any]:
        return [gr.Textbox(visible=bool(on)), gr.Number(visible=bool(on))]

    def check(self, request: gr.Request) -> str:
        """Says at once that Start was pressed."""
        return parts.message(texts_of(request)["checking"], "busy")

    def begin(self, form: dict[Any, Any], request: gr.Request, profile: Profile) -> str:
        """Starts a job."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        return self._said(
            lambda: parts.message(
                texts["submitted"].format(name=self.services.submit(self.wish(form), visitor).request.name), "good"
            ),
            texts,
        )

    def begin_ticked(self, form: dict[Any, Any], event: gr.EventData, request: gr.Request, profile: Profile) -> str:
        """Starts a job for each model of a repo that was ticked."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        sources = source_parts.ticked(event)
        return self._said(
            lambda: source_parts.started(*self.services.submit_each(self.wish(form), sources, visitor), texts), texts
        )

    def wish(self, form: Mapping[Any, Any], **more: Any) -> JobOptions:
        """What the form asks for, with other values for what is named. Raises UsageError."""
        return job_options(self.values(form) | more)

    def _said(self, work: Callable[[], Markup], texts: Texts) -> Markup:
        """What `work` says, or what went wrong."""
        try:
            return work()
        except Exception as error:  # one of the three edges
            return parts.failure(error, texts, "a job could not be started")

    def greet(self, texts: Texts, visitor: Any) -> list[Any]:
        """Title, Start and the way to a Space of one's own, as this visitor should see them."""
        settings = self.services.settings
        may, guest = may_work(visitor, settings), not is_owner(visitor, settings)
        way = texts["space_sign_in" if settings.login else "space_no_login"]
        who = texts["space_open"] if may else f"{texts['space_closed']} {way}"
        return [parts.title(texts, who if guest else ""), gr.Button(interactive=may), gr.Column(visible=guest)]

    @property
    def greeted(self) -> list[Any]:
        return [self.title, self.start, self.guest]

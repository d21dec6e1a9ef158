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
from ggufy.core.errors import GgufyError
from ggufy.core.outputs import GGUF, OUTPUT_NAMES, RWKVCPP
from ggufy.jobs.estimate import BaseOptions, EstimateOptions
from ggufy.jobs.options import OPTIONS, ROUNDINGS, JobOptions
from ggufy.jobs.values import LONGEST
from ggufy.models.chat_format import AUTO, FORMATS
from ggufy.publish.markup import Markup
from ggufy.quantize.search.mixes import KINDS, RWKV
from ggufy.quantize.search.target import MODES, STANDARD
from ggufy.service.access import may_work
from ggufy.service.service import Services
from ggufy.ui import parts, source_parts
from ggufy.ui.form import IMATRIX, base_options, estimate_options, job_options, short_text
from ggufy.ui.i18n import TEXTS, Texts, texts_of
from ggufy.ui.messages import told
from ggufy.ui.newest import Newest
from ggufy.ui.visitors import Profile, visitor_of
from ggufy.ui.wiring import HERE, OWN, QUEUED, QUIET

logger = logging.getLogger(__name__)
# The demo is measured unless its visitor says no, other models if they say yes.
_MEASURE_THE_DEMO = """(source, measure) => {
  const [demo, before] = [String(source.trim() === "demo"), document.body.dataset.demo ?? "true"];
  document.body.dataset.demo = demo;
  return demo === before ? measure : demo === "true";
}"""


class QuantizeTab:
    """The form's components and events, added to the Blocks that is being built."""

    def __init__(self, services: Services, i18n: gr.I18n):
        self.services, self.newest, self.priced = services, Newest(), Newest()
        self.title = gr.HTML(parts.title(TEXTS["en"]), **OWN)
        self.source = self._text(i18n, "source", "demo")
        source_js = (HERE / "source.js").read_text(encoding="utf-8")
        self.panel = gr.HTML(
            source_parts.hint(TEXTS["en"]["looking"], "gg-busy"), js_on_load=source_js, elem_id="gg-panel", **OWN
        )
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
            js_on_load=(HERE / "types.js").read_text(encoding="utf-8"),
            elem_id="gg-types",
            **OWN,
        )
        self.cost = gr.HTML(elem_id="gg-cost", **OWN)
        self.start = gr.Button(i18n("start"), variant="primary", elem_id="gg-start")
        self.message = gr.HTML(elem_id="gg-message", **OWN)
        with gr.Accordion(i18n("more"), open=False, elem_id="gg-more"):
            self._options(i18n)

    def _options(self, i18n: gr.I18n) -> None:
        self.imatrix = gr.Radio(
            [(i18n(f"imatrix_{kind}"), kind) for kind in IMATRIX],
            value=IMATRIX[0],
            label=i18n("imatrix_kind"),
            info=i18n("imatrix_kind_info"),
            elem_id="gg-imatrix",
        )
        self.imatrix_path = self._text(i18n, "imatrix_path", visible=False)
        self.outtype = gr.Radio(
            ["auto", *OUTTYPES],
            value="auto",
            label=i18n("outtype"),
            info=i18n("outtype_info"),
            elem_id="gg-outtype",
        )
        self.mix = self._choice(i18n, "mix", KINDS, RWKV)
        self.rounding = self._choice(i18n, "rounding", ROUNDINGS, ROUNDINGS[0])
        self.awq = gr.Checkbox(False, label=i18n("awq"), info=i18n("awq_info"), elem_id="gg-awq")
        self.targets = self._text(i18n, "targets")
        self.mode = self._choice(i18n, "mode", MODES, STANDARD)
        self.evaluate = gr.Checkbox(True, label=i18n("evaluate"), info=i18n("evaluate_info"), elem_id="gg-evaluate")
        self.evaluation = self._text(i18n, "evaluation", "bundled")
        self.name = self._text(i18n, "name")
        self.vocab = self._text(i18n, "vocab")
        self.chat_format = gr.Radio(
            [AUTO, *FORMATS],
            value=AUTO,
            label=i18n("chat_format"),
            info=i18n("chat_format_info"),
            elem_id="gg-chat-format",
        )
        self.lora = self._text(i18n, "lora")
        self.lora_alpha = self._text(i18n, "lora_alpha")
        published = bool(self.services.workspace.hubs)
        self.repo = self._text(i18n, "repo", visible=published)
        self.private = gr.Checkbox(False, label=i18n("private"), visible=published, elem_id="gg-private")
        self.keep_card = gr.Checkbox(
            False, label=i18n("keep_card"), info=i18n("keep_card_info"), visible=published, elem_id="gg-keep-card"
        )

    def _choice(self, i18n: gr.I18n, key: str, choices: Sequence[str], value: str) -> gr.Radio:
        return gr.Radio(
            [(i18n(f"{key}_{choice}"), choice) for choice in choices],
            value=value,
            label=i18n(key),
            info=i18n(f"{key}_info"),
            elem_id=f"gg-{key}",
        )

    def _text(self, i18n: gr.I18n, key: str, value: str = "", *, visible: bool = True) -> gr.Textbox:
        return gr.Textbox(
            value,
            label=i18n(key),
            info=i18n(f"{key}_info"),
            max_lines=1,
            max_length=LONGEST,
            visible=visible,
            elem_id=f"gg-{key.replace('_', '-')}",
        )

    def connect(self, page: gr.Blocks, show: Callable[[Any], None]) -> None:
        """`show` makes an event be followed by a look at the jobs."""
        tell = "(kind) => { document.dispatchEvent(new CustomEvent('ggufy-imatrix', { detail: kind !== 'off' })); }"
        self.imatrix.change(None, self.imatrix, js=tell, api_visibility="private")
        self.imatrix.change(self.choose_imatrix, self.imatrix, self.imatrix_path, **QUIET)
        self.evaluate.change(lambda on: gr.Textbox(visible=bool(on)), self.evaluate, self.evaluation, **QUIET)
        self.source.change(
            None, [self.source, self.evaluate], self.evaluate, js=_MEASURE_THE_DEMO, api_visibility="private"
        )
        looked = [self.panel, self.types, self.cost]
        on_source = [self.source, self.outtype, self.vocab, self.mix, self.output, self.types, self.imatrix]
        on_source += [self.evaluate, self.targets, self.mode, self.evaluation, self.rounding, self.awq]
        several: dict[str, Any] = {"trigger_mode": "multiple"}  # the newest does not wait for those before
        self.panel.look(self.look, on_source, looked, **QUEUED, **several)  # see source.js
        gr.on(
            [self.outtype.change, self.mix.change, self.output.change, self.rounding.change],
            self.look,
            on_source,
            looked,
            **QUEUED,
            **several,
        )
        self.output.change(self.choose_output, self.output, self.only_gguf, **QUIET)
        page.load(self.look, on_source, looked, **QUEUED)
        self.panel.click(self.choose, [self.source, self.output], [self.source, self.output], **QUIET).then(
            self.look, on_source, looked, **QUEUED, **several
        )
        last: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}
        self.panel.price(self.price, on_source, self.cost, **last)
        changes = [
            one.change for one in (self.types, self.imatrix, self.evaluate, self.mode, self.evaluation, self.awq)
        ]
        gr.on(changes, self.price, on_source, self.cost, **last)
        pressed = self.start.click(self.check, None, self.message, **QUIET)
        fields = set(self.fields().values())
        show(pressed.then(self.begin, fields, self.message, **QUEUED))
        show(self.panel.several(self.begin_ticked, fields, self.message, **QUEUED))

    def fields(self) -> dict[str, Any]:
        """What decides the job, by what the page calls it."""
        names = dict.fromkeys(["source", "imatrix_path", *(option.page for option in OPTIONS if option.page)])
        return {name: getattr(self, name) for name in names}

    # ---- handlers

    def look(
        self,
        source: Any,
        outtype: Any,
        vocab: Any,
        mix: Any,
        output: Any,
        types: Any,
        imatrix: Any,
        evaluate: Any,
        targets: Any,
        mode: Any,
        evaluation: Any,
        rounding: Any,
        awq: Any,
        request: gr.Request,
        profile: Profile,
    ) -> Iterator[list[Any]]:
        """What the source is, and a moment later what its quants would be; or what the Hub has of that name."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        newest, priced = self.newest.begin(session := str(request.session_hash)), self.priced.look(session)
        order = estimate_options(types, imatrix, evaluate, targets, mode, evaluation)
        base = base_options(outtype, vocab, mix, output, rounding=rounding, imatrix=imatrix, awq=awq)
        for panel, table, cost in self._looked(short_text(source), base, order, texts, visitor):
            if not newest():
                return
            yield [panel, table, cost if priced() else gr.skip()]  # what was chosen since has a price of its own

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
            preview = self.services.look(text, visitor, base)
            sizes = preview.sizes
            known = (sizes.quants, sizes.same_as, sizes.instead) if sizes else ()
            rows = parts.types(texts, base.output, *known)
            cost = self._cost(text, base, order, texts, visitor)
            yield [gr.skip(), gr.HTML(rows=rows), cost]
        except GgufyError as error:
            yield [parts.message(told(error.message, texts)), gr.skip(), ""]
        except Exception:  # one of the three edges: a visitor sees a sentence, the log has the rest
            logger.exception("a source could not be looked at")
            yield [parts.message(texts["unexpected"]), gr.skip(), ""]

    def price(
        self,
        source: Any,
        outtype: Any,
        vocab: Any,
        mix: Any,
        output: Any,
        types: Any,
        imatrix: Any,
        evaluate: Any,
        targets: Any,
        mode: Any,
        evaluation: Any,
        rounding: Any,
        awq: Any,
        request: gr.Request,
        profile: Profile,
    ) -> Any:
        """The cost of the types that are chosen now."""
        texts, visitor = texts_of(request), visitor_of(self.services, request, profile)
        newest, priced = self.newest.look(session := str(request.session_hash)), self.priced.begin(session)
        order = estimate_options(types, imatrix, evaluate, targets, mode, evaluation)
        base = base_options(outtype, vocab, mix, output, rounding=rounding, imatrix=imatrix, awq=awq)
        cost = self._cost(source, base, order, texts, visitor)
        return cost if newest() and priced() else gr.skip()  # a look that began meanwhile may be at something else

    def _cost(self, source: Any, base: BaseOptions, order: EstimateOptions, texts: Texts, visitor: Any) -> Markup:
        text = short_text(source)
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
        return [self.imatrix, self.mix, self.rounding, self.awq, self.targets, self.mode, self.chat_format]

    def choose_output(self, output: Any) -> list[Any]:
        return [type(one)(visible=output != RWKVCPP) for one in self.only_gguf]

    def choose_imatrix(self, kind: Any) -> Any:
        return gr.Textbox(visible=kind in ("own", "have"))

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
        return job_options({name: form[field] for name, field in self.fields().items()} | more)

    def _said(self, work: Callable[[], Markup], texts: Texts) -> Markup:
        """What `work` says, or what went wrong."""
        try:
            return work()
        except GgufyError as error:
            return parts.message(told(error.message, texts))
        except Exception:  # one of the three edges: a visitor sees a sentence, the log has the rest
            logger.exception("a job could not be started")
            return parts.message(texts["unexpected"])

    def greet(self, texts: Texts, visitor: Any) -> list[Any]:
        """Title and Start as this visitor should see them."""
        return [parts.title(texts), gr.Button(interactive=may_work(visitor, self.services.settings))]

    @property
    def greeted(self) -> list[Any]:
        return [self.title, self.start]

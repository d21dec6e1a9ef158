"""Measures one quant of a job against its base, and hands the figures over for the job's record."""

from __future__ import annotations

from ggufy.core.job import EvaluationText, Request
from ggufy.core.metrics import Evaluation, TextFigures
from ggufy.core.plan import Products, Step, Workload, base_name
from ggufy.steps.context import Context
from ggufy.steps.evaluate import LOGITS_SUFFIX, SPARE
from ggufy.steps.evaluation_text import most_chunks
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.job_texts import figures_folder, pinned_text
from ggufy.steps.local_step import LocalStep
from ggufy.steps.outputs import output_of
from ggufy.steps.outputs.output_format import MeasureOrder
from ggufy.texts import calibration

MEASURED = "figures:"  # before a quant's file name: what was measured of it


class EvaluateStep(LocalStep):
    """One step for each quant. Here, all quants are made first; towards a repo, each is measured as soon as it is
    made, since the disk may have no room for all of them."""

    kind = "evaluate"
    makes_file = False
    paced_by = "imatrix"  # both read a text
    on_card = True

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if not (request.evaluate and output_of(request).measured):
            return steps
        base = base_name(request)
        found = {
            step.product: cls(product=MEASURED + step.product, reads=(base, step.product), quant_type=step.quant_type)
            for step in steps
            if step.quant_type
        }
        if not request.repo_id:
            return (*steps, *found.values())
        each = ((step, found[step.product]) if step.product in found else (step,) for step in steps)
        return tuple(step for pair in each for step in pair)

    def done(self, products: Products) -> bool:
        return self.reads[1] in products.measured

    def seconds(self, load: Workload) -> float:
        tokens = load.evaluation_chunks * 512 + 2_000  # the text; then 1,536 read and 192 written for the speed
        return 0.5 + tokens * 2 * load.weights / (56e9 * load.threads)

    def left_bytes(self, ctx: Context, forecast: JobForecast) -> int:
        """The base's predictions over each text, which all quants share; with AWQ, a further file of one of them."""
        left, output = 0, output_of(ctx.request)
        for text in ctx.request.evaluation_texts:
            path, chunks = calibration.pinned(ctx.settings.cache, text.sha256), ctx.request.evaluation_chunks
            chunks = min(chunks, most_chunks(path)) if path else chunks
            needed = output.predictions_bytes(forecast.vocab_size, chunks)
            here = sum(path.stat().st_size for path in figures_folder(ctx, text).glob(f"*{LOGITS_SUFFIX}"))
            left += max(0, needed - here)
        left += max(forecast.sizes.values(), default=0) if ctx.request.awq else 0
        return left + SPARE if left else 0

    def run(self, ctx: Context) -> None:
        """Leaves no file: the base's predictions stay in the work folder for the next quant, and go with it."""
        texts = ctx.request.evaluation_texts
        first, *more = (self._measured(ctx, text, place, len(texts)) for place, text in enumerate(texts))
        others = (
            TextFigures(
                text=one.text,
                text_sha256=one.text_sha256,
                writing=text.writing[0].kind if text.writing else "",
                chunks=one.chunks,
                tokens=one.tokens,
                quality=one.quality,
            )
            for text, one in zip(texts[1:], more, strict=True)
        )
        ctx.measured(first.evolve(others=tuple(others)) if more else first)

    def _measured(self, ctx: Context, text: EvaluationText, place: int, count: int) -> Evaluation:
        """Over one of the texts; the speed is measured with the first."""
        order = MeasureOrder(
            text=pinned_text(ctx, text),
            folder=figures_folder(ctx, text),
            speed=place == 0,
            report=lambda fraction: ctx.report(self, (place + fraction) / count),
        )
        return output_of(ctx.request).measure(ctx, self, order)

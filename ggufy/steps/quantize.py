"""Makes one quant from the base GGUF, in the format that the job asks for (see outputs/)."""

from __future__ import annotations

from ggufy.core.job import Artifact, Request
from ggufy.core.plan import Step, Workload, made_with, quant_name
from ggufy.steps.context import Context
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.local_step import LocalStep
from ggufy.steps.outputs import output_of
from ggufy.steps.target_size import recipes_seconds


class QuantizeStep(LocalStep):
    """One step for each quant type, then for each size to order."""

    kind = "quantize"
    is_model = True
    stays = False

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        quants = [
            cls(product=quant_name(request, q), reads=made_with(request, q), quant_type=q) for q in request.quants
        ]
        return (*steps, *quants)

    def seconds(self, load: Workload) -> float:
        core_s = load.quants.get(self.quant_type, 0.1 * load.weights / 1e6)
        return 0.2 + core_s / load.threads + recipes_seconds(self, load)

    def size(self, forecast: JobForecast) -> int:
        return forecast.sizes[self.quant_type]

    def check(self, ctx: Context) -> None:
        output_of(ctx.request).check(ctx)

    def run(self, ctx: Context) -> Artifact:
        """Leaves `<Model>-<quant type>.gguf`; of a size to order, `<Model>-<size>-<label>.gguf`."""
        return output_of(ctx.request).make(ctx, self)

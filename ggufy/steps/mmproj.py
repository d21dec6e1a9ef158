"""Makes files of what sees or hears of a model: llama.cpp loads one beside a base or a quant (`--mmproj`)."""

from __future__ import annotations

from ggufy.core.job import Artifact, Request
from ggufy.core.plan import SOURCE_PRODUCT, Step, Workload
from ggufy.sources.hf_folder import linked_folder
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.convert import convert_task, converter_of
from ggufy.steps.local_step import LocalStep
from ggufy.system.files import partial


class MmprojStep(LocalStep):
    """One file for each of its types, before the base, whose step lets go of a source that was fetched."""

    kind = "mmproj"
    product_name = "mmproj"
    advice = "What sees or hears: llama.cpp takes it beside one of the others, with `--mmproj`."
    comes_first = True

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        source = tuple(step.product for step in steps if step.product == SOURCE_PRODUCT)
        return (*steps, *(cls(product=mmproj_name(request, name), reads=source) for name in request.mmproj))

    @property
    def subject(self) -> str:
        """Its type."""
        return self.product.removesuffix(".gguf").rpartition("-")[2]

    def seconds(self, load: Workload) -> float:
        return 10

    def run(self, ctx: Context) -> Artifact:
        """Leaves `mmproj-<Model>-<type>.gguf`."""
        target, converter = ctx.path(self.product), converter_of(ctx, self)
        with linked_folder(convert_task(ctx, self)) as folder, partial(target) as part:
            converter.convert(
                folder,
                part,
                outtype=self.subject.lower(),
                mmproj=True,
                report=lambda fraction: ctx.report(self, fraction),
            )
        return artifact_of(target)


def mmproj_name(request: Request, type_name: str) -> str:
    """As llama.cpp finds it in a repo: by its first word."""
    return f"mmproj-{request.name}-{type_name}.gguf"

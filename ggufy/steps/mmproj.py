"""Makes files of parts of a model, which llama.cpp loads beside a base or a quant: what sees or hears (mmproj), and
heads for several tokens at once (MTP), where these do not stay in the base."""

from __future__ import annotations

from typing import ClassVar, Self

from ggufy.core.job import Artifact, Request
from ggufy.core.plan import SOURCE_PRODUCT, Step, Workload
from ggufy.llama.converter import HEADS, MMPROJ
from ggufy.sources.hf_folder import linked_folder
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.convert import convert_task, converter_of
from ggufy.steps.local_step import LocalStep
from ggufy.system.files import partial

PART_TYPES = ("F16", "Q8_0")  # of these files


class PartStep(LocalStep):
    """One file for each of its types, before the base, whose step lets go of a source that was fetched. Their names
    begin as llama.cpp finds them in a repo."""

    comes_first = True
    part: ClassVar[str]  # option of the converter

    @classmethod
    def of_types(cls, request: Request, types: tuple[str, ...], steps: tuple[Step, ...]) -> tuple[Self, ...]:
        """A step for each type."""
        source = tuple(step.product for step in steps if step.product == SOURCE_PRODUCT)
        return tuple(cls(product=f"{cls.kind}-{request.name}-{name}.gguf", reads=source) for name in types)

    @property
    def subject(self) -> str:
        """Its type."""
        return self.product.removesuffix(".gguf").rpartition("-")[2]

    def seconds(self, load: Workload) -> float:
        return 10

    def run(self, ctx: Context) -> Artifact:
        """Leaves `<kind>-<Model>-<type>.gguf`."""
        target, converter = ctx.path(self.product), converter_of(ctx, self)
        with linked_folder(convert_task(ctx, self)) as folder, partial(target) as part:
            converter.convert(
                folder,
                part,
                outtype=self.subject.lower(),
                part=self.part,
                report=lambda fraction: ctx.report(self, fraction),
            )
        return artifact_of(target)


class MmprojStep(PartStep):
    """What sees or hears."""

    kind, part = "mmproj", MMPROJ
    product_name = "mmproj"
    advice = "What sees or hears: llama.cpp takes it beside one of the others, with `--mmproj`."

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return (*steps, *cls.of_types(request, request.mmproj, steps))


class MtpStep(PartStep):
    """Heads for several tokens at once."""

    kind, part = "mtp", HEADS
    product_name = "MTP"
    advice = "Drafts several tokens: llama.cpp takes it beside one of the others, with `--spec-type draft-mtp -md`."

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return (*steps, *cls.of_types(request, PART_TYPES if request.mtp == "file" else (), steps))

"""An output format of one's own in one file: of every weight, its sign."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.catalog import QuantType
from ggufy.core.job import Artifact, Making
from ggufy.core.outputs import OutputNames
from ggufy.core.plan import Step
from ggufy.formats.gguf import GgufHead, read_head, read_tensor
from ggufy.models.chat_format import RwkvFormat
from ggufy.quantize.recipe import Forecast
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.outputs.output_format import OutputFormat
from ggufy.system.files import partial

SIGNS = QuantType(
    name="SIGNS",
    ftype=0,
    tensor_type="sign",
    bits=1.0,
    needs_imatrix=False,
    recommended=True,
    ordinary=False,
    ternary=False,
    advice="Which way every weight points, and nothing else.",
)


def size_of(head: GgufHead) -> int:
    return sum(-(-tensor.elements // 8) for tensor in head.tensors.values())


NAMES = OutputNames(name="toy", suffix="toy", ending="toy", types={"SIGNS": SIGNS})  # its base is a GGUF


class SignsFormat(OutputFormat):
    """What the module says."""

    names = NAMES
    title, made_with, library, tags = "The signs of {name}.", "numpy", "toy", ("signs",)

    def forecast(self, base: Path, types: Iterable[str], **_: Any) -> JobForecast:
        head = read_head(base)
        quants = {name: Forecast(recipe={}, size=size_of(head), bpw=1.0) for name in types}
        return JobForecast(base=head, quants=quants, same_as={})

    def make(self, ctx: Context, step: Step) -> Artifact:
        base, target = ctx.path(step.reads[0]), ctx.path(step.product)
        head = read_head(base)
        with partial(target) as part, part.open("wb") as file:
            for place, name in enumerate(head.tensors, start=1):
                ctx.check_stopped()
                file.write(np.packbits(read_tensor(base, head, name) >= 0).tobytes())
                ctx.report(step, place / len(head.tensors))
        return replace(artifact_of(target), making=Making(bpw=1.0))

    def read_types(self, path: Path) -> tuple[float, str]:
        return 1.0, "signs"

    def how_to_run(
        self, repo_id: str, quant_type: str, *, file: str, chat: RwkvFormat | None, converted: bool
    ) -> list[str]:
        return ["```sh", f"which-way {repo_id} {quant_type}", "```"]


TOY = SignsFormat()

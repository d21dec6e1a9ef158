"""Makes a file of an adapter that is not merged: llama.cpp loads it beside a base or a quant (`--lora`)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ggufy.core.job import Artifact, Request
from ggufy.core.names import model_name
from ggufy.core.plan import SOURCE_PRODUCT, Step, Workload
from ggufy.core.source import PinnedAdapter
from ggufy.sources.adapter import CONFIG, AdapterSearch, adapter_stem
from ggufy.sources.adapter_files import drop_fetched, fetch_adapter
from ggufy.sources.hf_folder import linked_folder
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.convert import convert_task, converter_of
from ggufy.steps.local_step import LocalStep
from ggufy.system.files import partial

_LONGEST_STEM = 40  # letters of an adapter's name in its file's, which has the model's too


class LoraStep(LocalStep):
    """One file for each of them, before the base, whose step lets go of a source that was fetched."""

    kind = "lora"
    product_name = "LoRA"
    advice = "An adapter: llama.cpp takes it beside one of the others, with `--lora`."
    comes_first = True

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        source = tuple(step.product for step in steps if step.product == SOURCE_PRODUCT)
        return (*steps, *(cls(product=lora_name(request, one), reads=source) for one in request.lora_files))

    @property
    def subject(self) -> str:
        """Its file, without the ending."""
        return self.product.removesuffix(".gguf")

    def seconds(self, load: Workload) -> float:
        return 10

    def run(self, ctx: Context) -> Artifact:
        """Leaves what `lora_name` says."""
        adapter = next(one for one in ctx.request.lora_files if lora_name(ctx.request, one) == self.product)
        target, search = ctx.path(self.product), AdapterSearch(ctx.settings, stopped=ctx.stopped)
        here = [Path(one.path) for one in fetch_adapter(adapter, ctx.settings.cache, search)]
        with linked_folder(convert_task(ctx, self)) as folder, partial(target) as part:
            saved = folder.with_name(f"{folder.name}.lora") / adapter_stem(adapter.source)
            saved.mkdir(parents=True)
            for path in here:
                if path.name != CONFIG:
                    (saved / path.name).symlink_to(path.absolute())
            # llama.cpp multiplies B A with alpha / r, and knows no other scale.
            told = {"peft_type": "LORA", "r": adapter.rank, "lora_alpha": adapter.scale * adapter.rank}
            (saved / CONFIG).write_text(json.dumps(told), encoding="utf-8")
            converter_of(ctx, self).convert_adapter(saved, folder, part)
        drop_fetched([adapter], ctx.settings.cache)
        return artifact_of(target)


def lora_name(request: Request, adapter: PinnedAdapter) -> str:
    """`<Model>-lora-<adapter>-<8 hex digits>.gguf`, no type's label in it, so that no tool takes it for a model; the
    digits tell it from another version of the adapter."""
    digits = hashlib.sha256(adapter.key.encode()).hexdigest()[:8]
    return f"{request.name}-{model_name(f'lora-{adapter_stem(adapter.source)[:_LONGEST_STEM]}')}-{digits}.gguf"

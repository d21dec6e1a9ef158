"""Makes the base, by the source's format: from what is here, or while it is fetched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ggufy.core.errors import DiskError, SourceError
from ggufy.core.job import Artifact, Request
from ggufy.core.plan import LINE_BYTES, SOURCE_PRODUCT, Step, Workload, base_name
from ggufy.core.words import human_size
from ggufy.llama.converter import TRUNK, Converter
from ggufy.sources.adapter import AdapterSearch
from ggufy.sources.adapter_files import drop_fetched, opened_adapters
from ggufy.sources.format import ConvertTask
from ggufy.sources.registry import format_of
from ggufy.steps.context import Context
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.local_step import LocalStep
from ggufy.steps.making import with_base
from ggufy.system.files import free_bytes, sha256


class ConvertStep(LocalStep):
    """Everything else is made from the base, which is never made twice: a source that was fetched goes then."""

    kind = "convert"
    product_name = "base GGUF"
    advice = "Unquantized."
    is_model = True

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        source = tuple(step.product for step in steps if step.product == SOURCE_PRODUCT)
        kind = cls if format_of(request.source.kind).forecasts else ConvertFirst
        return (*steps, kind(product=base_name(request), reads=source))

    def seconds(self, load: Workload) -> float:
        return max(3 + load.base_bytes / 200e6, load.streamed_bytes / LINE_BYTES)

    def size(self, forecast: JobForecast) -> int:
        return forecast.base_size

    def run(self, ctx: Context) -> Artifact:
        """Leaves `<Model>-<OUTTYPE>.gguf`, or as the format of the quants calls it."""
        target, source = ctx.path(self.product), ctx.request.source
        cache, task = ctx.settings.cache, convert_task(ctx, self)
        search = AdapterSearch(ctx.settings, stopped=ctx.stopped)
        with opened_adapters(ctx.request.adapters, cache, search) as adapters:
            digest = format_of(source.kind).convert(replace(task, adapters=adapters), target)
        for path in ctx.source_files[::-1] if source.remote else ():
            path.unlink(missing_ok=True)
        drop_fetched(ctx.request.adapters, cache)
        artifact = Artifact(name=target.name, size=target.stat().st_size, sha256=digest)
        return with_base(artifact, target, llama=ctx.llama.commit)


class ConvertFirst(ConvertStep):
    """Of a source whose sizes are known when it is converted."""

    comes_first = True

    def check(self, ctx: Context) -> None:
        """Raises DiskError when the base does not fit."""
        source = ctx.request.source  # of two bytes a weight, as almost all are
        needed, free = source.size * (2 if ctx.request.outtype == "f32" else 1), free_bytes(ctx.folder)
        needed += 2 * source.size if ctx.request.adapters else 0  # merged weights, in F32, while it converts
        if needed > free:
            raise DiskError(
                "the base GGUF needs about {needed} in {folder} and {free} are free: free some space, or choose "
                "another {OUT}.",
                needed=human_size(needed),
                folder=ctx.folder.absolute(),
                free=human_size(free),
            )


def convert_task(ctx: Context, step: Step) -> ConvertTask:
    """What the source's format is given."""
    return ConvertTask(
        source=ctx.request.source,
        path=ctx.source,
        streamed=ctx.streams,
        outtype=ctx.request.outtype,
        output=ctx.request.output,
        name=ctx.request.name,
        vocab=pinned_vocab(ctx),
        chat_format=ctx.request.chat_format,
        work=ctx.work,
        run_converter=_runner(ctx, step),
        token=ctx.settings.token_for(ctx.request.source.host),
        report=lambda fraction: ctx.report(step, fraction),
        stopped=ctx.stopped,
    )


def converter_of(ctx: Context, step: Step) -> Converter:
    """llama.cpp's converter, to be run for a step."""
    return Converter(
        llama=ctx.llama,
        cache=ctx.settings.cache,
        pip_environment=ctx.settings.pip_environment,
        run=ctx.tool_run(step),
    )


def _runner(ctx: Context, step: Step) -> Callable[[Path, Path], None]:
    converter = converter_of(ctx, step)

    def run(folder: Path, target: Path) -> None:
        part = "" if ctx.request.mtp == "base" else TRUNK
        converter.convert(
            folder, target, outtype=ctx.request.outtype, report=lambda fraction: ctx.report(step, fraction), part=part
        )

    return run


def pinned_vocab(ctx: Context) -> Path | None:
    """The user's vocabulary, which must still be the file that the job was made with."""
    request = ctx.request
    if not request.vocab_path:
        return None
    path = Path(request.vocab_path)
    if not path.is_file() or sha256(path) != request.vocab_sha256:
        raise SourceError(
            "{path} changed since the job was made: put the file back, or start anew with {NAME}.", path=path
        )
    return path

"""Makes the base GGUF: converts a checkpoint, here or while it is fetched, or takes over an unquantized GGUF."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy.core.errors import Cancelled, SourceError
from ggufy.core.job import Artifact, Request
from ggufy.core.plan import LINE_BYTES, SOURCE_PRODUCT, Step, Workload, base_name
from ggufy.formats.gguf import read_head
from ggufy.sources.gguf_model import check_model
from ggufy.steps.context import Context
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.local_step import LocalStep
from ggufy.steps.making import with_base
from ggufy.system.files import Digesting, partial, sha256

if TYPE_CHECKING:
    from ggufy.formats.streamed_checkpoint import StreamedCheckpoint

_BLOCK = 4 << 20


class ConvertStep(LocalStep):
    """Everything else is made from the base GGUF, which is never made twice: a source that was fetched goes then."""

    kind = "convert"
    product_name = "base GGUF"
    advice = "Unquantized."
    is_model = True

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        source = tuple(step.product for step in steps if step.product == SOURCE_PRODUCT)
        return (*steps, cls(product=base_name(request), reads=source))

    def seconds(self, load: Workload) -> float:
        return max(3 + load.base_bytes / 200e6, load.streamed_bytes / LINE_BYTES)

    def size(self, forecast: JobForecast) -> int:
        return forecast.base.file_size

    def run(self, ctx: Context) -> Artifact:
        """Leaves `<Model>-<OUTTYPE>.gguf`."""
        target, source = ctx.path(self.product), ctx.request.source
        artifact = _take_over(ctx, self, target) if source.kind == "gguf" else _convert(ctx, self, target)
        if source.remote:
            ctx.source.unlink(missing_ok=True)
        return with_base(artifact, target, llama=ctx.llama.commit)


def _convert(ctx: Context, step: Step, target: Path) -> Artifact:
    from ggufy.models.convert import convert  # noqa: PLC0415 - loads torch, seconds that only a due conversion pays
    from ggufy.models.convert_streamed import convert_streamed  # noqa: PLC0415

    def progress(done: int, total: int) -> None:
        ctx.check_stopped()
        ctx.report(step, done / max(1, total))

    outtype, vocab, name = ctx.request.outtype, pinned_vocab(ctx), ctx.request.name
    if not ctx.streams:
        digest = convert(ctx.source, target, outtype=outtype, vocab=vocab, name=name, progress=progress)
    else:
        source = remote_checkpoint(ctx)
        digest = convert_streamed(source, target, outtype=outtype, vocab=vocab, name=name, progress=progress)
    return Artifact(name=target.name, size=target.stat().st_size, sha256=digest)


def remote_checkpoint(ctx: Context) -> StreamedCheckpoint:
    """The source, where it is. Raises CannotStream if it has to be downloaded, and other SourceErrors."""
    from ggufy.formats.streamed_checkpoint import open_streamed  # noqa: PLC0415 - loads torch

    return open_streamed(ctx.request.source, token=ctx.settings.hf_token, stopped=ctx.stopped)


def pinned_vocab(ctx: Context) -> Path | None:
    """The user's vocabulary, which must still be the file that the job was made with."""
    request = ctx.request
    if not request.vocab_path:
        return None
    path = Path(request.vocab_path)
    if not path.is_file() or sha256(path) != request.vocab_sha256:
        raise SourceError(f"{path} changed since the job was made: put the file back, or start anew with --name.")
    return path


def _take_over(ctx: Context, step: Step, target: Path) -> Artifact:
    """A second name for the file where the disk allows it, else a copy."""
    source, pinned, outtype = ctx.source, ctx.request.source, ctx.request.outtype
    head = read_head(source)
    check_model(head, source.name)
    if head.outtype != outtype:
        raise SourceError(f"{source.name} is {head.outtype} and is taken as it is: add --outtype {head.outtype}.")

    def progress(done: int) -> None:
        ctx.report(step, done / max(1, pinned.size))

    with partial(target) as part:
        with contextlib.suppress(OSError):
            os.link(source, part)
        if part.exists():
            digest = sha256(part, progress, stopped=ctx.stopped)
        else:
            digest = _copy(source, part, progress, ctx.stopped)
        if pinned.sha256 and digest != pinned.sha256:
            raise SourceError(
                f"{source} changed since the job was made: put the file back, or start anew with --name."
            )
    return Artifact(name=target.name, size=target.stat().st_size, sha256=digest)


def _copy(source: Path, target: Path, progress: Callable[[int], None], stopped: Callable[[], bool]) -> str:
    """Gives the SHA-256 of what it copies."""
    with source.open("rb") as old, target.open("wb") as new:
        sink, done = Digesting(new), 0
        while block := old.read(_BLOCK):
            if stopped():
                raise Cancelled("the job was stopped.")
            sink.write(block)
            done += len(block)
            progress(done)
    return sink.hexdigest()

"""Makes the base GGUF: converts a checkpoint, here or while it is fetched, or takes over an unquantized GGUF."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy.core.errors import Cancelled, SourceError
from ggufy.core.job import Artifact
from ggufy.core.plan import Step
from ggufy.formats.gguf import read_head
from ggufy.sources.gguf_model import check_model
from ggufy.steps.context import Context
from ggufy.steps.making import with_base
from ggufy.system.files import Digesting, partial, sha256

if TYPE_CHECKING:
    from ggufy.formats.streamed_checkpoint import StreamedCheckpoint

_BLOCK = 4 << 20


def run(ctx: Context, step: Step) -> Artifact:
    """Leaves `<Model>-<OUTTYPE>.gguf`."""
    target = ctx.path(step.product)
    artifact = _take_over(ctx, step, target) if ctx.request.source.kind == "gguf" else _convert(ctx, step, target)
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
        raise SourceError(
            "{path} changed since the job was made: put the file back, or start anew with {NAME}.", path=path
        )
    return path


def _take_over(ctx: Context, step: Step, target: Path) -> Artifact:
    """A second name for the file where the disk allows it, else a copy."""
    source, pinned, outtype = ctx.source, ctx.request.source, ctx.request.outtype
    head = read_head(source)
    check_model(head, source.name)
    if head.outtype != outtype:
        raise SourceError(
            "{source} is {type} and is taken as it is: add {OUTTYPE} {outtype}.",
            source=source.name,
            type=head.outtype,
            outtype=head.outtype,
        )

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
                "{path} changed since the job was made: put the file back, or start anew with {NAME}.", path=source
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

"""Makes the base GGUF, by the source's format: from what is here, or while it is fetched."""

from __future__ import annotations

from pathlib import Path

from ggufy.core.errors import SourceError
from ggufy.core.job import Artifact
from ggufy.core.plan import Step
from ggufy.sources.format import ConvertTask
from ggufy.sources.registry import format_of
from ggufy.steps.context import Context
from ggufy.steps.making import with_base
from ggufy.system.files import sha256


def run(ctx: Context, step: Step) -> Artifact:
    """Leaves `<Model>-<OUTTYPE>.gguf`."""
    target = ctx.path(step.product)
    digest = format_of(ctx.request.source.kind).convert(convert_task(ctx, step), target)
    artifact = Artifact(name=target.name, size=target.stat().st_size, sha256=digest)
    return with_base(artifact, target, llama=ctx.llama.commit)


def convert_task(ctx: Context, step: Step) -> ConvertTask:
    """What the source's format is given."""
    return ConvertTask(
        source=ctx.request.source,
        path=ctx.source,
        streamed=ctx.streams,
        outtype=ctx.request.outtype,
        name=ctx.request.name,
        vocab=pinned_vocab(ctx),
        token=ctx.settings.hf_token,
        report=lambda fraction: ctx.report(step, fraction),
        stopped=ctx.stopped,
    )


def pinned_vocab(ctx: Context) -> Path | None:
    """The user's vocabulary, which must still be the file that the job was made with."""
    request = ctx.request
    if not request.vocab_path:
        return None
    path = Path(request.vocab_path)
    if not path.is_file() or sha256(path) != request.vocab_sha256:
        raise SourceError(f"{path} changed since the job was made: put the file back, or start anew with --name.")
    return path

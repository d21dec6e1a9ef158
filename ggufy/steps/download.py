"""Fetches the source into the cache and checks it: from the Hub, where a cut download goes on, or from a plain
address."""

from __future__ import annotations

from ggufy.core.errors import DiskError, SourceAway, SourceError, ToolError
from ggufy.core.job import Request
from ggufy.core.messages import Message
from ggufy.core.plan import LINE_BYTES, SOURCE_PRODUCT, Step, Workload
from ggufy.core.words import human_size
from ggufy.llama import tools
from ggufy.sources import hub, url
from ggufy.steps.context import Context
from ggufy.steps.local_step import LocalStep
from ggufy.system.files import DOWNLOAD_SUFFIX, disk_errors, free_bytes
from ggufy.system.locks import lock


class DownloadStep(LocalStep):
    """For sources of elsewhere that are not fetched while they are converted. What it leaves is no file of the result,
    and not needed once there is a base."""

    kind = "download"
    makes_file = False
    comes_first = True

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        return (*steps, cls(product=SOURCE_PRODUCT, final=False)) if request.source.remote else steps

    def seconds(self, load: Workload) -> float:
        return load.download_bytes / LINE_BYTES

    def check(self, ctx: Context) -> None:
        """Raises DiskError when the source itself does not fit into the cache."""
        free = free_bytes(ctx.source)
        if ctx.request.source.size > free:
            raise DiskError(
                "the source needs {needed} in {folder} and {free} are free: free some space or set GGUFY_CACHE to "
                "another disk.",
                needed=human_size(ctx.request.source.size),
                folder=ctx.settings.cache,
                free=human_size(free),
            )

    def run(self, ctx: Context) -> None:
        """Leaves the source's files at `ctx.source_files`."""
        source = ctx.request.source
        ctx.source.parent.mkdir(parents=True, exist_ok=True)
        if source.url:
            _fetch_plain(ctx, self)
            return
        before, token = 0, ctx.settings.token_for(source.host)
        for file, target in zip(source.each(), ctx.source_files, strict=True):

            def progress(done: int, before: int = before) -> None:
                ctx.report(self, (before + done) / max(1, source.size))

            hub.download(file, target, token=token, progress=progress, stopped=ctx.stopped)
            before += file.size


def _fetch_plain(ctx: Context, step: Step) -> None:
    source, part = ctx.request.source, ctx.source.with_name(ctx.source.name + DOWNLOAD_SUFFIX)
    busy = Message("another run is downloading {name}: wait for it to end.", name=source.path)

    def feed(text: str) -> None:
        if done := [line for line in text.split() if line.isdigit()]:
            ctx.report(step, min(1.0, int(done[-1]) / max(1, source.size)))

    with disk_errors(ctx.source), lock(ctx.source.with_suffix(".lock"), message=busy):
        if ctx.source.exists():
            return
        part.unlink(missing_ok=True)  # hf_transfer cannot go on with it, and does not shorten a longer file
        command = url.download_command(source, part.absolute(), stopped=ctx.stopped)
        try:
            tools.run_tool(command, ctx.tool_run(step, cwd=ctx.source.parent), feed)
        except ToolError as error:
            reason = tools.failure_reason(error.output)
            if "os error 28" in reason:  # ENOSPC, in hf_transfer's words
                raise DiskError(
                    "the disk is full while fetching {name}: free some space.", name=source.path
                ) from error
            kind = _kind_of_failure(ctx)
            raise kind(
                Message("{name} could not be fetched ({reason}): {AGAIN}.", name=source.path, reason=reason)
            ) from error
        url.check_download(source, part)
        part.replace(ctx.source)


def _kind_of_failure(ctx: Context) -> type[SourceError]:
    """Whether it passes: hf_transfer does not tell, so the server is asked once more."""
    try:
        url.check_there(ctx.request.source, stopped=ctx.stopped)
    except SourceError as error:
        return type(error)
    return SourceAway

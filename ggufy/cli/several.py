"""`quantize owner/repo --all` and `quantize 'owner/repo:*-pro.pth'`: one job for each model, one after another."""

from __future__ import annotations

import sys

from ggufy.cli.running import pinned, queue_job, run_job
from ggufy.core.errors import GgufyError, SourceError
from ggufy.core.job import Job
from ggufy.core.words import brief
from ggufy.jobs.options import JobOptions
from ggufy.jobs.runner import Runner
from ggufy.jobs.several import make_each
from ggufy.records.run_state import RunState
from ggufy.sources.variants import is_pattern, list_models
from ggufy.system.settings import Settings


def several_sources(source: str, *, every: bool, settings: Settings) -> list[str] | None:
    """The models that are meant, all at one commit; None if the source is one model. Raises SourceError."""
    if not every and not is_pattern(source):
        return None
    models = list_models(source, token=settings.hf_token)
    if not models:
        raise SourceError(
            "{source} stands for no model: `inspect` lists what a repo holds, and GGUFs need a pattern with .gguf.",
            source=brief(source),
        )
    return [model.source for model in models]


def run_several(
    runner: Runner, options: JobOptions, sources: list[str], *, quiet: bool
) -> tuple[list[tuple[Job, RunState]], dict[str, GgufyError]]:
    """Makes all jobs, says what cannot work, and runs the others; returns these, and by source why some could not be
    made. A job that fails does not stop the rest, and what an interruption leaves, `resume` continues."""

    def make(wish: JobOptions) -> Job:
        return queue_job(runner.records, pinned(wish, runner.settings, quiet=quiet))

    jobs, refused = make_each(options, sources, make)
    for source, error in refused.items():
        print(f"ggufy: {source}: {error}", file=sys.stderr)
    return [run_job(runner, job, quiet=quiet) for job in jobs], refused

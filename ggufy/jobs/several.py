"""Several jobs from one wish: one for each model of a repo, with the same options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ggufy.core.errors import GgufyError, SourceError, UsageError
from ggufy.core.job import Job
from ggufy.core.names import model_name, stem_of
from ggufy.jobs.options import JobOptions
from ggufy.sources.hub import parse_reference


def check_names(options: JobOptions) -> None:
    """Raises UsageError for options that one model only can have."""
    if options.name or options.repo_id:
        raise UsageError("{NAME} and {REPO} are for one model, and several are meant: leave them out.")


def make_each(
    options: JobOptions, sources: Sequence[str], make: Callable[[JobOptions], Job]
) -> tuple[list[Job], dict[str, GgufyError]]:
    """The jobs that `make` makes of the wish with each source, and why others could not be made, by source.

    Raises UsageError for options that one model only can have, and whatever is wrong with all of them.
    """
    if len(sources) > 1:
        check_names(options)
    jobs: list[Job] = []
    refused: dict[str, GgufyError] = {}
    named: dict[str, str] = {}
    for source in sources:
        try:
            name = model_name(options.name or _stem(source))
            if name in named:
                raise UsageError(
                    "its files would be called as those of {other}: start it alone, with another {NAME}.",
                    other=named[name],
                )
            jobs.append(make(replace(options, source=source)))
            named[name] = source
        except (SourceError, UsageError) as error:
            refused[source] = error
    return jobs, refused


def _stem(source: str) -> str:
    """What the files of a source are named after, before anybody is asked."""
    try:
        meant = parse_reference(source)
    except SourceError:  # the demo, an address, a file of this machine; or nothing, which `make` says
        return stem_of(source)
    return stem_of(meant.file or meant.repo_id, meant.repo_id)

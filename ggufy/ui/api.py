"""What programs may call: `gradio_client` endpoints, and the same functions as tools for models (MCP).

Their names, types and docstrings are what callers see. They do what the page does, with the same checks; on a Space,
starting and stopping needs the token of an owner: `Client("owner/space", token=...)`. What arrives may be anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, TypeVar

import gradio as gr

from ggufy.core.catalog import parse_types
from ggufy.core.errors import GgufyError, UsageError
from ggufy.core.job import Job
from ggufy.core.source import Source
from ggufy.core.words import human_size
from ggufy.jobs.request import JobOptions
from ggufy.quantize.search.target import parse_words
from ggufy.service.access import Visitor
from ggufy.service.service import JobView, Services
from ggufy.ui.form import MOST_CHARS
from ggufy.ui.messages import told_to_programs
from ggufy.ui.views import file_link, repo_address
from ggufy.ui.visitors import Profile, visitor_of

Answer = TypeVar("Answer")
NAMES = ("inspect_source", "start_job", "list_jobs", "job_status", "cancel_job", "resume_job", "list_results")


def add_api(services: Services) -> None:
    """Adds the endpoints to the Blocks that is being built."""
    calls = _Api(services)
    for name in NAMES:
        function = vars(_Api)[name]
        function.__doc__ = one_line_each(function.__doc__)
        gr.api(getattr(calls, name), api_name=name, concurrency_limit=4)


def one_line_each(doc: str) -> str:
    """A docstring with one line for every argument, and one for what is returned: gradio reads no further."""
    lines: list[str] = []
    section = ""
    for line in inspect.cleandoc(doc).splitlines():
        if line in ("Args:", "Returns:"):
            section = line
        elif section and lines[-1] != section and line.startswith("        " if section == "Args:" else "    "):
            lines[-1] += f" {line.strip()}"
            continue
        lines.append(line)
    return "\n".join(lines)


class _Api:
    def __init__(self, services: Services):
        self.services = services

    def inspect_source(self, request: gr.Request, profile: Profile, source: str) -> dict[str, Any]:
        """Looks at a model from its headers alone, without downloading its weights.

        Args:
            source: demo, owner/repo or owner/repo:file.pth on the Hugging Face Hub, or the address of a .pth or .gguf.

        Returns:
            What it is (version, layers, width, parameters, dtype, size in bytes, licence), `problem` with one sentence
            if it cannot be quantized, and `quants` with the bytes and bits per weight of every quant type.
        """

        def work() -> dict[str, Any]:
            preview = self.services.look(_source(source), visitor_of(self.services, request, profile))
            quants = preview.sizes.quants if preview.sizes else {}
            facts = preview.report.facts()
            facts["problem"] = told_to_programs(facts["problem"])
            facts["file"] = facts.pop("path")  # gradio_client would take a `path` for a file to fetch
            return facts | {"quants": {name: {"size": q.size, "bpw": round(q.bpw, 3)} for name, q in quants.items()}}

        return _told(work)

    def start_job(
        self,
        request: gr.Request,
        profile: Profile,
        source: str,
        quant_types: str = "",
        imatrix: bool = True,
        evaluate: bool = False,
        name: str = "",
        targets: str = "",
        mode: str = "",
        keep_card: bool = False,
    ) -> dict[str, Any]:
        """Starts making GGUF quants of a model; the job goes on by itself, also after restarts.

        Args:
            source: demo, owner/repo:file.pth on the Hugging Face Hub, or the address of a .pth or .gguf.
            quant_types: all, recommended, none, or names, such as Q4_K_M,Q8_0, as a list or separated by commas;
                empty is recommended, or none if there are targets.
            imatrix: whether to make an importance matrix first, which small quants need.
            evaluate: whether to measure perplexity, KL divergence and speed of every quant.
            name: name of the model in file names; empty takes the source's.
            targets: sizes to order, as a list or separated by commas: 1.2GB, 900MiB, 3.275bpw (bits per weight),
                mem4GB (memory).
            mode: how much is measured for these: fast, standard or thorough; empty is standard. Without targets,
                standard and thorough find what every size is worth.
            keep_card: whether only model files are published, beside a README.md of the repo's own.

        Returns:
            The job's id and status.
        """

        def work() -> dict[str, Any]:
            words = parse_words(_list("targets", targets))
            options = JobOptions(
                source=_source(source),
                quant_types=parse_types(_list("quant_types", quant_types) or ("none" if words else "recommended")),
                targets=words,
                mode=_text("mode", mode),
                imatrix="auto" if _flag("imatrix", imatrix, True) else "none",
                evaluate=_flag("evaluate", evaluate, False),
                name=_text("name", name) or None,
                keep_card=_flag("keep_card", keep_card, False),
            )
            return _record(self.services.submit(options, visitor_of(self.services, request, profile)))

        return _told(work)

    def list_jobs(self, request: gr.Request, profile: Profile) -> list[dict[str, Any]]:
        """Lists the jobs that there are, newest first.

        Returns:
            For each job its id, status, error, name, source, when it was made, and its output repo if it has one.
        """

        def work() -> list[dict[str, Any]]:
            jobs = [view.job for view in self.services.views(visitor_of(self.services, request, profile))]
            return [
                _record(job)
                | {"name": job.request.name, "source": _shown_source(job.request.source), "created": job.created}
                for job in jobs
            ]

        return _told(work)

    def job_status(self, request: gr.Request, profile: Profile, job_id: str) -> dict[str, Any]:
        """Tells how far a job is.

        Args:
            job_id: as start_job or list_jobs returned it.

        Returns:
            Status (queued, running, done, failed, cancelled, paused), error, steps done and in all, what runs, and
            seconds left if they are known.
        """
        return _told(lambda: _progress(self._view(job_id, visitor_of(self.services, request, profile))))

    def cancel_job(self, request: gr.Request, profile: Profile, job_id: str) -> dict[str, Any]:
        """Ends a job; its finished files stay.

        Args:
            job_id: as start_job or list_jobs returned it.

        Returns:
            The job's id and status; while its tool is ending, the status is still running.
        """

        def work() -> dict[str, Any]:
            visitor = visitor_of(self.services, request, profile)
            job = self._view(job_id, visitor).job
            self.services.cancel(job.id, visitor)
            return _record(self._view(job.id, visitor).job)

        return _told(work)

    def resume_job(self, request: gr.Request, profile: Profile, job_id: str) -> dict[str, Any]:
        """Goes on with a job that was paused or cancelled, or has failed; its finished files are kept.

        Args:
            job_id: as start_job or list_jobs returned it.

        Returns:
            The job's id and status.
        """

        def work() -> dict[str, Any]:
            visitor = visitor_of(self.services, request, profile)
            job = self._view(job_id, visitor).job
            self.services.retry(job.id, visitor)
            return _record(self._view(job.id, visitor).job)

        return _told(work)

    def list_results(self, request: gr.Request, profile: Profile, job_id: str) -> list[dict[str, Any]]:
        """Lists the finished files of a job.

        Args:
            job_id: as start_job or list_jobs returned it.

        Returns:
            For each file its name, kind, size in bytes, sha256, quant type, bits per weight, figures if it was
            measured, and `link`: its address, relative to this page where it starts with no scheme.
        """

        def work() -> list[dict[str, Any]]:
            view = self._view(job_id, visitor_of(self.services, request, profile))
            view = self.services.detailed(view, log=False)
            repo = repo_address(view.job)
            return [dict(row) | {"link": file_link(view.job.id, row["file"], repo=repo)} for row in view.files]

        return _told(work)

    def _view(self, job_id: str, visitor: Visitor) -> JobView:
        wanted = _text("job_id", job_id)
        for view in self.services.views(visitor):
            if view.job.id == wanted:
                return view
        raise UsageError("there is no job {wanted}: list_jobs returns ids.", wanted=repr(wanted))


def _told(work: Callable[[], Answer]) -> Answer:
    """Our errors reach the caller as one sentence."""
    try:
        return work()
    except GgufyError as error:
        raise gr.Error(told_to_programs(error.message), print_exception=False) from error


def _text(name: str, value: object) -> str:
    """A caller's text; nothing for null. Raises UsageError for anything else."""
    if value is not None and not isinstance(value, str):
        raise UsageError("{name} must be text: put it between quotes.", name=name)
    if len(text := (value or "").strip()) > MOST_CHARS:
        raise UsageError(
            "{name} has {count} characters: use at most {most}.", name=name, count=len(text), most=MOST_CHARS
        )
    return text


def _source(value: object) -> str:
    if not (text := _text("source", value)):
        raise UsageError("no source given: enter demo, a path, or owner/repo:file.pth.")
    return text


def _list(name: str, value: object) -> str:
    """A caller's list, or its words in one text, as the latter."""
    if isinstance(value, list | tuple):
        return _text(name, ",".join(_text(name, word) for word in value))
    return _text(name, value)


def _flag(name: str, value: object, default: bool) -> bool:
    if value is not None and not isinstance(value, bool):
        raise UsageError("{name} must be true or false.", name=name)
    return default if value is None else value


def _shown_source(source: Source) -> str:
    """As its job's card shows it: no folder of this machine."""
    name = PurePath(source.path).name
    return f"{source.model_id}:{name}" if source.model_id else name


def _record(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "status": job.status.value,
        "error": told_to_programs(job.error),
        "repo_id": job.request.repo_id,
    }


def _progress(view: JobView) -> dict[str, Any]:
    snapshot = view.snapshot
    running = snapshot.current if snapshot else None
    made = sum(row["size"] for row in view.files)
    return _record(view.job) | {
        "done": snapshot.done if snapshot else len(view.files),
        "total": len(snapshot.steps) if snapshot else len(view.files),
        "step": running.step.label if running else "",
        "fraction": round(running.fraction, 3) if running else 0.0,
        "seconds_left": round(snapshot.eta_s) if snapshot and snapshot.eta_s is not None else None,
        "files": len(view.files),
        "size": human_size(made),
    }

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

from ggufy.core.errors import GgufyError, UsageError
from ggufy.core.job import Job
from ggufy.core.source import Source
from ggufy.core.words import human_size
from ggufy.jobs.options import BY_NAME, OPTIONS, Kind, Option
from ggufy.jobs.values import read_options, read_source, read_text
from ggufy.service.access import Visitor
from ggufy.service.service import JobView, Services
from ggufy.ui.file_rows import file_link, repo_address
from ggufy.ui.messages import told_to_programs
from ggufy.ui.visitors import Profile, visitor_of

Answer = TypeVar("Answer")
#: The first have had these places from the beginning, for calls that name no parameters.
_FIRST = ("quant_types", "imatrix", "evaluate", "name", "targets", "mode", "keep_card")
_IN_ORDER = (*(BY_NAME[name] for name in _FIRST), *(option for option in OPTIONS if option.name not in _FIRST))
_TYPES = {Kind.TEXT: str, Kind.FLAG: bool, Kind.NUMBER: int, Kind.REAL: float, Kind.WORDS: str, Kind.PLACES: str}
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
            preview = self.services.look(read_source(source), visitor_of(self.services, request, profile))
            quants = preview.sizes.quants if preview.sizes else {}
            facts = preview.report.facts()
            facts["problem"] = told_to_programs(facts["problem"])
            facts["file"] = facts.pop("path")  # gradio_client would take a `path` for a file to fetch
            return facts | {"quants": {name: {"size": q.size, "bpw": round(q.bpw, 3)} for name, q in quants.items()}}

        return _told(work)

    def start_job(
        self, request: gr.Request, profile: Profile, source: str, *values: Any, **named: Any
    ) -> dict[str, Any]:
        """Starts making GGUF quants of a model; the job goes on by itself, also after restarts.

        Args:
            source: demo, owner/repo:file.pth on the Hugging Face Hub, or the address of a .pth or .gguf.

        Returns:
            The job's id and status.
        """

        def work() -> dict[str, Any]:
            given = dict(zip((option.name for option in _IN_ORDER), values, strict=False)) | named
            if isinstance(imatrix := given.get("imatrix"), bool):
                given["imatrix"] = "auto" if imatrix else "none"
            options = read_options(source, given)
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

        return self._act(self.services.cancel, job_id, visitor_of(self.services, request, profile))

    def resume_job(self, request: gr.Request, profile: Profile, job_id: str) -> dict[str, Any]:
        """Goes on with a job that was paused or cancelled, or has failed; its finished files are kept.

        Args:
            job_id: as start_job or list_jobs returned it.

        Returns:
            The job's id and status.
        """

        return self._act(self.services.retry, job_id, visitor_of(self.services, request, profile))

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

    def _act(self, change: Callable[[str, Visitor], None], job_id: str, visitor: Visitor) -> dict[str, Any]:
        """What becomes of a job."""

        def work() -> dict[str, Any]:
            job = self._view(job_id, visitor).job
            change(job.id, visitor)
            return _record(self._view(job.id, visitor).job)

        return _told(work)

    def _view(self, job_id: str, visitor: Visitor) -> JobView:
        wanted = read_text("job_id", job_id)
        for view in self.services.views(visitor):
            if view.job.id == wanted:
                return view
        raise UsageError("there is no job {wanted}: list_jobs returns ids.", wanted=repr(wanted))


def _take_options(function: Any) -> None:
    """Gives a function that ends in `*values, **named` the options of a job as parameters, for gradio to find."""
    signature = inspect.signature(function, eval_str=True)
    given = [one for one in signature.parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    given += [
        inspect.Parameter(option.name, given[-1].kind, default=option.default or None, annotation=_type_of(option))
        for option in _IN_ORDER
    ]
    function.__signature__ = signature.replace(parameters=given)
    function.__annotations__ = {one.name: one.annotation for one in given[1:]} | {
        "return": signature.return_annotation
    }
    lines = "\n".join(f"            {option.name}: {_explain(option)}" for option in _IN_ORDER)
    function.__doc__ = function.__doc__.replace("\n\n        Returns:", f"\n{lines}\n\n        Returns:")


def _type_of(option: Option) -> Any:
    """`imatrix` was at first whether to make one."""
    return bool | str if option.name == "imatrix" else _TYPES[option.kind]


def _explain(option: Option) -> str:
    text = option.help.replace("%(default)s", str(option.default))
    return f"{text[0].upper()}{text[1:]}" + (f"; one of {', '.join(option.choices)}." if option.choices else ".")


_take_options(_Api.start_job)


def _told(work: Callable[[], Answer]) -> Answer:
    """Our errors reach the caller as one sentence."""
    try:
        return work()
    except GgufyError as error:
        raise gr.Error(told_to_programs(error.message), print_exception=False) from error


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

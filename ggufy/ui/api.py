"""What programs may call: `gradio_client` endpoints, and the same functions as tools for models (MCP).

Their names, types and docstrings are what callers see. They do what the page does, with the same checks; on a Space,
starting and stopping needs the token of an owner: `Client("owner/space", token=...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr

from ggufy.catalog import parse_types
from ggufy.errors import GgufyError, UsageError
from ggufy.files import human_size
from ggufy.intake import Wish
from ggufy.job import Job
from ggufy.quantize.target import parse_words
from ggufy.service import JobView, Services
from ggufy.ui.views import file_link, repo_address
from ggufy.ui.visitors import Profile, visitor_of

Answer = TypeVar("Answer")
NAMES = ("inspect_source", "start_job", "job_status", "cancel_job", "list_results")


def add_api(services: Services) -> None:
    """Adds the endpoints to the Blocks that is being built."""
    calls = _Api(services)
    for name in NAMES:
        gr.api(getattr(calls, name), api_name=name, concurrency_limit=4)


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
            preview = self.services.look(source.strip(), visitor_of(self.services, request, profile))
            quants = preview.sizes.quants if preview.sizes else {}
            facts = preview.report.facts()
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
            quant_types: all, recommended, none, or names separated by commas, such as Q4_K_M,Q8_0; empty is
                recommended, or none if there are targets.
            imatrix: whether to make an importance matrix first, which small quants need.
            evaluate: whether to measure perplexity, KL divergence and speed of every quant.
            name: name of the model in file names; empty takes the source's.
            targets: sizes to order, separated by commas: 1.2GB, 900MiB, 3.275bpw (bits per weight), mem4GB (memory).
            mode: how much is measured for these: fast, standard or thorough; empty is standard.
            keep_card: whether only model files are published, beside a README.md of the repo's own.

        Returns:
            The job's id and status.
        """

        def work() -> dict[str, Any]:
            words = parse_words(targets)
            wish = Wish(
                source=source.strip(),
                quant_types=parse_types(quant_types or ("none" if words else "recommended")),
                targets=words,
                mode=mode.strip(),
                imatrix="auto" if imatrix else "none",
                evaluate=evaluate,
                name=name.strip() or None,
                keep_card=keep_card is True,
            )
            return _record(self.services.submit(wish, visitor_of(self.services, request, profile)))

        return _told(work)

    def job_status(self, job_id: str) -> dict[str, Any]:
        """Tells how far a job is.

        Args:
            job_id: as start_job returned it.

        Returns:
            Status (queued, running, done, failed, cancelled, paused), error, steps done and in all, what runs, and
            seconds left if they are known.
        """
        return _told(lambda: _progress(self._view(job_id)))

    def cancel_job(self, request: gr.Request, profile: Profile, job_id: str) -> dict[str, Any]:
        """Ends a job; its finished files stay.

        Args:
            job_id: as start_job returned it.

        Returns:
            The job's id and status; while its tool is ending, the status is still running.
        """

        def work() -> dict[str, Any]:
            self._view(job_id)
            self.services.cancel(job_id, visitor_of(self.services, request, profile))
            return _record(self._view(job_id).job)

        return _told(work)

    def list_results(self, job_id: str) -> list[dict[str, Any]]:
        """Lists the finished files of a job.

        Args:
            job_id: as start_job returned it.

        Returns:
            For each file its name, kind, size in bytes, sha256, quant type, bits per weight, figures if it was
            measured, and `link`: its address, relative to this page where it starts with no scheme.
        """

        def work() -> list[dict[str, Any]]:
            view = self._view(job_id)
            repo = repo_address(view.job)
            return [dict(row) | {"link": file_link(job_id, row["file"], repo=repo)} for row in view.files]

        return _told(work)

    def _view(self, job_id: str) -> JobView:
        for view in self.services.views():
            if view.job.id == job_id:
                return view
        raise UsageError(f"there is no job {job_id!r}: start_job returns ids.")


def _told(work: Callable[[], Answer]) -> Answer:
    """Our errors reach the caller as one sentence."""
    try:
        return work()
    except GgufyError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _record(job: Job) -> dict[str, Any]:
    return {"job_id": job.id, "status": job.status.value, "error": job.error, "repo_id": job.request.repo_id}


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

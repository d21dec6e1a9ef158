"""Uploading while quantizing: the demo, all 29 types, to a hub whose line is as slow as the quantizing.

Wall time against the longer of computing alone and uploading alone; 1.0 would be perfect overlap.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ggufy.core.catalog import parse_types
from ggufy.core.job import Status
from ggufy.core.names import RepoKind
from ggufy.hub.protocol import Content
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.llama.install import Llama
from ggufy.records.run_state import RunState
from ggufy.system.clock import never
from ggufy.system.settings import Settings
from tests.folder_hub import LocalHub, connected


class SlowHub(LocalHub):
    """A hub behind a line of so many bytes a second; what goes through is counted."""

    def __init__(self, root: Path, bytes_a_second: float):
        super().__init__(root)
        self.bytes_a_second = bytes_a_second
        self.sent = 0

    def commit(
        self,
        repo_id: str,
        *,
        kind: RepoKind,
        message: str,
        add: Mapping[str, Content] | None = None,
        delete: Collection[str] = (),
        parent: str | None = None,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] = never,
        urgent: bool = False,
    ) -> str:
        size = sum(one.stat().st_size for one in (add or {}).values() if isinstance(one, Path))
        self.sent += size
        time.sleep(size / self.bytes_a_second)
        return super().commit(
            repo_id, kind=kind, message=message, add=add, delete=delete, parent=parent, progress=progress,
            stopped=stopped, urgent=urgent,
        )  # fmt: skip


def bench(folder: Path, llama: Llama, settings: Settings) -> list[str]:
    """Lines for the report."""
    computing, size = _run(folder / "alone", llama, settings, hub=None)
    hub = SlowHub(folder / "hub", size / computing)
    wall, _ = _run(folder / "both", llama, settings, hub=hub)
    uploading = hub.sent / hub.bytes_a_second
    ratio = wall / max(computing, uploading)
    return [
        "upload beside quantizing, the demo's 29 types over a line as slow as the quantizing",
        f"  computing alone {computing:.0f} s, uploading alone {uploading:.0f} s, both {wall:.0f} s",
        f"  ratio           {ratio:.2f}   (bar: at most 1.10)",
    ]


def _run(out: Path, llama: Llama, settings: Settings, *, hub: SlowHub | None) -> tuple[float, int]:
    """(seconds, bytes of the products) of one run."""
    own = replace(settings, out=out)
    job_options = JobOptions(source="demo", quant_types=parse_types("all"), owner="bench" if hub else "")
    job = make_job(job_options, own)
    with connected(out, hub, "bench") if hub else contextlib.nullcontext() as workspace:
        runner = Runner(settings=own, llama=llama, workspace=workspace)
        started = time.perf_counter()
        ended = runner.run(job, RunState())
        seconds = time.perf_counter() - started
    assert ended.status is Status.DONE, ended.error
    return seconds, sum(artifact.size for artifact in ended.artifacts)

"""How good the time that is promised is: a whole job's, as said after its first two quants, against what it took."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

from ggufy.core.catalog import parse_types
from ggufy.core.job import Job, Status
from ggufy.core.progress import DONE
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.llama.install import Llama
from ggufy.records.run_state import RunState
from ggufy.system.settings import Settings


def bench(folder: Path, llama: Llama, settings: Settings) -> list[str]:
    """Lines for the report: the demo, and the 0.9 GB model that the conversion bench has left with 2 threads."""
    lines = ["the forecast of a whole job after its first two quants (bar: within 25 %)"]
    sources = {
        "the demo, all 29 types, measured": JobOptions(source="demo", quant_types=parse_types("all"), evaluate=True),
        "0.96 GB F16, 12 types, no imatrix": JobOptions(
            source=str(folder / "ours.gguf"),
            quant_types=parse_types("Q8_0,Q6_K,Q5_K_M,Q5_1,Q4_K_M,Q4_0,Q3_K_M,Q3_K_S,Q2_K,IQ4_XS,IQ4_NL,IQ3_S"),
            imatrix="none",
            name="forecast",
        ),
    }
    for name, options in sources.items():
        threads = None if options.source == "demo" else 2
        said, took = _run(options, folder / "forecast", llama, settings, threads)
        lines.append(f"  {name}: said {said:.0f} s, took {took:.0f} s, off by {abs(said / took - 1):.0%}")
    return lines


def _run(
    options: JobOptions, folder: Path, llama: Llama, settings: Settings, threads: int | None
) -> tuple[float, float]:
    """Seconds that were promised and seconds that it took."""
    settings = replace(settings, out=folder)
    live, ended = RunState(), []
    job, runner = make_job(options, settings), Runner(settings=settings, llama=llama, threads=threads)

    def run() -> None:
        ended.append(runner.run(job, live))

    thread = threading.Thread(target=run)
    thread.start()
    said = 0.0
    while thread.is_alive():
        time.sleep(0.05)
        now = live.progress.snapshot()
        if not said and sum(s.state == DONE for s in now.steps if s.step.kind == "quantize") >= 2 and now.eta_s:
            said = now.elapsed_s + now.eta_s
    took, done = live.progress.snapshot().elapsed_s, ended[0]
    assert isinstance(done, Job) and done.status is Status.DONE, done
    return said, took

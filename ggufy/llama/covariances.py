"""Covariances of what the matrices of a base read, and its imatrix, from one pass of llama.cpp over a text.

A process of its own does it (ggufy.llama.covariance_child): its memory goes when it ends, it can be stopped at any
moment, and what was summed up until then is kept in segments, GGUF files `<work>/<chunks read>.gguf`. How often a run
was stopped, and with how many threads it ran, changes no bit of what it leaves.

What does not fit into the memory that it may take is collected in several passes over the text, some layers in each.
Bits do depend on the kind of CPU, as those of everything that llama.cpp computes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ggufy.core.errors import ToolError
from ggufy.formats.covariance import CovarianceFacts
from ggufy.llama import build, tools
from ggufy.llama.pin import PINNED
from ggufy.system.files import write_text
from ggufy.system.python_child import finding_ggufy, module_command

CHILD = "ggufy.llama.covariance_child"
SECONDS_A_SEGMENT = 120.0  # what a kill costs at most, or twenty times what saving takes
_TASK = "task.json"
_DONE = re.compile(r"^chunk (\d+) of (\d+)$", re.MULTILINE)
_PLAN = re.compile(r"^(\d+) inputs, (\d+) bytes, (\d+) passes over (\d+) chunks$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class CovarianceTask:
    """What is to be collected."""

    llama: Path  # folder of the pinned llama.cpp's programs
    base: Path  # the unquantized GGUF
    text: Path
    out: Path  # the covariance file
    imatrix: Path  # the imatrix of the same text
    work: Path  # folder for segments; empty when all is done
    wanted: tuple[str, ...]  # tensors that will be quantized; others get no covariance
    facts: CovarianceFacts  # of the chunks, as many as are read at most; 0: the whole text
    memory: int  # bytes that the sums of one pass may take
    threads: int
    segment_s: float = SECONDS_A_SEGMENT


@dataclass(frozen=True)
class CovariancePlan:
    """What the child says before it begins."""

    inputs: int  # different ones, each with a covariance
    size: int  # bytes of the covariance file
    passes: int
    chunks: int


def collect_covariances(
    task: CovarianceTask,
    run: tools.ToolRun,
    *,
    report: Callable[[float], None],
    announce: Callable[[CovariancePlan], None] = lambda plan: None,
) -> None:
    """Leaves `task.out` and `task.imatrix`, each whole or not at all, or goes on where an earlier run was stopped.

    Raises CalibrationError for a text of less than two chunks, ToolError (another llama.cpp than the pinned one, a
    model that it cannot load, no memory), Cancelled.
    """
    if not build.same_commit(task.facts.commit, PINNED.commit):
        raise ToolError(
            "covariances need the llama.cpp that ggufy builds, {pinned}, and this is {commit}: unset GGUFY_LLAMA_DIR.",
            pinned=PINNED.commit,
            commit=task.facts.commit,
        )
    file = task.work / _TASK
    write_text(file, json.dumps(asdict(task), default=str, indent=2) + "\n")
    environment = {**finding_ggufy(run.environment), "OPENBLAS_NUM_THREADS": "1"}
    follow = _Follower(report, announce)
    try:
        tools.run_tool(module_command(CHILD, str(file.absolute())), replace(run, environment=environment), follow)
    except ToolError as error:
        if short := tools.short_text(error.output, task.text.name):
            raise short from error
        raise
    file.unlink()


def read_task(file: Path) -> CovarianceTask:
    """What `collect_covariances` wrote for the child."""
    values = json.loads(file.read_text(encoding="utf-8"))
    paths = {key: Path(values[key]) for key in ("llama", "base", "text", "out", "imatrix", "work")}
    facts = CovarianceFacts(**values["facts"])
    return CovarianceTask(**{**values, **paths, "wanted": tuple(values["wanted"]), "facts": facts})


class _Follower:
    """Reads what the child prints, as it comes."""

    def __init__(self, report: Callable[[float], None], announce: Callable[[CovariancePlan], None]):
        self._report, self._announce, self._text = report, announce, ""

    def __call__(self, text: str) -> None:
        lines, end, self._text = (self._text + text).rpartition("\n")
        if match := _PLAN.search(lines):
            self._announce(CovariancePlan(*map(int, match.groups())))
        if done := _DONE.findall(lines + end):
            self._report(int(done[-1][0]) / int(done[-1][1]))

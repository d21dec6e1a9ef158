"""What a step may use: the request, the folders, the tools, and how to report and to be stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ggufy import throttle
from ggufy.errors import Cancelled
from ggufy.evaluation import Evaluation
from ggufy.files import sha256
from ggufy.job import Artifact, Request
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.plan import SOURCE_PRODUCT, Step
from ggufy.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Context:
    """One job's surroundings."""

    request: Request
    folder: Path  # where the products go
    logs: Path  # one log file a step
    work: Path  # what is worth keeping of a step that is not finished
    settings: Settings
    llama: Llama
    limit: Callable[[], int]  # threads that the work may use now
    share: Callable[[], float] = lambda: 1.0  # part of the time in which it may work
    report: Callable[[Step, float], None]  # fraction of the step that is done
    stopped: Callable[[], bool]  # True: end now
    keep_open: tuple[int, ...] = ()  # the folder's lock, inherited by the tools
    keep: Callable[[Path], None] = lambda path: None  # saves an unfinished step's file beyond this machine
    restore: Callable[[Path], None] = lambda folder: None  # brings such files back
    digests: dict[Path, str] = field(default_factory=dict)  # sha256 of products, where it is known
    measured: Callable[[Evaluation], None] = lambda evaluation: None  # takes the figures of a quant

    def path(self, product: str) -> Path:
        """Where a product is, or will be."""
        return self.source if product == SOURCE_PRODUCT else self.folder / product

    @property
    def threads(self) -> int:
        """Threads for a tool that starts now."""
        return self.limit()

    @property
    def source(self) -> Path:
        """The source on this machine."""
        source = self.request.source
        if not source.remote:
            return Path(source.path)
        return self.settings.cache / "sources" / source.key[:16] / Path(source.path).name

    def tool_run(self, step: Step, cwd: Path | None = None) -> ToolRun:
        """How a tool runs for this step: built environment, own log, ends when the job is stopped."""
        self.logs.mkdir(parents=True, exist_ok=True)
        return ToolRun(
            environment=throttle.child_environment(threads=self.threads, home=self.settings.home),
            cwd=cwd or self.folder,
            log=self.logs / f"{step.label.replace(' ', '-')}.log",
            stopped=self.stopped,
            keep_open=self.keep_open,
            limit=self.limit,
            share=self.share,
        )

    def check_stopped(self) -> None:
        """Raises Cancelled when the job was stopped; for loops of our own."""
        if self.stopped():
            raise Cancelled("the job was stopped.")


def artifact_of(path: Path) -> Artifact:
    """Name, size and digest of a finished product."""
    return Artifact(name=path.name, size=path.stat().st_size, sha256=sha256(path))

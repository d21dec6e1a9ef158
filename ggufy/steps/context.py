"""What a step may use: the request, the folders, the tools, and how to report and to be stopped."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol

from ggufy.core.errors import Cancelled
from ggufy.core.job import Artifact, FrontierPoint, Request
from ggufy.core.metrics import Evaluation
from ggufy.core.plan import COVARIANCES, SOURCE_PRODUCT, Step
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.system import resources
from ggufy.system.files import DOWNLOAD_SUFFIX, sha256
from ggufy.system.settings import Settings


class BackupStore(Protocol):
    """Keeps a job's unfinished work where a lost disk does not take it along; all but `wait_s` may raise HubError."""

    def names(self) -> Collection[str]:
        """What is there."""

    def put(self, path: Path, drop: Collection[str] = ()) -> None:
        """Saves a file under its name, and deletes others in the same commit."""

    def get(self, name: str, target: Path) -> None:
        """Brings a file here, whole or not at all."""

    def wait_s(self) -> float:
        """Seconds until there is a commit to spare, 0 if now."""


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
    waits: Callable[[str], None] = lambda reason: None  # takes what is waited for; empty: nothing any more
    keep_open: tuple[int, ...] = ()  # the folder's lock, inherited by the tools
    safe: BackupStore | None = None  # where unfinished work is kept beyond this machine; None: nowhere
    digests: dict[Path, str] = field(default_factory=dict)  # sha256 of products, where it is known
    measured: Callable[[Evaluation], None] = lambda evaluation: None  # takes the figures of a quant
    found: Callable[[tuple[FrontierPoint, ...]], None] = lambda points: None  # takes what sizes are worth
    streams: bool = False  # converting fetches the source piece by piece; see `can_stream`

    def __post_init__(self) -> None:
        if self.request.by_stranger:  # no step can use the token then, whichever it is
            object.__setattr__(self, "settings", self.settings.for_strangers())

    def path(self, product: str) -> Path:
        """Where a product is, or will be."""
        if product == COVARIANCES:
            return self.work / "covariances.json"
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

    @property
    def source_files(self) -> tuple[Path, ...]:
        """All files of the source on this machine, the one above last."""
        return tuple(self.source.with_name(PurePath(one.path).name) for one in self.request.source.each())

    def can_stream(self) -> bool:
        """True if the source need not come here as a whole. One that is here already, or half, is used as a file."""
        here = self.source
        downloaded = here.exists() or here.with_name(here.name + DOWNLOAD_SUFFIX).exists()
        return self.request.source.can_stream and not downloaded

    def tool_run(self, step: Step, cwd: Path | None = None) -> ToolRun:
        """How a tool runs for this step: built environment, own log, ends when the job is stopped."""
        self.logs.mkdir(parents=True, exist_ok=True)
        return ToolRun(
            environment=resources.child_environment(threads=self.threads, home=self.settings.home),
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

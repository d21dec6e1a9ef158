"""Live progress of a job: what runs, how far it is, when it will be done. Kept in memory, read as a snapshot.

The ETA starts from what the steps say themselves (`Step.seconds`) and is corrected, kind of step by kind of step, by
what the finished steps really took.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ggufy.core.job import Artifact
from ggufy.core.plan import Step, Upload, Workload

WAITING, RUNNING, DONE = "waiting", "running", "done"


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """One step as people see it."""

    step: Step
    state: str = WAITING  # waiting, running or done
    fraction: float = 0.0
    seconds: float = 0.0  # time it took, or has taken so far
    size: int = 0  # bytes of its product, when done
    found: bool = False  # its product was there before the run


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One job at one moment."""

    steps: tuple[StepProgress, ...] = ()
    eta_s: float | None = None  # seconds left, None when unknown
    elapsed_s: float = 0.0
    waiting: str = ""  # what the job waits for, in one sentence; empty while it goes on

    @property
    def current(self) -> StepProgress | None:
        running = [s for s in self.steps if s.state == RUNNING]
        return min(running, key=lambda s: isinstance(s.step, Upload), default=None)  # uploads go on beside other steps

    @property
    def done(self) -> int:
        return sum(s.state == DONE for s in self.steps)

    @property
    def found(self) -> int:
        """Steps whose products were there before the run."""
        return sum(s.found for s in self.steps)


class Progress:
    """Gets what the runner reports, from any thread, and gives snapshots to any other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._steps: dict[str, StepProgress] = {}
        self._load = Workload()
        self._waiting = ""
        self._waits_since = 0.0
        self._began = clock()
        self._step_began: dict[str, float] = {}  # by product, of steps that run or ran
        self._real: dict[str, float] = {}  # kind -> seconds measured in finished steps
        self._modelled: dict[str, float] = {}  # kind -> seconds the model gave for the same steps

    def planned(self, steps: tuple[Step, ...], due: tuple[Step, ...]) -> None:
        """The job's steps; those that are not due are done already."""
        with self._lock:
            left = {step.product: StepProgress(step=step) for step in due}  # made, or fetched instead
            there = {step.product: StepProgress(step=step, state=DONE, found=True) for step in steps}
            self._steps = there | left
            self._began = self._clock()

    def workload(self, load: Workload) -> None:
        with self._lock:
            self._load = load

    def waits(self, reason: str) -> None:
        """Says what the job waits for; an empty reason: it goes on. That time is none of what a step takes."""
        with self._lock:
            self._leave_out_waiting()
            self._waiting, self._waits_since = reason, self._clock()

    def started(self, step: Step) -> None:
        with self._lock:
            self._step_began[step.product] = self._clock()
        self._set(step, state=RUNNING, fraction=0.0)

    def fraction(self, step: Step, fraction: float) -> None:
        """How far the running step is, 0 to 1."""
        self._set(step, fraction=fraction)

    def finished(self, step: Step, artifact: Artifact | None) -> None:
        with self._lock:
            self._leave_out_waiting()
            seconds = self._seconds(step)
        self._set(step, state=DONE, fraction=1.0, seconds=seconds, size=artifact.size if artifact else 0)
        with self._lock:
            self._real[step.kind] = self._real.get(step.kind, 0.0) + seconds
            modelled = step.seconds(self._load)
            self._modelled[step.kind] = self._modelled.get(step.kind, 0.0) + modelled

    def snapshot(self) -> Snapshot:
        with self._lock:
            self._leave_out_waiting()
            steps = tuple(self._steps.values())
            now = self._clock()
            steps = tuple(replace(s, seconds=self._seconds(s.step)) if s.state == RUNNING else s for s in steps)
            eta = sum(self._left(s) for s in steps if s.state != DONE) if self._load.weights else None
            return Snapshot(steps=steps, eta_s=eta, elapsed_s=now - self._began, waiting=self._waiting)

    def _left(self, progress: StepProgress) -> float:
        kind = progress.step.kind
        if not self._modelled.get(kind):
            kind = progress.step.paced_by or kind
        scale = self._real[kind] / self._modelled[kind] if self._modelled.get(kind) else 1.0
        total = progress.step.seconds(self._load) * scale
        if progress.state == RUNNING:
            if progress.fraction > 0.2:
                total = progress.seconds / progress.fraction
            return max(0.0, total - progress.seconds)
        return total

    def _leave_out_waiting(self) -> None:
        """Steps that have begun are taken to have begun later by the time that was waited since this was last called;
        called with the lock held."""
        if not self._waiting:
            return
        now = self._clock()
        waited, self._waits_since = now - self._waits_since, now
        self._step_began = {product: min(now, began + waited) for product, began in self._step_began.items()}

    def _seconds(self, step: Step) -> float:
        now = self._clock()
        return now - self._step_began.get(step.product, now)

    def _set(self, step: Step, **changes: object) -> None:
        with self._lock:
            known = self._steps.get(step.product, StepProgress(step=step))
            self._steps[step.product] = replace(known, **changes)  # type: ignore[arg-type]

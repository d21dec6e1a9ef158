"""What people see in a terminal: live progress, the table of results, the list of jobs. Text in, text out."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import unicodedata
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO

from ggufy.core.errors import Cancelled
from ggufy.core.job import Job, Status
from ggufy.core.metrics import shown_latency, shown_speed
from ggufy.core.outputs import RWKVCPP
from ggufy.core.progress import Snapshot
from ggufy.core.words import human_size, human_time
from ggufy.system.settings import redraws
from ggufy.system.signals import told_to_end

_BAR = 20  # characters
_CLEAR_LINE = "\r\x1b[K"


class Line:
    """Progress of named things on stderr: one moving line on a terminal, a line for each of them elsewhere."""

    def __init__(self, *, shown: bool, verb: str = ""):
        """Nothing comes if not `shown`; `verb` stands before the names in lines that stay."""
        self.shown, self.moving, self.verb, self.last = shown, redraws(sys.stderr), verb, ""

    def __call__(self, what: str, fraction: float) -> None:
        if not self.shown:
            return
        if self.moving:
            sys.stderr.write(_CLEAR_LINE + fitted(f"{what}  {fraction:4.0%}", sys.stderr))
        elif what != self.last:
            sys.stderr.write(f"{self.verb}{what}\n")
        self.last = what
        sys.stderr.flush()

    def clear(self) -> None:
        """Takes the moving line away."""
        if self.shown and self.moving:
            sys.stderr.write(_CLEAR_LINE)


@contextlib.contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, and the work ends in good order: what was measured stays."""
    try:
        with told_to_end() as stopped:
            yield stopped
    except Cancelled:
        raise KeyboardInterrupt from None  # main() says how to go on


def progress_line(snapshot: Snapshot) -> str:
    """`[ 4/31] quantize Q4_K_M  ████████░░  42 %  3 s · about 1 min 20 s left`."""
    current = snapshot.current
    if snapshot.waiting:
        return f"[{snapshot.done + 1:2}/{len(snapshot.steps)}] waiting: {snapshot.waiting}"
    if current is None:
        return f"[{snapshot.done:2}/{len(snapshot.steps)}] getting ready"
    filled = round(current.fraction * _BAR)
    bar = "█" * filled + "░" * (_BAR - filled)
    line = f"[{snapshot.done + 1:2}/{len(snapshot.steps)}] {current.step.label:<17} {bar} {current.fraction:4.0%}"
    return f"{line}  {human_time(current.seconds)}{_left(snapshot)}"


def finished_lines(before: Snapshot, now: Snapshot) -> list[str]:
    """One line for every step that ended between two snapshots."""
    old = {s.step.product: s.state for s in before.steps}
    total = len(now.steps)
    ended = [s for s in now.steps if s.state == "done" and not s.found and old.get(s.step.product) != "done"]
    first = now.done - len(ended) + 1
    return [
        f"[{first + i:2}/{total}] {s.step.label:<17} {_size(s.size):>8}  in {human_time(s.seconds)}"
        for i, s in enumerate(ended)
    ]


def _size(size: int) -> str:
    return human_size(size) if size else ""


def _left(snapshot: Snapshot) -> str:
    return "" if snapshot.eta_s is None else f" · about {human_time(snapshot.eta_s)} left"


class LiveDisplay:
    """Draws the progress while a `with` block runs: one moving line on a terminal, a line per step elsewhere."""

    def __init__(self, take: Any, stream: TextIO | None = None, interval_s: float = 0.25):
        self.take = take  # () -> Snapshot
        self.stream = stream or sys.stderr
        self.interval_s = interval_s
        self.moving = redraws(self.stream)
        self._seen = Snapshot()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="ggufy-display", daemon=True)

    def __enter__(self) -> LiveDisplay:
        self._seen = self.take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._draw(last=True)

    def _loop(self) -> None:
        with contextlib.suppress(OSError):  # nobody can see it any more; the work goes on
            while not self._end.wait(self.interval_s):
                self._draw()

    def _draw(self, *, last: bool = False) -> None:
        now = self.take()
        clear = _CLEAR_LINE if self.moving else ""
        if not self._seen.steps and now.found:
            self.stream.write(f"{clear}{now.found} of {len(now.steps)} files are there already\n")
        for line in finished_lines(self._seen, now):
            self.stream.write(f"{clear}{line}{'' if last else _left(now)}\n")
        if now.waiting and now.waiting != self._seen.waiting and not self.moving:
            self.stream.write(f"waiting: {now.waiting}\n")
        self._seen = now
        if self.moving:
            self.stream.write(clear if last else clear + fitted(progress_line(now), self.stream))
        self.stream.flush()


def results_table(rows: list[dict[str, Any]]) -> str:
    """The table of a finished job: type, size, bits per weight, needs-imatrix, figures if measured, a note."""
    from ggufy.steps import STEPS  # noqa: PLC0415 - loads the Hub's client, which other commands do without

    body = []
    measured = any("evaluation" in row for row in rows)
    for row in rows:
        kind = row.get("type") or ("base" if "format" in row else STEPS[row["kind"]].product_name)
        needs = {True: "yes", False: "no"}.get(row.get("needs_imatrix", ""), "")
        bpw = f"{row['bpw']:.2f}" if "bpw" in row else ""
        body.append([kind, human_size(row["size"]), bpw, needs, *(_figures(row) if measured else []), _note(row)])
    figures = ["KLD", "PPL ratio", "t/s"] if measured else []
    shown = table(
        ["type", "size", "bpw", "needs imatrix", *figures, "note"], body, right=(1, 2, 4, 5, 6)[: 2 + len(figures)]
    )
    return "\n".join([shown, *_measured_how(rows)])


def _measured_how(rows: list[dict[str, Any]]) -> list[str]:
    """Over how much the figures are, and how fast what was at work."""
    found = [row["evaluation"] for row in rows if "evaluation" in row]
    if not found:
        return []
    counts = sorted({one["speed"]["threads"] for one in found if one["speed"]})
    threads = f"; t/s with {' or '.join(map(str, counts))} thread{'s' if counts[-1] > 1 else ''}" if counts else ""
    if any(one["speed"] and not shown_speed(one["speed"]) for one in found):
        threads += ", left out where the machine had other work"
    over = [f"{one['tokens']} tokens of {one['text']}" for one in (found[0], *found[0].get("others", ()))]
    return [f"figures over {' / '.join(over)}{threads}"]


def _figures(row: dict[str, Any]) -> list[str]:
    """KLD, perplexity over the base's, and tokens generated a second."""
    if "evaluation" not in row:
        return ["", "", ""]
    measured = row["evaluation"]
    over = [one["quality"] for one in (measured, *measured.get("others", ()))]
    klds, ratios = ([f"{one[name]:.{digits}f}" for one in over] for name, digits in (("kld", 4), ("ppl_ratio", 3)))
    return [" / ".join(klds), " / ".join(ratios), _speed(row)]


def _speed(row: dict[str, Any]) -> str:
    speed = row["evaluation"]["speed"]
    return shown_latency(speed) if row.get("format") == RWKVCPP else shown_speed(speed)


def _note(row: dict[str, Any]) -> str:
    if row.get("same_tensors_as"):
        return f"same tensors as {row['same_tensors_as']} on this model"
    if row.get("mostly"):
        return f"mostly {row['mostly']}: the widths of this model are no multiple of 256"
    if "type" not in row:
        return str(row["file"])
    from ggufy.steps.outputs import output_of_row  # noqa: PLC0415 - as above

    return output_of_row(row).advice(row["type"])


def job_lines(jobs: list[tuple[Job, int, int, bool]]) -> str:
    """The list of jobs: (record, files done, files in all, whether somebody works on it now)."""
    if not jobs:
        return "no jobs yet: python -m ggufy quantize SOURCE makes the first."
    body = []
    for job, done, total, held in jobs:
        note = job.error
        if job.status in (Status.RUNNING, Status.QUEUED) and not held:
            note = "interrupted: `python -m ggufy resume` continues it"
        body.append([job.id, job.status.value, f"{done}/{total}", job.updated[:16].replace("T", " "), note])
    return table(["job", "status", "files", "updated (UTC)", "note"], body, right=(2,))


def table(head: list[str], body: list[list[str]], right: tuple[int, ...] = ()) -> str:
    """Columns padded to their widest cell; wide (Chinese) characters count twice."""
    widths = [max(_width(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = []
    for row in [head, ["─" * w for w in widths], *body]:
        cells = [
            " " * (widths[i] - _width(cell)) + cell if i in right else cell + " " * (widths[i] - _width(cell))
            for i, cell in enumerate(row)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def fitted(line: str, stream: TextIO) -> str:
    """As much of a line as one row of the terminal takes: a line that wraps cannot be drawn over."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # no terminal
        return line
    widths = itertools.accumulate(_width(letter) for letter in line)
    return line[: sum(width < columns for width in widths)] if columns else line


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)

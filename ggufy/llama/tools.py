"""llama.cpp's tools: commands are built here, run here, and what they print is read here.

    imatrix_command(...) -> list[str]       build: a list of words, never a shell string
    run_tool(command, ...) -> str           run: in its own process group, cannot outlive us, output to a log
    ImatrixProgress, parse_dry_run, …       read: pure functions over text, tested on captured output

The tools write their progress in pieces of lines, so the readers are fed text as it comes.
"""

from __future__ import annotations

import codecs
import os
import re
import selectors
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ggufy.core.errors import CalibrationError, Cancelled, ToolError
from ggufy.core.messages import Message
from ggufy.system import child_process

CONTEXT = 512  # tokens a chunk, for imatrix and perplexity
_TENSOR_LINE = re.compile(r"\[\s*(\d+)/\s*(\d+)\]\s+(\S+)\s+- \[([\d, ]+)\]")
_DRY_TYPE = re.compile(r"type =\s+(\S+), size =\s+[\d.]+ MiB(?: ->\s+[\d.]+ MiB \((\S+)\))?")
_CHUNK = re.compile(r"\[(\d+)\]-?[\d.na]+,")
_LONGEST_LOG = 4 << 20  # bytes
_CHUNKS = re.compile(r"over (\d+) chunks")
_TOO_SHORT = re.compile(r"need at least (\d+) tokens.*?tokenizes to only (\d+) tokens", re.DOTALL)

_ERROR = re.compile(r"^[\d.]+ E |\b(?:error|failed)\b[\w ]*:|\bassert", re.IGNORECASE)
_QUIET = re.compile(r"^\s*(?:[\d.]+ [WID] |warning\b|-- )|- kv +\d+:", re.IGNORECASE)  # warnings, cmake, metadata
_LOAD_ERROR = re.compile(r"(?:error loading model|failed to quantize): (.+)")


# ---- build


def imatrix_command(
    tool: Path,
    *,
    model: Path,
    text: str,
    out: Path,
    threads: int,
    chunks: int = 0,
    first: int = 0,
    before: Path | None = None,
) -> list[str]:
    """llama-imatrix over at most `chunks` chunks (0 = all) of `text`, a file in the working folder.

    With `before`, the sums of an earlier run over the `first` chunks are added to. The embedding needs no data; the
    head gets its own with --process-output. One sequence a batch (-b 512) keeps memory low and the sums independent of
    how the text is cut.
    """
    command = [str(tool), "-m", str(model), "-f", text, "-o", str(out), "--process-output", "-b", str(CONTEXT)]
    command += ["-c", str(CONTEXT), "-t", str(threads)]
    if before is not None:
        command += ["--in-file", str(before), "--chunk", str(first)]
    return [*command, "--chunks", str(chunks)] if chunks else command


def dry_run_command(tool: Path, *, base: Path, quant_type: str, imatrix: str = "") -> list[str]:
    """llama-quantize --dry-run: which tensor would get which type. Reads no weights.

    Some recipes of transformers depend on whether there is an imatrix; RWKV's do not.
    """
    return [str(tool), "--dry-run", *(["--imatrix", imatrix] if imatrix else []), str(base), quant_type]


# ---- run


@dataclass(frozen=True, kw_only=True)
class ToolRun:
    """What every call of a tool shares."""

    environment: Mapping[str, str]  # whole environment of the child
    cwd: Path  # working folder
    log: Path | None = None  # where its output is kept
    stopped: Callable[[], bool] = lambda: False  # asked several times a second; True ends the tool
    keep_open: tuple[int, ...] = ()  # descriptors (locks) that the tool inherits
    limit: Callable[[], int] | None = None  # threads that may be used now, if that can change while it runs
    share: Callable[[], float] = lambda: 1.0  # part of the time in which it may work, 0.1 to 1
    watch: Callable[[int], None] | None = None  # gets its process id several times a second


def _obey(process: subprocess.Popen[bytes], run: ToolRun, obeyed: int) -> int:
    """Keeps a running tool to the thread limit of now; `obeyed` is the one that it is kept to already."""
    limit = run.limit() if run.limit else obeyed
    if limit != obeyed:
        child_process.keep_to_cpus(process, limit)
    return limit


def run_tool(command: list[str], run: ToolRun, feed: Callable[[str], None] | None = None) -> str:
    """Runs a tool to its end; returns what it printed, at most the last 2 MB; `feed` gets the text as it comes.

    Raises ToolError with the tool's own reason when it fails, Cancelled when `run.stopped()` turned true.
    """
    process = child_process.start(
        command,
        cwd=run.cwd,
        env=run.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=run.keep_open,
    )
    try:
        text = _follow(process, run, feed)
        code = process.wait()
    finally:
        child_process.stop(process)
    if code != 0:
        raise ToolError(
            "{tool} failed ({code}): {reason}",
            text,
            tool=Path(command[0]).name,
            code=_code_text(code),
            reason=failure_reason(text),
        )
    return text


def _opened(log: Path) -> BinaryIO:
    """Goes on with a log; one that has grown long begins anew, since steps are repeated and nobody deletes it."""
    long = log.exists() and log.stat().st_size > _LONGEST_LOG
    return log.open("wb" if long else "ab")


def _follow(process: subprocess.Popen[bytes], run: ToolRun, feed: Callable[[str], None] | None) -> str:
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces: list[str] = []
    kept = 0
    log = _opened(run.log) if run.log else None
    limit = run.limit() if run.limit else 0
    duty = child_process.Duty(process)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if run.stopped():
                    raise Cancelled("the job was stopped.")
                limit = _obey(process, run, limit)
                duty.keep(run.share())
                if run.watch:
                    run.watch(process.pid)
                if not selector.select(timeout=0.2 if run.share() == 1 else 0.05):
                    continue
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    return "".join(pieces)
                if log:
                    log.write(data)
                    log.flush()
                text = decoder.decode(data)
                pieces.append(text)
                kept += len(text)
                while kept > 2_000_000 and len(pieces) > 1:
                    kept -= len(pieces.pop(0))
                if feed:
                    feed(text)
    finally:
        if log:
            log.close()
        process.stdout.close()


def failure_reason(text: str) -> str:
    """The line of a tool's output that says why it failed, without its prefixes: the first error that it names, since
    what follows it only says what could not be done then."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip() and not _QUIET.search(line)]
    errors = [line for line in lines if _ERROR.search(line)]
    told = [line for line in lines if re.search(r"error|fail|invalid|unable|cannot|missing", line, re.IGNORECASE)]
    if not lines:
        return Message("it printed nothing")
    reason = errors[0] if errors else (told or lines)[-1]
    return re.sub(r"^[\d.]+ [IWE] ", "", reason)[:300]


def load_command(tool: Path, *, model: Path, text: Path) -> list[str]:
    """llama-perplexity over a text that is too short: it loads the model, computes nothing, and says so
    (`parse_too_short`)."""
    return [str(tool), "-m", str(model), "-f", str(text), "-c", str(CONTEXT), "-t", "1", "--no-warmup"]


def parse_load_error(text: str) -> str:
    """Why llama.cpp cannot load a model; empty if it did not say."""
    match = _LOAD_ERROR.search(text)
    return match[1].strip() if match else ""


def _code_text(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        if name == "SIGKILL":
            return Message("ended by {signal}, probably out of memory", signal=name)
        return Message("ended by {signal}", signal=name)
    return Message("exit code {code}", code=code)


# ---- read


class ImatrixProgress:
    """Follows llama-imatrix: finished chunks, from `over N chunks` and `[k]ppl,`."""

    finished = _CHUNK  # a pattern; the one group of it that was found is the chunk's number

    def __init__(self, report: Callable[[float], None]):
        self.report = report
        self.chunks = 0
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text += text
        if not self.chunks:
            self.chunks = parse_chunks(self.text) or 0
        end = 0
        for match in self.finished.finditer(self.text):
            end = match.end()
            if self.chunks:
                self.report(min(1.0, int(match[match.lastindex or 0]) / self.chunks))
        self.text = self.text[end:][-4096:]


def parse_dry_run(text: str) -> dict[str, str]:
    """`llama-quantize --dry-run` output -> ggml type (upper case) of every tensor, in the tool's order.

    Raises ToolError when the output has no tensor lines or fewer than it announces.
    """
    types: dict[str, str] = {}
    total = 0
    for line in text.splitlines():
        tensor, kind = _TENSOR_LINE.search(line), _DRY_TYPE.search(line)
        if tensor and kind:
            total = int(tensor[2])
            types[tensor[3]] = (kind[2] or kind[1]).upper()
    if not types or len(types) != total:
        raise ToolError(
            "llama-quantize --dry-run listed {found} of {total} tensors: {reason}",
            found=len(types),
            total=total,
            reason=failure_reason(text),
        )
    return types


def parse_chunks(text: str) -> int | None:
    """The number of chunks that llama-imatrix or llama-perplexity announces before it computes."""
    match = _CHUNKS.search(text)
    return int(match[1]) if match else None


def parse_too_short(text: str) -> tuple[int, int] | None:
    """What a tool printed when its text is too short -> (tokens needed, tokens there); None if it did not say so."""
    match = _TOO_SHORT.search(text)
    return (int(match[1]), int(match[2])) if match else None


def short_text(text: str, name: str) -> CalibrationError | None:
    """What to raise after a tool printed that its calibration text, of this name, is too short; None if it did not."""
    if (found := parse_too_short(text)) is None:
        return None
    return CalibrationError(
        "the calibration text {name} has {found} tokens, at least {needed} are needed: give a longer one "
        "with --calibration (10 to 20 thousand tokens are good).",
        name=name,
        found=found[1],
        needed=found[0],
    )


def parse_quantize_help(text: str) -> dict[str, int]:
    """`llama-quantize --help` -> name and ftype number of every type it knows (aliases left out)."""
    return {m[2]: int(m[1]) for m in re.finditer(r"^\s*(\d+)\s+or\s+(\w+)\s*:(?! alias)", text, re.MULTILINE)}

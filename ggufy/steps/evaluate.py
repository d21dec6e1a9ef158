"""Measures quants against their base GGUF: quality with llama-perplexity, speed with llama-bench.

Every result is a small file of its own, named after the digests of what was measured, and appears whole or not at all;
a run that was stopped goes on with the quants that have none:

    <folder>/<quant>-<16 hex digits>.json    an Evaluation
    <folder>/<16 hex digits>.logits          the base's predictions, while quants are measured; up to some GB
    <folder>/.lock                           held by the run that measures

The predictions are written once for all quants, as many chunks as the disk budget and the free space allow, and
removed in the end. If the program was killed, the next run takes them over if they are whole and its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggufy.core.errors import CalibrationError, DiskError, SourceError, ToolError
from ggufy.core.messages import Message
from ggufy.core.metrics import DEFAULT_CHUNKS, Evaluation, Quality, Speed, from_json, to_json
from ggufy.core.words import human_size
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.llama import perplexity, tools
from ggufy.llama.install import Llama
from ggufy.steps.evaluation_text import LEAST_CHUNKS, check_text, fitting_chunks, most_chunks
from ggufy.steps.same_model import check_models, vocab_size
from ggufy.system.child_process import CpuWait
from ggufy.system.files import PART_SUFFIX, free_bytes, partial, sha256, write_text
from ggufy.system.locks import lock
from ggufy.system.resources import asked_share

logger = logging.getLogger(__name__)

FOLDER = "evaluation"  # in a job's work folder
DISK_BUDGET = 4_000_000_000  # bytes for the base's predictions; 119 chunks of the World vocabulary
SPARE = 100_000_000  # bytes of the disk that are left alone
_WAIT_S = 2.0  # for the tool of a run that was just killed
LOGITS_SUFFIX = ".logits"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What one call of `evaluate` shares."""

    text: Path  # UTF-8, held out
    folder: Path  # for results and the base's predictions
    llama: Llama
    environment: Mapping[str, str]  # of the tools
    threads: int
    chunks: int = DEFAULT_CHUNKS  # of 512 tokens, at most; 0 = the whole text
    speed: bool = True
    budget: int = DISK_BUDGET
    calibrations: Sequence[Path] = ()  # texts that the quants' imatrix was made from
    digests: Mapping[Path, str] = field(default_factory=dict)  # sha256 of files, where it is known
    keep_logits: bool = False  # for the next call; otherwise they are removed in the end
    all_chunks: bool = False  # too little room is an error: figures of fewer chunks compare with no others
    log: Path | None = None
    limit: Callable[[], int] | None = None  # threads that the tools may use now, if that can change
    share: Callable[[], float] = lambda: 1.0  # part of the time in which they may work
    report: Callable[[str, float], None] = lambda what, fraction: None  # file name, fraction done
    stopped: Callable[[], bool] = lambda: False
    waits: Callable[[str], None] = lambda reason: None  # what is waited for, empty: nothing more

    def digest(self, path: Path) -> str:
        return self.digests.get(path.absolute()) or sha256(path, stopped=self.stopped)

    def tool_run(self, keep_open: int) -> tools.ToolRun:
        return tools.ToolRun(
            environment=self.environment,
            cwd=self.folder,
            log=self.log,
            stopped=self.stopped,
            keep_open=(keep_open,),
            limit=self.limit,
            share=self.share,
        )


def evaluate(base: Path, quants: Sequence[Path], config: EvaluationConfig) -> list[Evaluation]:
    """Measures each quant, in the order given; what is measured already is read, not measured again.

    Raises SourceError for a file that is missing, broken, or no quant of this base; CalibrationError for a text that
    is too short or was used for calibration; DiskError when the base's predictions do not fit; ToolError; BusyError
    while another run measures in the same folder; Cancelled.
    """
    head = check_models(base, quants)
    check_text(config.text, config.calibrations)
    message = Message(
        "another evaluation runs in {folder}: wait for it to end, or give another {OUT}.", folder=config.folder
    )
    with lock(config.folder / ".lock", _WAIT_S, message) as descriptor:
        for left in config.folder.glob(f"*{PART_SUFFIX}"):
            left.unlink()
        return _Session(base.absolute(), head, config, config.tool_run(descriptor)).measure_all(quants)


class _Session:
    """One run over several quants of one base."""

    def __init__(self, base: Path, head: GgufHead, config: EvaluationConfig, run: tools.ToolRun):
        self.base, self.head, self.config, self.run = base, head, config, run
        self.vocab = vocab_size(head)
        self.base_digest, self.text_digest = config.digest(base), config.digest(config.text)
        self.tool = config.llama.tool("llama-perplexity")

    def measure_all(self, quants: Sequence[Path]) -> list[Evaluation]:
        digests = {path: self.config.digest(path) for path in dict.fromkeys(quants)}
        wanted = self._wanted()
        done = self._stored(digests, wanted)
        try:
            if len(done) < len(digests):
                chunks = self._chunks(wanted)
                done = self._stored(digests, chunks)  # not those over more chunks: all have to be comparable
                self._measure_quality(digests, done, chunks)
            if self.config.speed:
                for path in digests:
                    done[path] = self._with_speed(path, done[path])
        finally:
            for left in () if self.config.keep_logits else self.config.folder.glob(f"*{LOGITS_SUFFIX}"):
                left.unlink()
        return [done[path][1] for path in digests]

    def _wanted(self) -> int:
        """Chunks that the text can have and the budget allows."""
        most = most_chunks(self.config.text)
        wanted = min(self.config.chunks or most, most)
        if self.config.all_chunks:
            return wanted
        chunks = fitting_chunks(wanted, self.config.budget, self.vocab)
        return chunks or self._too_little(wanted, self.config.budget, limited=True)

    def _chunks(self, wanted: int) -> int:
        """As many of those as there is space for now; all of them if they are here already."""
        if self._written(wanted):
            return wanted
        left = sum(path.stat().st_size for path in self.config.folder.glob(f"*{LOGITS_SUFFIX}"))
        room = free_bytes(self.config.folder) + left - SPARE
        chunks = fitting_chunks(wanted, room, self.vocab) or self._too_little(wanted, room, limited=False)
        if chunks < wanted and self.config.all_chunks:
            needed = perplexity.logits_bytes(self.vocab, wanted) + SPARE
            raise DiskError(
                "the base's predictions over {chunks} chunks need {needed} in {folder} and {room} are free: free "
                "some space and {AGAIN}.",
                chunks=wanted,
                needed=human_size(needed),
                folder=self.config.folder.absolute(),
                room=human_size(max(0, room + SPARE)),
            )
        if chunks < wanted:
            logger.warning("%d chunks of the text are measured instead of %d: the disk is full.", chunks, wanted)
        return chunks

    def _too_little(self, wanted: int, room: int, *, limited: bool) -> int:
        needed = human_size(perplexity.logits_bytes(self.vocab, min(LEAST_CHUNKS, wanted)))
        sizes = {"needed": needed, "folder": self.config.folder.absolute(), "room": human_size(max(0, room))}
        if limited:
            raise DiskError(
                "the base's predictions need {needed} in {folder} and {room} are allowed: free some space or give "
                "another {OUT}.",
                **sizes,
            )
        raise DiskError(
            "the base's predictions need {needed} in {folder} and {room} are free: free some space or give another "
            "{OUT}.",
            **sizes,
        )

    def _key(self, *parts: object) -> str:
        text = "\n".join(map(str, (self.base_digest, self.text_digest, self.config.llama.commit, *parts)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _result(self, quant: Path, digest: str, chunks: int) -> Path:
        return self.config.folder / f"{quant.stem[:80]}-{self._key(chunks, digest)}.json"

    def _stored(self, digests: Mapping[Path, str], chunks: int) -> dict[Path, tuple[Path, Evaluation]]:
        """What is measured already: quant -> (its file, what it says)."""
        found: dict[Path, tuple[Path, Evaluation]] = {}
        for quant, digest in digests.items():
            file = self._result(quant, digest, chunks)
            with contextlib.suppress(FileNotFoundError, ValueError):
                found[quant] = file, from_json(file.read_text(encoding="utf-8"))
        return found

    def _measure_quality(
        self, digests: Mapping[Path, str], done: dict[Path, tuple[Path, Evaluation]], chunks: int
    ) -> None:
        due = [quant for quant in digests if quant not in done]
        logits = self._logits(chunks) if due else Path()
        for quant in due:
            quality = self._quality(quant, logits)
            read = perplexity.logits_chunks(logits, self.vocab)
            head = read_head(quant)
            evaluation = Evaluation(
                quant=quant.name,
                quant_sha256=digests[quant],
                size=head.file_size,
                bpw=sum(tensor.size for tensor in head.tensors.values()) * 8 / head.elements,
                base=self.base.name,
                base_sha256=self.base_digest,
                text=self.config.text.name,
                text_sha256=self.text_digest,
                llama=self.config.llama.commit,
                chunks=read,
                tokens=read * perplexity.SCORED,
                quality=quality,
            )
            file = self._result(quant, digests[quant], chunks)
            write_text(file, to_json(evaluation))
            done[quant] = file, evaluation

    def _written(self, chunks: int) -> Path | None:
        """The base's predictions over so many chunks, if they are here and whole."""
        target = self.config.folder / (self._key(chunks) + LOGITS_SUFFIX)
        return target if target.exists() and perplexity.logits_chunks(target, self.vocab) else None

    def _logits(self, chunks: int) -> Path:
        """The base's predictions over the text, for `chunks` chunks or all that it has."""
        target = self.config.folder / (self._key(chunks) + LOGITS_SUFFIX)
        for left in self.config.folder.glob(f"*{LOGITS_SUFFIX}"):
            if left != self._written(chunks):
                left.unlink()
        if target.exists():
            return target
        with partial(target) as part:
            command = perplexity.logits_command(
                self.tool,
                model=self.base,
                text=self.config.text.absolute(),
                out=part.absolute(),
                threads=self.config.threads,
                chunks=chunks,
            )

            def whole(text: str) -> int | None:
                if too_short := tools.parse_too_short(text):
                    raise CalibrationError(
                        "the evaluation text {name} has {found} tokens, at least {needed} are needed: give a "
                        "longer one with --text.",
                        name=self.config.text.name,
                        found=too_short[1],
                        needed=too_short[0],
                    )
                return perplexity.logits_chunks(part, self.vocab) or None

            try:
                perplexity.run_for(command, self.run, read=whole, feed=self._progress(self.base))
            except ToolError as error:
                if free_bytes(self.config.folder) < (1 << 20):  # the tool does not look whether it could write
                    raise DiskError(
                        "the disk is full while {name} is measured: free some space and {AGAIN}; what is finished "
                        "stays.",
                        name=self.base.name,
                    ) from error
                raise
        return target

    def _quality(self, quant: Path, logits: Path) -> Quality:
        command = perplexity.divergence_command(
            self.tool, model=quant.absolute(), logits=logits.absolute(), threads=self.config.threads
        )
        read, feed = perplexity.parse_quality, self._progress(quant)
        quality = perplexity.run_for(command, self.run, read=read, feed=feed)
        if not all(map(math.isfinite, dataclasses.astuple(quality))):
            raise SourceError(
                "{quant} predicts values that are not finite: it is broken, quantize it again.", quant=quant
            )
        return quality

    def _progress(self, path: Path) -> perplexity.ChunkProgress:
        return perplexity.ChunkProgress(lambda fraction: self.config.report(path.name, fraction))

    def _with_speed(self, quant: Path, stored: tuple[Path, Evaluation]) -> tuple[Path, Evaluation]:
        """Measures how fast the machine is with this quant: with a fixed number of threads that never rest. Where
        people allow the tools only a part of the time, the speed is left out: there is no true one then."""
        file, evaluation = stored
        if asked_share(self.config.share) < 1:
            return stored
        threads = self.config.limit() if self.config.limit else self.config.threads
        known = evaluation.speed
        if known is not None and known.threads == threads and known.throttled is False:
            return stored
        self.config.report(f"{quant.name}, speed", 0.0)
        config = self.config
        tool = config.llama.tool("llama-bench", config.stopped, config.waits)  # then nothing is compiled any more
        command = perplexity.bench_command(tool, model=quant.absolute(), threads=threads)
        wait = CpuWait()
        unthrottled = dataclasses.replace(self.run, limit=None, share=lambda: 1.0, watch=wait.look)
        speed: Speed = perplexity.run_for(command, unthrottled, read=perplexity.parse_bench)
        evaluation = evaluation.evolve(speed=dataclasses.replace(speed, throttled=False, waited=wait.share))
        write_text(file, to_json(evaluation))
        return file, evaluation

"""Measures quantized files of rwkv.cpp against the FP32 or FP16 file that they were made from.

As for GGUF files (ggufy/steps/evaluate.py), every result is a small file of its own that appears whole or not at all,
and what is measured already is read, not measured again:

    <folder>/<quant>-<16 hex digits>.json    an Evaluation
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ggufy.core.errors import SourceError, ToolError
from ggufy.core.messages import Message
from ggufy.core.metrics import Evaluation, Quality, Speed, from_json, to_json
from ggufy.formats.rwkvcpp import read_head
from ggufy.formats.same_model import ModelFacts, check_quants
from ggufy.llama.tools import CONTEXT, ToolRun, run_tool
from ggufy.rwkvcpp.tokenizer import AUTO
from ggufy.system.child_process import CpuWait
from ggufy.system.files import sha256, write_text
from ggufy.system.python_child import finding_ggufy, module_command
from ggufy.system.resources import asked_share

_PROGRAM = "ggufy.rwkvcpp.measuring"
_NORM = "ln_out.weight"  # F32 in every file, so a quant has its base's own


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What one call of `measure` shares."""

    text: Path  # UTF-8
    folder: Path  # for results
    run: ToolRun  # of the child process
    threads: int
    tokenizer: str = AUTO  # see tokenizer.py
    ignore_first: int = 0  # tokens whose loss does not count
    limit: int = 0  # tokens of the text to read; 0 = all
    speed: bool = True
    ggml_folder: Path | None = None  # of llama.cpp's kernels
    library: Path | None = None  # somebody's own librwkv.so, to measure with
    llama: str = ""  # commit of the llama.cpp that the kernels are of
    digests: Mapping[Path, str] = field(default_factory=dict)  # sha256 of files, where it is known
    report: Callable[[str, float], None] = lambda what, fraction: None  # file name, fraction done

    def digest(self, path: Path) -> str:
        return self.digests.get(path.absolute()) or sha256(path, stopped=self.run.stopped)


def measure(base: Path, quants: Sequence[Path], config: MeasureConfig) -> list[Evaluation]:
    """Measures each quant, in the order given; `base` may be among them, for its own speed.

    Raises SourceError for a file that is broken, or no quant of this base; VocabError without a fitting tokenizer;
    CalibrationError for a text that is too short; ToolError; Cancelled.
    """
    check_quants(base, quants, _facts)
    return _Session(base, config).measure_all(quants)


def _facts(path: Path) -> ModelFacts:
    head = read_head(path)
    record = head.records.get(_NORM)
    norm = None
    if record is not None and record.type == "FP32":
        norm = np.fromfile(path, dtype="<f4", count=record.elements, offset=record.offset)
    return ModelFacts(
        unquantized=Message("FP32 or FP16") if head.quantized else "",
        architecture=f"RWKV-{head.rwkv}",
        vocab_size=head.vocab_size,
        shapes={name: math.prod(one.shape) for name, one in head.records.items()},
        norm=norm,
    )


class _Session:
    """One run over several quants of one base."""

    def __init__(self, base: Path, config: MeasureConfig):
        self.base, self.config = base.absolute(), config
        self.base_digest, self.text_digest = config.digest(base), config.digest(config.text)
        own = Path(config.tokenizer)
        said = config.digest(own) if own.is_file() else config.tokenizer
        library = config.digest(config.library) if config.library else config.llama
        self._key = (self.base_digest, self.text_digest, said, library, config.ignore_first, config.limit)

    def measure_all(self, quants: Sequence[Path]) -> list[Evaluation]:
        digests = {path: self.config.digest(path) for path in dict.fromkeys(quants)}
        files = {path: self._result(path, digest) for path, digest in digests.items()}
        done: dict[Path, Evaluation] = {}
        for path, file in files.items():
            with contextlib.suppress(FileNotFoundError, ValueError):
                done[path] = from_json(file.read_text(encoding="utf-8"))
        due = [path for path in files if path not in done]
        for path, (tokens, quality) in zip(due, self._qualities(due), strict=True):
            done[path] = self._evaluation(path, digests[path], tokens, quality)
            write_text(files[path], to_json(done[path]))
        for path, file in files.items() if self._speed_is_true else ():
            if (speed := done[path].speed) is None or speed.threads != self.config.threads or not speed.undisturbed:
                done[path] = done[path].evolve(speed=self._speed(path))
                write_text(file, to_json(done[path]))
        return [done[path] for path in quants]

    @property
    def _speed_is_true(self) -> bool:
        """Where people allow only a part of the time, there is no true one."""
        return self.config.speed and asked_share(self.config.run.share) >= 1

    def _result(self, quant: Path, digest: str) -> Path:
        text = "\n".join(map(str, (*self._key, digest)))
        return self.config.folder / f"{quant.stem[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def _qualities(self, quants: Sequence[Path]) -> list[tuple[int, Quality]]:
        if not quants:
            return []
        config = self.config
        command = ["quality", "--text", str(config.text.absolute()), "--tokenizer", _absolute(config.tokenizer)]
        command += ["--limit", str(config.limit), "--ignore-first", str(config.ignore_first), str(self.base)]
        what = quants[0].name if len(quants) == 1 else config.text.name
        found = self._run([*command, *(str(path.absolute()) for path in quants)], config.run, what)
        qualities = [Quality(**one) for one in found["qualities"]]
        for path, quality in zip(quants, qualities, strict=True):
            if not all(map(math.isfinite, dataclasses.astuple(quality))):
                raise SourceError(
                    "{quant} predicts values that are not finite: it is broken, quantize it again.", quant=path
                )
        return [(found["tokens"], quality) for quality in qualities]

    def _speed(self, path: Path) -> Speed:
        wait = CpuWait()
        run = dataclasses.replace(self.config.run, limit=None, share=lambda: 1.0, watch=wait.look)
        found = self._run(["speed", str(path.absolute())], run, f"{path.name}, speed")
        return Speed(threads=self.config.threads, throttled=False, waited=wait.share, **found["speed"])

    def _run(self, command: list[str], run: ToolRun, what: str) -> dict[str, Any]:
        """The last line of the program."""
        config = self.config
        options = ["--threads", str(config.threads)]
        options += ["--ggml", str(config.ggml_folder.absolute())] if config.ggml_folder else []
        options += ["--library", str(config.library.absolute())] if config.library else []
        run = dataclasses.replace(run, environment=finding_ggufy(run.environment))
        told = _Lines(lambda fraction: config.report(what, fraction))
        config.report(what, 0.0)
        text = run_tool(module_command(_PROGRAM, *options, *command), run, told)
        if told.last is None:
            raise ToolError("{tool} ended without its figures: {AGAIN}.", text, tool=_PROGRAM)
        if "error" in told.last:
            raise SourceError(Message.from_record(told.last["error"]))
        return told.last

    def _evaluation(self, path: Path, digest: str, tokens: int, quality: Quality) -> Evaluation:
        head = read_head(path)
        return Evaluation(
            quant=path.name,
            quant_sha256=digest,
            size=head.file_size,
            bpw=head.bpw,
            base=self.base.name,
            base_sha256=self.base_digest,
            text=self.config.text.name,
            text_sha256=self.text_digest,
            llama=self.config.llama,
            chunks=math.ceil(tokens / CONTEXT),
            tokens=tokens,
            quality=quality,
        )


def _absolute(tokenizer: str) -> str:
    """The same for a process that runs in another folder."""
    return str(Path(tokenizer).absolute()) if Path(tokenizer).is_file() else tokenizer


class _Lines:
    """Follows the program's lines; other lines, such as warnings, are passed over."""

    def __init__(self, report: Callable[[float], None]):
        self.last: dict[str, Any] | None = None  # its result
        self._report, self._text = report, ""

    def __call__(self, text: str) -> None:
        *lines, self._text = (self._text + text).split("\n")
        for line in lines:
            if not line.startswith('{"'):
                continue
            message = json.loads(line)
            if "done" in message:
                self._report(message["done"])
            else:
                self.last = message

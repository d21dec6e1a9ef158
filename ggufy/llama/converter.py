"""llama.cpp's own converter of Hugging Face models: what its Python needs, how it is run, and what it says.

It needs packages that nothing else here does. They are fetched when the first such model is converted, into a folder
of their own, `<cache>/converter/<digest>/`, beside which lie `.lock` and `.log`: nobody who converts RWKVs pays for
them, and what is installed elsewhere stays as it is. The converter runs in a process without token and network, which
runs no program of a model (converter_child.py).
"""

from __future__ import annotations

import hashlib
import logging
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ggufy.core.errors import DiskError, SourceError, ToolError
from ggufy.core.messages import Message
from ggufy.core.words import human_size
from ggufy.llama import converter_child
from ggufy.llama.build import pip_variables
from ggufy.llama.install import Llama
from ggufy.llama.pin import CONVERTER, LORA_CONVERTER
from ggufy.llama.tools import ToolRun, failure_reason, run_tool
from ggufy.system import files
from ggufy.system.locks import lock

logger = logging.getLogger(__name__)
# A set that fits the huggingface_hub and tokenizers of ggufy, so that nothing else has to be fetched.
PACKAGES = ("transformers==5.23.0", "regex==2026.11.19", "safetensors==0.8.0", "sentencepiece==0.2.3")
_NEEDED_BYTES = 300 << 20  # what pip fetches, unpacks and leaves: 70 MB stay
MMPROJ, HEADS, TRUNK = "--mmproj", "--mtp", "--no-nextn"
_WAIT_S = 3600.0  # for another process that fetches them
_WRITING = re.compile(r"Writing:\s+(\d+)%")
_MEMORY = re.compile(r"\bMemoryError\b|can't allocate memory|SIGKILL")
_FULL = "No space left on device"
_CHOOSE: str = Message("choose another model")
_FETCH: str = Message("fetch the model again, with all its files")
# What the converter prints, why it could not convert then, and what to do: the first that is found counts.
_REASONS: tuple[tuple[str, Callable[[str], str], str], ...] = (
    (
        r"Model (\S+) is not supported",
        lambda what: Message("its architecture {what} is not known to it", what=what),
        _CHOOSE,
    ),
    (
        r"BPE pre-tokenizer was not recognized",
        lambda what: Message("its pre-tokenizer is not known to it"),
        _CHOOSE,
    ),
    (
        r"Unexpected name '([^']+)'|lm_head is present in adapter",
        lambda what: Message("no file of its own can hold what its adapter changes {what}", what=what),
        Message("leave {LORA_AS_FILE} out, and the adapter is merged"),
    ),
    (r"Can not map tensor '([^']+)'", lambda what: Message("it does not know what {what} is", what=what), _CHOOSE),
    (
        r"Quant method is not yet supported: '([^']+)'|Quant format '([^']+)'|(\d-bit \w+) dequantization",
        lambda what: Message("it cannot read weights that were quantized by {what}", what=what),
        Message("choose the model that they were made from"),
    ),
    (
        rf"{converter_child.FOREIGN_CODE}|contains custom code",
        lambda what: Message("it needs programs of its own, which are not run"),
        _CHOOSE,
    ),
    (
        r"(?:File not found|No such file or directory): '?(?:[^\n']*/)?([^\n'/]+)",
        lambda what: Message("{what} is missing", what=what),
        _FETCH,
    ),
    (
        r"Missing or incomplete model files: \[([^\n]+)\]",
        lambda what: Message("{what} is missing", what=what),
        _FETCH,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Converter:
    """What running it takes."""

    llama: Llama
    cache: Path
    pip_environment: Mapping[str, str]  # the user's, of which pip gets what it needs
    run: ToolRun

    def convert(
        self,
        folder: Path,
        target: Path,
        *,
        outtype: str,
        report: Callable[[float], None] = lambda fraction: None,
        part: str = "",
        weights: bool = True,
    ) -> None:
        """Writes the GGUF of the model in `folder` to `target`, in place; all that is in the folder above may be used
        as a model's files, and for the converter's own.

        `part` is an option of the converter for a part of the model: MMPROJ for what sees or hears, HEADS for heads
        for several tokens at once, TRUNK for all but these. Without `weights`, its head and a hole.

        Raises SourceError with its reason, ToolError where it cannot run, DiskError, Cancelled.
        """
        words = [str(folder.absolute()), "--outfile", str(target.absolute()), "--outtype", outtype]
        words += [part] if part else []
        self._run(CONVERTER, words, folder, report, weights=weights)

    def convert_adapter(self, adapter: Path, folder: Path, target: Path) -> None:
        """Writes the GGUF, in F32, of a LoRA for the model in `folder` to `target`; `adapter` is a folder as PEFT
        saves it, below the one above the model's.

        Raises the same errors.
        """
        words = ["--base", str(folder.absolute()), str(adapter.absolute()), "--outfile", str(target.absolute())]
        self._run(LORA_CONVERTER, words, folder, lambda fraction: None)

    def _run(
        self, name: str, words: list[str], folder: Path, report: Callable[[float], None], *, weights: bool = True
    ) -> None:
        """Runs a program of llama.cpp's source on a model's folder."""
        program, inside = self._program(name), folder.absolute().parent
        packages = ensure_packages(self.cache, self.run, self.pip_environment)
        child = [sys.executable, "-s", str(Path(converter_child.__file__).absolute())]
        child += [] if weights else [converter_child.NO_WEIGHTS]
        command = [*child, str(inside), str(program), *words]
        run = replace(self.run, environment=environment(self.run.environment, packages, inside))

        def feed(text: str) -> None:
            if done := _WRITING.findall(text):
                report(int(done[-1]) / 100)

        try:
            run_tool(command, run, feed)
        except ToolError as error:
            raise read_error(error, folder.name, run.log) from error

    def _program(self, name: str) -> Path:
        if self.llama.source is None:
            raise ToolError(
                "GGUFY_LLAMA_DIR is {folder}, which has no {tool}: put llama.cpp's source beside it, or unset "
                "GGUFY_LLAMA_DIR.",
                folder=self.llama.bin,
                tool=name,
            )
        if not (self.llama.source / name).is_file():
            raise ToolError(
                "this build of llama.cpp has no {tool}: remove {folder} if ggufy made it, so that it is made again, "
                "or put llama.cpp's source beside your own.",
                tool=name,
                folder=self.llama.source.parent,
            )
        return self.llama.source / name


def environment(tool: Mapping[str, str], packages: Path, work: Path) -> dict[str, str]:
    """A tool's environment, with the packages and without the Hub."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    places = {"PYTHONPATH": str(packages), "HOME": str(work), "HF_HOME": str(work / "hf")}
    return {**tool, **offline, **places, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


def read_error(error: ToolError, name: str, log: Path | None) -> SourceError | DiskError:
    """Why a model could not be converted, from what the converter printed."""
    text = error.output
    if _FULL in text:
        return DiskError("the disk is full while converting {name}: free some space and {AGAIN}.", name=name)
    reason, advice = failure_reason("\n".join(text.splitlines()[-3:])), _CHOOSE
    if _MEMORY.search(f"{text} {error.message}"):
        reason, advice = Message("memory ran out"), Message("free some, or take a machine that has more")
    else:
        for pattern, why, what in _REASONS:
            if found := re.search(pattern, text):
                reason, advice = why(next(filter(None, found.groups()), "")[:80]), what
                break
    return SourceError(
        "{name} cannot be converted ({reason}): {advice} (log: {log}).",
        name=name,
        reason=reason,
        advice=advice,
        log=log or "",
    )


def packages_folder(cache: Path) -> Path:
    """Where the packages for this Python are, or would be."""
    text = " ".join((*PACKAGES, platform.python_version(), platform.machine(), sys.platform))
    return cache / "converter" / hashlib.sha256(text.encode()).hexdigest()[:16]


def ensure_packages(cache: Path, run: ToolRun, pip_environment: Mapping[str, str]) -> Path:
    """The folder of the packages that the converter's Python needs, fetched by pip if this is the first time; a second
    caller waits for the first. What was fetched before a kill is in pip's own cache.

    Raises ToolError if pip cannot, DiskError, BusyError, Cancelled.
    """
    folder = packages_folder(cache)
    if folder.is_dir():
        return folder
    busy = Message("another run fetches what converting needs: {AGAIN}.")
    with (
        files.disk_errors(folder),
        lock(folder.with_suffix(".lock"), wait_s=_WAIT_S, message=busy, stopped=run.stopped),
    ):
        if not folder.is_dir():
            _install(folder, run, pip_environment)
    return folder


def _install(folder: Path, run: ToolRun, pip_environment: Mapping[str, str]) -> None:
    free = files.free_bytes(folder)
    if free < _NEEDED_BYTES:
        raise DiskError(
            "what converting needs takes {needed} in {folder}, and {free} are free: free some space and {AGAIN}.",
            needed=human_size(_NEEDED_BYTES),
            folder=folder.parent,
            free=human_size(free),
        )
    part, log = files.part_of(folder), folder.with_suffix(".log")
    shutil.rmtree(part, ignore_errors=True)
    logger.info("fetching %s for the converter", ", ".join(PACKAGES))
    command = [sys.executable, "-m", "pip", "install", "--no-input", "--progress-bar", "off", "--no-compile"]
    command += ["--no-deps", "--only-binary", ":all:", "--target", str(part), *PACKAGES]
    variables = {**run.environment, "HOME": str(Path.home()), **pip_variables(pip_environment)}
    try:
        run_tool(command, ToolRun(environment=variables, cwd=folder.parent, log=log, stopped=run.stopped))
    except ToolError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ToolError(
            "what llama.cpp's converter needs could not be fetched ({reason}): check the network and pip's settings, "
            "and {AGAIN} (log: {log}).",
            reason=failure_reason(error.output),
            log=log,
        ) from error
    part.rename(folder)

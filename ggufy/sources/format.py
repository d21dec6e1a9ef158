"""What a format of sources is, what is known of a source before it is read as a whole, and what converting one takes.

A format is a class in a file of its own (rwkv_pth.py, gguf_model.py); registry.py lists them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from ggufy.core.errors import Cancelled, SourceError
from ggufy.core.outputs import GGUF, RWKVCPP, names_of_output
from ggufy.core.source import Source
from ggufy.formats.gguf import GgufHead
from ggufy.formats.rwkvcpp import RwkvcppHead
from ggufy.formats.safetensors import StoredTensor

if TYPE_CHECKING:
    from ggufy.models.merge import OpenAdapter


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model of a repo."""

    name: str  # path of its file in the repo
    size: int  # bytes


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known of a source; a field is empty, or 0, if it is not known or does not apply."""

    source: str  # as it was typed
    problem: str = ""  # why it cannot be quantized, and what to do next; empty: it can
    away: bool = False  # that is because its server cannot be reached: asking again later may help
    output: str = GGUF  # format of the quants that it was looked at for
    instead: str = ""  # another format that quants of it can have, if they cannot have this one
    kind: str = ""  # checkpoint, safetensors, bin or gguf
    noun: str = ""  # that for people
    path: str = ""  # name of the file, in the repo if it is in one
    files: tuple[str, ...] = ()  # names of all of the model's files, its own first
    stem: str = ""  # what the model is named after
    layout: str = ""  # whose names and layout its tensors have, see models/layouts.py
    architecture: str = ""  # as llama.cpp calls it: rwkv6, rwkv7, llama, …
    version: str = ""  # of RWKV: 4, 5, 5.1, 5.2, 6 or 7
    layers: int = 0
    width: int = 0
    heads: int = 0
    head_size: int = 0
    vocab_size: int = 0
    parameters: int = 0
    dtype: str = ""  # of most weights: bf16, f16, f32, or a quantized GGUF's tensor type
    size: int = 0  # of the file or files, bytes
    model_id: str = ""  # Hub: owner/name; on ModelScope ms:owner/name
    revision: str = ""  # Hub: commit sha
    context: int = 0  # tokens that it was made for
    pre_tokenizer: str | None = None  # as llama.cpp calls it; empty: it does not know it, None: it is not told by that
    notes: tuple[str, ...] = ()  # what else people should know, each a few words
    license: str = ""  # Hub: as the repo's card says
    gated: bool = False  # Hub: its conditions have to be accepted first
    variants: tuple[Variant, ...] = ()  # Hub: every model of the repo
    streams: bool = False  # remote: converting it needs no room for the file itself
    received: int = 0  # bytes of the file that were fetched to know all this
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)  # checkpoint: of its tensors
    own_vocab: bytes = field(default=b"", repr=False)  # content of the vocabulary file that comes with it
    chat_format: str = ""  # of an RWKV, as far as its names tell; see Request
    head: bytes = field(default=b"", repr=False)  # unquantized GGUF: everything before its data
    mtp: bool = False  # it has heads for several tokens at once, which llama.cpp's converter can part from it
    mmproj: bool = False  # a part of it sees or hears, of which llama.cpp's converter makes a file of its own
    stored: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)  # Hugging Face: its tensors
    companions: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # and small files, to forecast by

    @property
    def lasts_s(self) -> float:
        """Seconds for which it may be taken for true: a problem may be over soon."""
        return 10.0 if self.problem else 600.0

    @property
    def remote(self) -> bool:
        """It is not on this machine."""
        return bool(self.received)

    def facts(self) -> dict[str, Any]:
        """What people and programs are told."""
        hidden = (
            "away",
            "noun",
            "files",
            "stem",
            "shapes",
            "own_vocab",
            "head",
            "chat_format",
            "stored",
            "companions",
        )
        kept = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in hidden}
        return kept | {"variants": [{"name": v.name, "size": v.size} for v in self.variants]}

    @property
    def becomes(self) -> str:
        """What it is converted as, if that is another version of RWKV than its own."""
        return "RWKV-6" if self.version.startswith("5.") and self.architecture == "rwkv6" else ""

    @property
    def title(self) -> str:
        """Its kind in words."""
        name = f"RWKV-{self.version}" if self.version else self.architecture
        return f"{name} {self.noun}".strip()


@dataclass(frozen=True, kw_only=True)
class SkeletonTask:
    """A base that is to be foreseen."""

    outtype: str
    vocab: Path | None = None  # the user's vocabulary
    name: str  # of the model
    run_converter: RunConverter | None = None  # without weights, for formats that go through it


@dataclass(frozen=True, kw_only=True)
class ConvertTask:
    """A pinned source that is to become a base."""

    source: Source
    path: Path  # its file on this machine, or the first of several, which lie beside each other
    streamed: bool = False  # it is not here: it is fetched piece by piece
    outtype: str
    output: str = GGUF  # format of the quants, and of the base
    name: str  # of the model
    vocab: Path | None = None  # the user's vocabulary
    adapters: Sequence[OpenAdapter] = ()  # to be merged into the model, in this order
    chat_format: str = ""  # see Request
    work: Path = field(default_factory=Path)  # a folder for what it works with
    run_converter: RunConverter | None = None
    token: str | None = field(default=None, repr=False)
    report: Callable[[float], None] = lambda fraction: None
    stopped: Callable[[], bool] = lambda: False

    def skeleton(self) -> SkeletonTask:
        """The same base, to be foreseen."""
        return SkeletonTask(outtype=self.outtype, vocab=self.vocab, name=self.name)

    def progress(self, done: int, total: int) -> None:
        """Reports so many bytes of all. Raises Cancelled when the job was stopped."""
        if self.stopped():
            raise Cancelled("the job was stopped.")
        self.report(done / max(1, total))


BaseHead = GgufHead | RwkvcppHead
RunConverter = Callable[[Path, Path], None]  # writes the GGUF of a folder by llama.cpp's converter: folder, file
OpenBeside = Callable[[str], AbstractContextManager[BinaryIO]]  # opens another file of the same folder or repo


class SourceFormat(ABC):
    """One format. A model of several files is known by the name of one of them."""

    kind: ClassVar[str]  # in job records; those that can be streamed stand in STREAMED_KINDS of core/source.py too
    noun: ClassVar[str]  # for people
    bases: ClassVar[tuple[str, ...]] = ("gguf",)  # what kinds of files its base can be, as core/outputs.py ends them
    suffix: ClassVar[str]  # of its name
    unnamed: ClassVar[bool] = False  # a repo's only model is taken without being named
    converts: ClassVar[bool] = (
        True  # ggufy writes the base GGUF, with a vocabulary and a chat template; else it is one
    )
    carries: ClassVar[bool] = False  # its models come with vocabulary and chat template, which stay
    forecasts: ClassVar[bool] = True  # a skeleton of its base can be written before that is made
    rwkv: ClassVar[bool] = False  # its models are all of an architecture that has a file in `models`

    def check_output(self, output: str, found: dict[str, Any] | None = None) -> None:
        """Raises SourceError if no quants of that format can be made of such a file; what they can be instead goes
        into `found`."""
        if names_of_output(output).base_suffix in self.bases:
            return
        if output == GGUF:
            if found is not None:
                found["instead"] = RWKVCPP
            raise SourceError(
                "this is a file of rwkv.cpp, and no GGUF is made of it: choose {RWKVCPP}, or give the checkpoint that "
                "it was made from."
            )
        raise SourceError(
            "a {noun} cannot become files of {format}: give the checkpoint (.pth) that it was made from.",
            noun=self.noun,
            format=output,
        )

    def claims(self, name: str) -> bool:
        """Whether a file of this name, in a repo or at an address, is a model of this format."""
        return PurePosixPath(name).suffix == self.suffix

    def files(self, name: str, listing: Callable[[], Collection[str]]) -> tuple[str, ...]:
        """The names of the model's files, its own first, as far as they are there; `listing()` has all there are."""
        return (name,)

    def files_here(self, path: Path) -> list[Path]:
        """The same of a model on this machine."""
        names = self.files(path.name, lambda: [other.name for other in path.parent.iterdir()])
        return [path.with_name(name) for name in names]

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Whether a file on this machine is a model of this format, whatever it is called."""

    def base_head(self, path: Path) -> BaseHead | None:
        """The head of a file here that is a base as it is; None for one that has to be converted.

        Raises SourceError for one that cannot be quantized.
        """
        return None

    @abstractmethod
    def describe(self, file: BinaryIO, beside: OpenBeside, found: dict[str, Any], vocab: str | None) -> None:
        """Puts fields of a Report into `found`, which has the path and all files, as far as they can be known from
        little reading.

        Raises SourceError, with what is known by then in `found`, for what cannot be quantized.
        """

    def base_bytes(self, report: Report, outtype: str) -> int:
        """About how large the base GGUF of a source will be whose format does not forecast it."""
        return 0

    def write_described(self, report: Report, target: Path, task: SkeletonTask) -> None:
        """Writes the skeleton of the base of a source that was described: its head, and a hole of the size of its
        weights, which takes no disk. Raises SourceError, also where it takes the weights to know, and what the task's
        converter raises."""
        raise SourceError("the sizes of {name} are known when it is converted: start the job.", name=task.name)

    def write_skeleton(self, task: ConvertTask, target: Path) -> None:
        """The same of a pinned source."""
        names = tuple(PurePath(one.path).name for one in task.source.each()[::-1])
        found: dict[str, Any] = {"path": task.path.name, "files": names, "size": task.source.size}
        found["output"] = task.output
        with task.path.open("rb") as file:
            vocab = str(task.vocab) if task.vocab else None
            self.describe(file, lambda name: task.path.with_name(name).open("rb"), found, vocab)
        report = Report(source=str(task.path), **found | {"chat_format": task.chat_format})
        self.write_described(report, target, task.skeleton())

    @abstractmethod
    def convert(self, task: ConvertTask, target: Path) -> str:
        """Writes the base, which appears whole or not at all; gives its SHA-256 in hex digits.

        Raises SourceError for wrong weights or a source that is not the pinned one, DiskError, Cancelled.
        """

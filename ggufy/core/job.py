"""Records: what a job was asked to do, and how far it is. No I/O.

A `Request` is pinned once, when the job is made, and never edited: it holds digests, not wishes. A `Job` is a request
with a status for people; `evolve` gives the next record. What is left to do is not stored here: products decide
(see plan.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import PurePath
from typing import Any, Self

from ggufy.core.errors import cause_of, sentence_of, without_folders
from ggufy.core.metrics import Evaluation
from ggufy.core.outputs import GGUF, names_of_output
from ggufy.core.source import PinnedAdapter, Source
from ggufy.core.writing import WritingShare

# 20 thousand tokens: more calibration text hardly changes a quant (llama.cpp's own table, 10 k against 10 M tokens).
DEFAULT_CHUNKS = 40
# Of evaluation text: 4 thousand scored tokens. The KLD's standard error is then about 1 to 2 % of it.
EVALUATION_CHUNKS = 16
PLAIN, COMPENSATED = "plain", "compensated"  # how the codes of a quant are rounded
RWKV_MIX, STOCK_MIX = "rwkv", "stock"  # whose recipes name the types of its tensors
MIX_KINDS = (RWKV_MIX, STOCK_MIX)


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  #: waits its turn
    RUNNING = "running"  #: being worked on, or interrupted: it resumes by itself
    DONE = "done"  #: every product is there
    FAILED = "failed"  #: an error ended it; retry runs it again
    CANCELLED = "cancelled"  #: the user ended it
    PAUSED = "paused"  #: the user stopped it for now, or it needs something from them (`error` says what)


#: What is not taken up again by itself.
RESTING = frozenset({Status.DONE, Status.FAILED, Status.CANCELLED, Status.PAUSED})
FINISHED = frozenset({Status.DONE, Status.FAILED, Status.CANCELLED})
#: What only a person makes of a job.
DECIDED = frozenset({Status.QUEUED, Status.CANCELLED, Status.PAUSED})


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a product was made, as far as its name does not say: what a card tells of it, whoever writes the card."""

    llama: str = ""  # commit of the llama.cpp
    bpw: float | None = None  # bits per weight of a quant
    recipe: str = ""  # of a quant: digest of its tensors' types, the same for files with the same tensors
    mix: str = ""  # of a quant: whose recipe it is, see Request.mix; other models than RWKV always have "stock"
    rescaled: bool = False  # of a quant: what was divided in the base of a deep RWKV-6 is multiplied back
    mostly: str = ""  # of a quant of a model whose widths its type does not fit: the type of most of its blocks
    mode: str = ""  # of a size to order: how much was measured for it, see Request.mode
    awq: bool | None = None  # of a quant: it has activation-aware scales; None: these were not tried
    plain_kld: float | None = None  # if they were: KL divergence without them, nats a token
    awq_kld: float | None = None  # and with them
    rounding: str = ""  # of a quant: compensated, or plain where that was asked for and could not be; empty: plain
    plain_because: str = ""  # why it could not
    world: bool | None = None  # of a base: whether it speaks RWKV's World format


def first_with_the_same(recipes: Mapping[str, str]) -> dict[str, str]:
    """Quant types with the same tensors as an earlier one -> that one; `recipes` are digests, empty if unknown."""
    first: dict[str, str] = {}
    told = ((quant, first.setdefault(recipe, quant)) for quant, recipe in recipes.items() if recipe)
    return {quant: other for quant, other in told if other != quant}


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A product that exists."""

    name: str  # file name in the output folder
    size: int  # bytes
    sha256: str  # hex digest
    making: Making | None = None  # None: an older record, or a file that was found


def free(default: Any = dataclasses.MISSING) -> Any:
    """A field of a Request that decides no bytes of base GGUF, imatrix or quants."""
    return dataclasses.field(default=default, metadata={"free": True})


def later(default: Any) -> Any:
    """A field of a Request that records did not have at first: with this value it decides what they decide, so that
    older jobs keep their ids."""
    return dataclasses.field(default=default, metadata={"later": True})


@dataclass(frozen=True, kw_only=True)
class EvaluationText:
    """A further text to measure on."""

    choice: str  # what the user named
    sha256: str  # digest of the text used
    writing: tuple[WritingShare, ...] = ()  # of the part that is read


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked, pinned."""

    name: str  # <Model>: stem of every product
    source: Source
    quant_types: tuple[str, ...] = free()  # in the order of making
    outtype: str  # f16, bf16 or f32: the type of the base
    output: str = later(GGUF)  # the format of base and quants, one of core/outputs.py
    imatrix: str = "auto"  # auto (made from the calibration text), none, or file
    calibration: str = free("bundled")  # what the user named
    calibration_sha256: str = ""  # digest of the text used (imatrix auto)
    chunks: int = 0  # at most so many chunks of 512 tokens; 0 = the whole text
    imatrix_path: str = free("")  # the user's imatrix (imatrix file)
    imatrix_sha256: str = ""
    vocab_path: str = free("")  # own vocabulary; empty = World
    vocab_sha256: str = ""
    evaluate: bool = free(False)  # measure every quant against the base
    evaluation_text: str = free("")  # what the user named
    evaluation_sha256: str = free("")  # digest of the text used
    evaluation_chunks: int = free(0)  # of 512 tokens
    speaks: tuple[str, ...] = free(())  # writing systems of the model, as far as they are known; see core/writing.py
    calibration_writing: tuple[WritingShare, ...] = free(())  # of the part that is read; empty: an older record
    evaluation_writing: tuple[WritingShare, ...] = free(())  # the same of the evaluation text
    evaluation_more: tuple[EvaluationText, ...] = free(())  # further texts, each over as many chunks
    mix: str = later("stock")  # whose recipes: "rwkv" (quantize/mixes.py), or "stock" as of llama-quantize
    targets: tuple[str, ...] = free(())  # sizes to order, as their files are called: 1.2GB-IQ3_XXS_FIT
    mode: str = free("")  # how much is measured for them: fast, standard or thorough; empty: none was asked for
    chat_format: str = later("")  # how the model talks (models/chat_format.py); empty: World's, as in older records
    repo_id: str = free("")  # owner/name of the output repo on the Hub, ms:owner/name on ModelScope; empty: a folder
    private: bool = free(False)  # of that repo, if it has to be made
    keep_card: bool = free(False)  # its README.md is somebody's own: only the model files go there
    by_stranger: bool = free(False)  # made for a Space's visitor: its steps run without the token
    adapters: tuple[PinnedAdapter, ...] = later(())  # merged into the model, in this order
    mtp: str = later("base")  # where heads for several tokens at once go: base, file or none
    lora_files: tuple[PinnedAdapter, ...] = free(())  # adapters that become GGUFs of their own
    mmproj: tuple[str, ...] = free(())  # types of the files of what sees or hears of it: F16, Q8_0
    copies: tuple[str, ...] = free(())  # further output repos, which get the same files
    awq: bool = later(False)  # quants get activation-aware scales where these lower the KL divergence
    rounding: str = later(PLAIN)  # of codes: as ggml's kernels do it, or compensated where covariances can be made

    def inputs(self) -> str:
        """Digest of everything that decides the bytes of base, imatrix and quants. Two requests that differ only in
        their quants' types and sizes to order share what they have in common."""
        return self._inputs

    @cached_property  # a page of many jobs asks for this and the id again and again
    def _inputs(self) -> str:
        pinned = dataclasses.asdict(self)
        for one in dataclasses.fields(self):
            if one.metadata.get("free") or (one.metadata.get("later") and pinned[one.name] == one.default):
                del pinned[one.name]
        if self.source.kind in ("gguf", "hf"):  # they talk as they do: only its card differs
            pinned.pop("chat_format", None)
        pinned["source"] = self.source.key
        if self.adapters:
            pinned["adapters"] = [one.key for one in self.adapters]
        return hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()

    @property
    def repos(self) -> tuple[str, ...]:
        """Every output repo; none if results stay in a folder here."""
        return (self.repo_id, *self.copies) if self.repo_id else ()

    def shares_repo(self, other: Request) -> bool:
        """True if results of both go to the same repo, or one of them."""
        return not set(self.repos).isdisjoint(other.repos)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Of the model and its adapters."""
        adapters = (*self.adapters, *self.lora_files)
        return (self.source, *(source for adapter in adapters for source in adapter.sources))

    @property
    def local_paths(self) -> tuple[PurePath, ...]:
        """Of files on this machine that the user named."""
        named = [self.vocab_path, self.imatrix_path, self.calibration, self.evaluation_text]
        named += [text.choice for text in self.evaluation_more]
        named += [one.path for source in self.sources if not source.remote for one in source.each()]
        return tuple(PurePath(text) for text in named if text and ":" not in text)

    @property
    def quants(self) -> tuple[str, ...]:
        """What stands in the names of all quants, in the order of making: quant types, then sizes to order."""
        return (*self.quant_types, *self.targets)

    def file_of(self, quant: str) -> str:
        """`<Model>-<quant type>.gguf`, with the label of a size to order, or the ending of another format."""
        return f"{self.name}-{quant}.{names_of_output(self.output).suffix}"

    @property
    def folder(self) -> str:
        """`<Model>-GGUF`, or the ending of another format: name of the output folder."""
        return names_of_output(self.output).folder(self.name)

    @property
    def evaluation_texts(self) -> tuple[EvaluationText, ...]:
        """All texts that are measured on, the one that counts first."""
        if not self.evaluate:
            return ()
        first = EvaluationText(
            choice=self.evaluation_text, sha256=self.evaluation_sha256, writing=self.evaluation_writing
        )
        return (first, *self.evaluation_more)

    @property
    def evaluation_shares(self) -> tuple[WritingShare, ...]:
        """Of all texts that are measured on, one after the other."""
        return tuple(one for text in self.evaluation_texts for one in text.writing)

    @property
    def analysed(self) -> bool:
        """True if the job finds the best size for every quality by measuring (see steps/analyse.py)."""
        return self.mode not in ("", "fast")

    def compensates(self, quant: str) -> bool:
        """Whether a quant's codes are to make up for each other's errors; those of sizes in fast mode never do."""
        return self.rounding == COMPENSATED and not (quant in self.targets and self.mode == "fast")

    @cached_property
    def job_id(self) -> str:
        """`<Model>-<8 hex digits>`: the same request is the same job."""
        measured = f"{self.evaluation_sha256},{self.evaluation_chunks}" if self.evaluate else ""
        measured += "".join(f",{text.sha256}" for text in self.evaluation_more)
        ordered = f"{self.mode}:{','.join(self.targets)}" if self.mode else ""
        asked = "stranger" if self.by_stranger else ""  # a job of its own: it never becomes the owner's private one
        repos = ",".join((self.repo_id, *self.copies))
        asked += "mmproj" if self.mmproj else ""
        asked += "".join(one.key for one in self.lora_files)
        text = self.inputs() + ",".join(self.quant_types) + repos + measured + ordered + asked
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """A size that can be ordered, and how good the file is expected to be."""

    size: int  # bytes of the file
    bpw: float  # bits per weight
    kld: float  # KL divergence from the base that the measurements let expect, nats a token


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model through all its steps."""

    request: Request
    status: Status = Status.QUEUED
    error: str = ""  # one sentence: why it failed, or what it needs to go on; a Message unless the record is older
    cause: str = ""  # what kind of error that was: one of errors.CAUSES; all that strangers are told of it
    begun: bool = False  # a run of it has been at work, so that files may be its own
    created: str = ""  # UTC, ISO 8601; for people
    updated: str = ""
    took_s: float = 0.0  # seconds that its runs took, all together, but for those that were killed
    term: int = 0  # of the lease that it was written under, see hub/lease.py
    serial: int = 0  # how often it was written; of two records, the one with the greater (term, serial) counts
    artifacts: tuple[Artifact, ...] = ()  # products finished so far, in the order of making
    evaluations: tuple[Evaluation, ...] = ()  # of quants measured so far
    frontier: tuple[FrontierPoint, ...] = ()  # the best files for their size, smallest first, once they are known

    @property
    def id(self) -> str:
        return self.request.job_id

    @property
    def unfinished(self) -> bool:
        """True if the next start of the program takes it up. One that waits for its owner is tried again then, since
        a new token needs a restart."""
        return self.status not in RESTING or (self.status is Status.PAUSED and bool(self.error))

    def evolve(self, **changes: Any) -> Self:
        """The next record."""
        return dataclasses.replace(self, **changes)

    def ended(self, status: Status, error: BaseException | None = None, folders: Iterable[PurePath] = ()) -> Self:
        """The record that says how a run ended: the way to write an error into it.

        What goes to the Hub may be read by others: there the sentence names files without the folders that they are
        in, nor any of these `folders` of this machine.
        """
        sentence = sentence_of(error) if error is not None else ""
        if self.request.repo_id:
            sentence = without_folders(sentence, (*self.request.local_paths, *folders))
        return self.evolve(status=status, error=sentence, cause=cause_of(error) if error is not None else "")

    def with_artifact(self, artifact: Artifact) -> Self:
        """The record that knows this product; an older one of the same name is replaced. What is known of how these
        bytes were made stays, and figures of other bytes go."""
        older = next((a for a in self.artifacts if a.name == artifact.name), None)
        if artifact.making is None and older is not None and older.sha256 == artifact.sha256:
            artifact = dataclasses.replace(artifact, making=older.making)
        kept = tuple(a for a in self.artifacts if a.name != artifact.name)
        figures = tuple(e for e in self.evaluations if e.quant != artifact.name or e.is_of(artifact.sha256))
        return self.evolve(artifacts=(*kept, artifact), evaluations=figures)

    def with_evaluation(self, measured: Evaluation) -> Self:
        """The record that knows these figures; older ones of the same quant are replaced."""
        kept = tuple(e for e in self.evaluations if e.quant != measured.quant)
        return self.evolve(evaluations=(*kept, measured))

"""From what a user types to a pinned request: the one way in, for the command line and for the page.

SOURCE is `demo`, a local `.pth`, a local unquantized `.gguf`, a Hub repo (`owner/repo`, `owner/repo:file.pth`), or the
plain address of a `.pth` or `.gguf`.
Everything that decides the bytes of the result is pinned here by digest; whatever cannot work is refused here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggufy import demo
from ggufy.catalog import BY_NAME, OUTTYPES, make_order
from ggufy.errors import CalibrationError, SourceError, UsageError
from ggufy.evaluation import memory_needed
from ggufy.files import human_size, sha256, user_path
from ggufy.hub.state import JobStore
from ggufy.job import DEFAULT_CHUNKS, EVALUATION_CHUNKS, Job, Request, Source
from ggufy.plan import folder_name
from ggufy.quantize import mixes
from ggufy.quantize import target as sizes
from ggufy.settings import Settings
from ggufy.sources import calibration, hub
from ggufy.sources.gguf import MAGIC, read_head
from ggufy.sources.inspect import count_weights
from ggufy.sources.overlap import check_disjoint
from ggufy.sources.place import is_plain_url, local_file
from ggufy.sources.url import resolve_url

_OUTTYPE_SUFFIX = re.compile(r"[-._](bf16|f16|f32|fp16|fp32)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asked for, before anything is looked at."""

    source: str
    quant_types: tuple[str, ...]
    outtype: str | None = None  # None: f16, or what an unquantized GGUF already is
    imatrix: str = "auto"  # auto, none, or a file
    calibration: str = "bundled"
    chunks: int = DEFAULT_CHUNKS
    evaluate: bool | None = None  # None: the demo only
    evaluation: str = "bundled"
    evaluation_chunks: int = EVALUATION_CHUNKS
    vocab: str | None = None
    name: str | None = None
    mix: str = mixes.RWKV  # or mixes.STOCK; other models than RWKV-6 and RWKV-7 always get the latter
    targets: tuple[str, ...] = ()  # sizes to order: 1.2GB, 900MiB, 3.275bpw, mem4GB
    mode: str = ""  # fast, standard or thorough; empty: standard if there are targets
    owner: str = ""  # account on the Hub that the results go to; empty: a folder here
    repo_id: str | None = None  # None: <owner>/<Model>-GGUF
    private: bool = False
    keep_card: bool = False  # publish the model files only; the repo has a README.md of its own


def make_job(wish: Wish, settings: Settings, *, stopped: Callable[[], bool] = lambda: False) -> Job:
    """Pins the wish. Raises a GgufyError, in one sentence, for anything that cannot work; Cancelled soon after
    `stopped()` turned true, as a large file takes minutes to read and a server may be silent."""
    if not wish.source.strip():
        raise UsageError("no source given: enter demo, a path, or owner/repo:file.pth.")
    if wish.source == "demo":
        return make_job(_demo_wish(wish), settings, stopped=stopped)
    source = _source(wish.source, settings, stopped)
    name = model_name(wish.name or Path(source.path).stem)
    request = Request(
        name=name,
        repo_id=_repo_id(wish, name),
        private=wish.private and bool(wish.owner),
        keep_card=wish.keep_card and bool(wish.owner),
        source=source,
        quant_types=make_order(set(wish.quant_types)),
        outtype=_outtype(wish, source),
        mix=_mix(wish, source),
        **_order_fields(wish, settings),
        **_imatrix_fields(wish, settings, stopped),
        **_vocab_fields(wish, source),
    )
    _check_types(request)
    request = replace(request, **_evaluation_fields(wish, request, settings, stopped))
    return Job(request=request)


def is_query(text: str) -> bool:
    """True for words to search the Hub for; False for what can be a source already."""
    return not (text == "demo" or "/" in text or ":" in text or text.startswith((".", "~")) or Path(text).exists())


def model_name(stem: str) -> str:
    """A file name's stem as the model's name: outtype suffix dropped, anything unusual in file names replaced."""
    name = re.sub(r"[^\w.+-]+", "-", _OUTTYPE_SUFFIX.sub("", stem)).strip("-.")[:96]
    if not name:
        raise UsageError(f"no name can be made from {stem!r}: give one with --name.")
    return name


def _demo_wish(wish: Wish) -> Wish:
    evaluate = True if wish.evaluate is None else wish.evaluate
    return replace(wish, source=str(demo.CHECKPOINT), vocab=wish.vocab or str(demo.VOCAB), evaluate=evaluate)


def _repo_id(wish: Wish, name: str) -> str:
    if not wish.owner:
        if wish.repo_id:
            raise UsageError("--repo names a repo on the Hub: add --hub hf, or leave it out.")
        return ""
    repo_id = wish.repo_id or f"{wish.owner}/{re.sub(r'[^A-Za-z0-9._-]+', '-', folder_name(name)).strip('-.')}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id, re.ASCII):
        raise UsageError(
            f"{repo_id!r} is no name for a repo: give one such as {wish.owner}/my-model-GGUF with --repo."
        )
    return repo_id


def _source(text: str, settings: Settings, stopped: Callable[[], bool]) -> Source:
    if is_plain_url(text):
        return resolve_url(text, stopped=stopped)
    if path := local_file(text):
        return _local_source(path, settings, stopped)
    return hub.resolve(text, token=settings.hf_token, stopped=stopped)


def _local_source(path: Path, settings: Settings, stopped: Callable[[], bool]) -> Source:
    with path.open("rb") as file:
        kind = "gguf" if file.read(4) == MAGIC else "checkpoint"
    if kind == "gguf" and read_head(path).quantized:
        raise SourceError(f"{path.name} is quantized already: start from its F16, BF16 or F32 GGUF, or from the .pth.")
    stat = path.stat()
    return Source(
        kind=kind,
        path=str(path),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        sha256=_known_digest(path, settings) or sha256(path, stopped=stopped),
    )


def _known_digest(path: Path, settings: Settings) -> str:
    """The digest that an earlier job computed for the same unchanged file; large files take minutes to read."""
    stat = path.stat()
    for job in JobStore(settings.out).jobs():
        known = job.request.source
        if (known.path, known.size, known.mtime_ns) == (str(path), stat.st_size, stat.st_mtime_ns):
            return known.sha256
    return ""


def _outtype(wish: Wish, source: Source) -> str:
    if wish.outtype is not None and wish.outtype not in OUTTYPES:
        raise UsageError(f"unknown outtype {wish.outtype!r}: one of {', '.join(OUTTYPES)}.")
    if source.kind != "gguf" or source.remote:
        return wish.outtype or "f16"
    own = read_head(Path(source.path)).outtype
    if wish.outtype not in (None, own):
        raise UsageError(f"this GGUF is {own} and is taken as it is: leave --outtype {wish.outtype} out.")
    return own


def _mix(wish: Wish, source: Source) -> str:
    if wish.mix not in mixes.KINDS:
        raise UsageError(f"unknown mix {wish.mix!r}: one of {', '.join(mixes.KINDS)}.")
    if source.kind == "gguf" and not source.remote and not mixes.is_rwkv(read_head(Path(source.path))):
        return mixes.STOCK
    return wish.mix


def _order_fields(wish: Wish, settings: Settings) -> dict[str, Any]:
    """Sizes to order, by the labels that their files will have: these are not computed again."""
    if wish.mode not in ("", *sizes.MODES):
        raise UsageError(f"unknown mode {wish.mode!r}: one of {', '.join(sizes.MODES)}.")
    targets = [sizes.parse_word(word) for word in wish.targets]
    if not targets:
        return {"mode": "" if wish.mode == sizes.FAST else wish.mode}
    weights = count_weights(wish.source, settings, vocab=wish.vocab)
    labels = dict.fromkeys(_label(target, weights) for target in targets)
    return {"targets": tuple(labels), "mode": wish.mode or sizes.STANDARD}


def _label(target: sizes.Target, weights: int) -> str:
    least = math.ceil(sizes.LEAST_BPW * weights / 8)
    if target.file_budget(weights=weights, head=0) < least:  # its head, some hundred kB, is not known yet
        needed = human_size(memory_needed(least) if target.kind == sizes.MEMORY else least)
        raise UsageError(f"{target.text} is too small for this model, which needs more than {needed}: ask for more.")
    return sizes.label(target, weights=weights, head=0)


def _imatrix_fields(wish: Wish, settings: Settings, stopped: Callable[[], bool]) -> dict[str, Any]:
    if wish.imatrix == "none":
        return {"imatrix": "none"}
    if wish.imatrix == "auto":
        text = calibration.pin_text(wish.calibration, settings.cache, token=settings.hf_token, stopped=stopped)
        return {"calibration": wish.calibration, "calibration_sha256": text.sha256, "chunks": wish.chunks}
    path = user_path(wish.imatrix).resolve()
    if not path.is_file():
        raise CalibrationError(f"the imatrix {wish.imatrix} does not exist: give a file, auto or none.")
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise CalibrationError(
                f"{path.name} is no imatrix in GGUF form: make it again with a llama-imatrix of 2025 or later."
            )
    return {"imatrix": "file", "imatrix_path": str(path), "imatrix_sha256": sha256(path)}


def _evaluation_fields(
    wish: Wish, request: Request, settings: Settings, stopped: Callable[[], bool]
) -> dict[str, Any]:
    if not wish.evaluate:
        return {}
    if wish.evaluation_chunks < 1:
        raise UsageError("the figures need at least one chunk of text: give a larger number of evaluation chunks.")
    text = calibration.pin_text(
        wish.evaluation, settings.cache, token=settings.hf_token, use="evaluation", stopped=stopped
    )
    read = calibration.pinned(settings.cache, request.calibration_sha256) if request.imatrix == "auto" else None
    if read is not None:
        check_disjoint(text.path, read)
    if request.mode:
        check_disjoint(text.path, calibration.ensure_texts(settings.cache).probe)
    return {
        "evaluate": True,
        "evaluation_text": wish.evaluation,
        "evaluation_sha256": text.sha256,
        "evaluation_chunks": wish.evaluation_chunks,
    }


def _vocab_fields(wish: Wish, source: Source) -> dict[str, Any]:
    if wish.vocab is None:
        return {}
    if source.kind == "gguf":
        raise UsageError("a GGUF carries its vocabulary: leave --vocab out.")
    path = user_path(wish.vocab).resolve()
    if not path.is_file():
        raise SourceError(f"the vocabulary {wish.vocab} does not exist: check the path given with --vocab.")
    return {"vocab_path": str(path), "vocab_sha256": sha256(path)}


def _check_types(request: Request) -> None:
    if request.imatrix == "none":
        refused = [name for name in request.quant_types if BY_NAME[name].needs_imatrix]
        if refused:
            raise UsageError(
                f"{', '.join(refused)} cannot be made without an imatrix: leave out --imatrix none, or them."
            )

"""From what a user types to a pinned request: the one way in, for the command line and for the page.

SOURCE is `demo`, a local `.pth`, `.safetensors` or unquantized `.gguf`, a folder with one model, a repo of a hub
(`owner/repo`, `owner/repo:file.pth`, `owner/repo:folder`, `ms:owner/repo`), or the plain address of such a file.
Everything that decides the bytes of the result is pinned here by digest; whatever cannot work is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggufy import demo
from ggufy.core.errors import CalibrationError, SourceError, UsageError
from ggufy.core.hosts import RepoName
from ggufy.core.job import MIX_KINDS, STOCK_MIX, Job, Request
from ggufy.core.names import is_repo_id, model_name, repo_name, stem_of
from ggufy.core.outputs import RWKVCPP, names_of_output
from ggufy.core.source import STREAMED_KINDS, PinnedAdapter, Source, SourceFile
from ggufy.core.words import brief
from ggufy.formats.gguf import MAGIC, GgufHead
from ggufy.jobs.options import MTP, JobOptions
from ggufy.jobs.orders import order_fields
from ggufy.jobs.output_fit import fit_output, quant_types_of, tokenizer_fields
from ggufy.jobs.texts import evaluation_fields, spoken_systems
from ggufy.jobs.values import read_source
from ggufy.models.chat_format import pinned_format
from ggufy.models.chat_names import names_of
from ggufy.quantize.search import mixes
from ggufy.records.store import JobStore
from ggufy.sources import hub
from ggufy.sources.adapter import (
    AdapterSearch,
    AdapterWish,
    adapters_label,
    check_adapters,
    check_separable,
    pin_adapters,
)
from ggufy.sources.format import BaseHead, Report, SourceFormat
from ggufy.sources.inspect import look
from ggufy.sources.locate import is_plain_url, local_file, vocab_with
from ggufy.sources.registry import format_of, format_of_file
from ggufy.sources.url import resolve_url
from ggufy.steps.mmproj import PART_TYPES
from ggufy.steps.outputs import output_of
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.system.user_paths import is_there, user_file, user_path
from ggufy.texts import calibration, writing

_WORTH_A_WORD = 1 << 30  # bytes: reading less takes a moment


@dataclass(frozen=True)
class Watch:
    """How making a job is followed and ended: a large source takes minutes to read, and a server may be silent."""

    stopped: Callable[[], bool] = lambda: False
    report: Callable[[str, float], None] = lambda what, fraction: None

    def sha256(self, path: Path) -> str:
        """Raises Cancelled soon after `stopped()` turned true."""
        size, what = path.stat().st_size, f"reading {path.name}"
        report = (lambda done: self.report(what, done / size)) if size > _WORTH_A_WORD else None
        return sha256(path, report, stopped=self.stopped)


def make_job(options: JobOptions, settings: Settings, watch: Watch | None = None) -> Job:
    """Pins the wish. Raises a GgufyError, in one sentence, for anything that cannot work, and Cancelled soon after
    `watch.stopped()` turned true."""
    watch = watch or Watch()
    if read_source(options.source) == "demo":
        return make_job(_demo_wish(options), settings, watch)
    settings = settings.for_strangers() if options.by_stranger else settings
    options = fit_output(options)
    source = _source(options.source, settings, watch)
    form = format_of(source.kind)
    form.check_output(options.output)
    wish = AdapterWish(texts=options.lora, alpha=options.lora_alpha, init=options.lora_init or "")
    adapters = pin_adapters(wish, AdapterSearch(settings, watch.sha256, watch.stopped), form)
    looked = options.targets or adapters or (source.remote and source.kind not in STREAMED_KINDS)
    looked = looked or options.output == RWKVCPP or source.kind == "hf"
    report = None
    if looked:
        report = look(
            options.source, settings, vocab=options.vocab, output=options.output, forecast=bool(options.targets)
        )
    check_adapters(adapters, report)
    beside: tuple[PinnedAdapter, ...] = ()
    if options.lora_as_file:
        beside, adapters = check_separable(adapters, form), ()
    base = None if source.remote else form.base_head(Path(source.path))
    head, outtype = base if isinstance(base, GgufHead) else None, _outtype(options, base)
    stem = options.name or file_stem(source.path, source.model_id, by_stranger=options.by_stranger)
    stem += "" if options.name else adapters_label(adapters, by_stranger=options.by_stranger)
    name = model_name(stem)
    request = Request(
        name=name,
        repo_id=_repo_id(options, options.owner, stem),
        copies=(_repo_id(options, options.copy_owner, stem),) if options.copy_owner else (),
        private=options.private and bool(options.owner),
        keep_card=options.keep_card and bool(options.owner),
        by_stranger=options.by_stranger,
        source=source,
        quant_types=quant_types_of(options, outtype),
        output=options.output,
        outtype=outtype,
        mix=_mix(options, head),
        awq=options.awq,
        rounding=options.rounding,
        adapters=tuple(one for one, _ in adapters),
        lora_files=beside,
        mmproj=PART_TYPES if report and report.mmproj and options.mmproj == "auto" else (),
        mtp=_mtp(options, report),
        chat_format=_chat_format(options, source, form, head),
        **order_fields(options, report, name, settings),
        **_imatrix_fields(options, settings, watch),
        **_vocab_fields(options, source, form, report),
        speaks=spoken_systems(options, form, head),
    )
    _check_types(request)
    request = replace(request, **evaluation_fields(options, request, settings, stopped=watch.stopped))
    return Job(request=request)


def _mtp(options: JobOptions, report: Report | None) -> str:
    if options.mtp not in MTP:
        raise UsageError("unknown place for heads: one of {places} for {MTP}.", places=", ".join(MTP))
    if options.mtp != MTP[0] and not (report and report.mtp):
        raise UsageError("llama.cpp's converter parts no heads from this model: leave {MTP} out.")
    return options.mtp


def _chat_format(options: JobOptions, source: Source, form: SourceFormat, head: GgufHead | None) -> str:
    """Other models than RWKV keep their own chat template."""
    if form.carries:
        return pinned_format(options.chat_format, (), {})
    return pinned_format(options.chat_format, [options.name or "", *names_of(source)], head.metadata if head else None)


def is_query(text: str, *, hub_only: bool = False) -> bool:
    """True for words to search the Hub for; False for what can be a source already, or can be nothing at all. With
    `hub_only` no file of this machine is one, nor looked for."""
    if text == "demo" or "/" in text or ":" in text or text.startswith((".", "~")):
        return False
    try:
        return hub_only or not is_there(user_path(text))
    except UsageError:
        return False


def file_stem(path: str, model_id: str, *, by_stranger: bool) -> str:
    """What a model is named after: its file; a stranger's also after its account on the Hub, or one could choose a
    file's name so that its results go where the owner's are."""
    account = model_id.partition("/")[0].replace(":", ".")  # `ms.` before one of ModelScope
    stem = stem_of(path, model_id)
    return f"{account}-{stem}" if by_stranger and account else stem


def _demo_wish(options: JobOptions) -> JobOptions:
    evaluate = True if options.evaluate is None else options.evaluate
    return replace(options, source=str(demo.CHECKPOINT), vocab=vocab_with("demo", options.vocab), evaluate=evaluate)


def _repo_id(options: JobOptions, owner: str, stem: str) -> str:
    if not owner:
        if options.repo_id:
            raise UsageError("{REPO} names a repo on the Hub: add --hub hf, or leave it out.")
        return ""
    account = RepoName.of(owner)
    repo_id = options.repo_id or f"{account.repo_id}/{repo_name(stem, options.output)}"
    if not is_repo_id(repo_id):
        raise UsageError(
            "{repo} is no name for a repo: give one such as {example} with {REPO}.",
            repo=repr(brief(repo_id)),
            example=f"{account.repo_id}/my-model-GGUF",
        )
    return str(RepoName(account.host, repo_id))


def _source(text: str, settings: Settings, watch: Watch) -> Source:
    if not settings.hub_only and is_plain_url(text):
        return resolve_url(text, stopped=watch.stopped)
    if path := local_file(text, hub_only=settings.hub_only):
        return _local_source(path, settings, watch)
    return hub.resolve(text, token=settings.token_for(hub.parse_reference(text).host), stopped=watch.stopped)


def _local_source(path: Path, settings: Settings, watch: Watch) -> Source:
    form = format_of_file(path)
    form.base_head(path)
    stat = path.stat()

    def pinned(file: Path) -> SourceFile:
        digest = _known_digest(file, settings) or watch.sha256(file)
        return SourceFile(path=str(file), size=file.stat().st_size, sha256=digest)

    return Source.of_files(
        [pinned(file) for file in form.files_here(path)],
        kind=form.kind,
        mtime_ns=stat.st_mtime_ns,
        public=path == demo.CHECKPOINT.resolve(),
    )


def _known_digest(path: Path, settings: Settings) -> str:
    """The digest that an earlier job computed for the same unchanged file; large files take minutes to read."""
    stat = path.stat()
    for job in JobStore(settings.out).jobs():
        known = job.request.source
        if not known.files and (known.path, known.size, known.mtime_ns) == (str(path), stat.st_size, stat.st_mtime_ns):
            return known.sha256
    return ""


def _outtype(options: JobOptions, head: BaseHead | None) -> str:
    """`head` is that of a source that is a base as it is."""
    known = names_of_output(options.output).outtypes
    if options.outtype is not None and options.outtype not in known:
        raise UsageError(
            "unknown outtype {type}: one of {types}.", type=repr(brief(options.outtype)), types=", ".join(known)
        )
    if head is None:
        return options.outtype or next(iter(known))
    own = head.outtype if isinstance(head, GgufHead) else head.type.lower().replace("fp", "f")
    if options.outtype not in (None, own):
        raise UsageError(
            "this {noun} is {own} and is taken as it is: leave {OUTTYPE} {type} out.",
            noun="GGUF" if isinstance(head, GgufHead) else "file",
            own=own,
            type=options.outtype,
        )
    return own


def _mix(options: JobOptions, head: GgufHead | None) -> str:
    if options.mix not in MIX_KINDS:
        raise UsageError(
            "unknown mix {mix}: one of {mixes}.", mix=repr(brief(options.mix)), mixes=", ".join(MIX_KINDS)
        )
    return STOCK_MIX if head and not mixes.has_recipes(head) else options.mix


def _imatrix_fields(options: JobOptions, settings: Settings, watch: Watch) -> dict[str, Any]:
    if options.imatrix == "none":
        return {"imatrix": "none"}
    if options.imatrix == "auto":
        text = calibration.pin_text(
            options.calibration, settings.cache, token=settings.hf_token, stopped=watch.stopped
        )
        return {
            "calibration": options.calibration,
            "calibration_sha256": text.sha256,
            "calibration_writing": writing.shares_read(text.path, options.chunks),
            "chunks": options.chunks,
        }
    path = user_file(options.imatrix)
    if path is None:
        raise CalibrationError(
            "the imatrix {path} does not exist: give a file, auto or none.", path=brief(options.imatrix)
        )
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise CalibrationError(
                "{name} is no imatrix in GGUF form: make it again with a llama-imatrix of 2025 or later.",
                name=path.name,
            )
    return {"imatrix": "file", "imatrix_path": str(path), "imatrix_sha256": watch.sha256(path)}


def _vocab_fields(options: JobOptions, source: Source, form: SourceFormat, report: Report | None) -> dict[str, Any]:
    if options.output == RWKVCPP and report is not None:
        return tokenizer_fields(options, source, report)
    if options.vocab is None:
        return {}
    if not form.converts:
        raise UsageError("a GGUF carries its vocabulary: leave {VOCAB} out.")
    if form.carries:
        raise UsageError("this model carries its vocabulary: leave {VOCAB} out.")
    path = user_file(options.vocab)
    if path is None:
        raise SourceError(
            "the vocabulary {path} does not exist: check the path given with {VOCAB}.", path=brief(options.vocab)
        )
    return {"vocab_path": str(path), "vocab_sha256": sha256(path)}


def _check_types(request: Request) -> None:
    if request.imatrix == "none":
        types = output_of(request).types
        refused = [name for name in request.quant_types if types[name].needs_imatrix]
        if refused:
            raise UsageError(
                "{types} cannot be made without an imatrix: leave out {NO_IMATRIX}, or them.", types=", ".join(refused)
            )

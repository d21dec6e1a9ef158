"""Exact sizes before anything is made, and whether they fit.

llama-quantize's dry run needs only the head of a base GGUF, so a base that does not exist yet is stood in for by a
sparse file with the right head, which takes no space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggufy.core.errors import DiskError, SourceError, ToolError
from ggufy.core.job import Request
from ggufy.core.plan import CONVERT, EVALUATE, IMATRIX, QUANTIZE, Step, base_name, imatrix_name, makes
from ggufy.core.words import human_size
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.llama import tools
from ggufy.llama.install import Llama
from ggufy.llama.perplexity import logits_bytes
from ggufy.quantize.imatrix import facts_of
from ggufy.quantize.recipe import Forecast, ImatrixFacts, Recipe, core_seconds, forecast, same_tensors, stock_recipe
from ggufy.quantize.search.mixes import RWKV, mixed
from ggufy.quantize.search.target import of_label
from ggufy.sources.gguf_model import check_model
from ggufy.steps.context import Context
from ggufy.steps.convert import pinned_vocab, remote_checkpoint
from ggufy.steps.evaluate import FOLDER, LOGITS_SUFFIX, SPARE, most_chunks
from ggufy.steps.same_model import vocab_size
from ggufy.system.files import allocated_bytes, free_bytes, part_of
from ggufy.texts import calibration

MARGIN = 64 << 20  # bytes that a published job leaves free
MAKING = (CONVERT, IMATRIX, QUANTIZE)


@dataclass(frozen=True, kw_only=True)
class JobForecast:
    """What a job will leave."""

    base: GgufHead
    quants: dict[str, Forecast]  # by quant type
    same_as: dict[str, str]  # quant types with the same tensors as an earlier one -> that one
    targets: dict[str, int] = field(default_factory=dict)  # sizes to order, by label: bytes at most

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every quant; at most so many, if it is made to order."""
        return {name: quant.size for name, quant in self.quants.items()} | self.targets

    @property
    def weights(self) -> int:
        return self.base.elements

    def work(self, types: Iterable[str]) -> dict[str, float]:
        """Core seconds of each of these quant types, made in this order."""
        return core_seconds({name: self.quants[name].recipe for name in types}, self.base)


def forecast_job(ctx: Context, step: Step) -> JobForecast:
    """Recipes and exact sizes of every quant of the job. The source must be on this machine, unless it is streamed."""
    base = ctx.path(base_name(ctx.request))
    if base.exists():
        return _forecast(ctx, step, base)
    if ctx.request.source.kind == "gguf":
        check_loads(ctx, step)
        return _forecast(ctx, step, ctx.source)
    from ggufy.models.convert import write_skeleton, write_skeleton_of  # noqa: PLC0415 - loads torch

    outtype, vocab, name = ctx.request.outtype, pinned_vocab(ctx), ctx.request.name
    skeleton = ctx.settings.cache / "skeletons" / ctx.request.inputs()[:16]  # sparse: other disks may not have that
    try:
        if ctx.streams:
            write_skeleton_of(remote_checkpoint(ctx).shapes, skeleton, outtype=outtype, vocab=vocab, name=name)
        else:
            write_skeleton(ctx.source, skeleton, outtype=outtype, vocab=vocab, name=name)
        return _forecast(ctx, step, skeleton)
    finally:
        skeleton.unlink(missing_ok=True)


def check_loads(ctx: Context, step: Step) -> None:
    """Raises SourceError if llama.cpp cannot load the source, an unquantized GGUF. llama-quantize takes files of which
    tensors are missing, and llama.cpp alone knows which ones an architecture has."""
    check_model(read_head(ctx.source), ctx.source.name)
    ctx.work.mkdir(parents=True, exist_ok=True)
    text = ctx.work / "word.txt"
    text.write_text("word", encoding="utf-8")
    command = tools.load_command(ctx.llama.tool("llama-perplexity"), model=ctx.source.absolute(), text=text.absolute())
    try:
        tools.run_tool(command, ctx.tool_run(step, cwd=ctx.work))
    except ToolError as error:
        if tools.parse_too_short(error.output):
            return  # it was loaded
        if reason := tools.parse_load_error(error.output):
            raise SourceError(
                "llama.cpp cannot load {name} ({reason}): fetch or convert it again, or choose another model.",
                name=ctx.source.name,
                reason=reason,
            ) from error
        raise
    finally:
        text.unlink(missing_ok=True)


def dry_run(llama: Llama, run: tools.ToolRun, base: Path, quant_type: str) -> Recipe:
    """llama-quantize's own recipe for a quant type."""
    return stock_recipe(llama.tool("llama-quantize"), run, base, quant_type)


def peak_bytes(
    *, base: int, imatrix: int, quants: Sequence[int], predictions: int, source: int, published: bool
) -> int:
    """Bytes of disk that a job takes at its worst moment; arguments are sizes in bytes, 0 for what it does not make.

    In a folder all of it stays: the sum. A job that is published lets go of its source when the base GGUF is made, and
    of each quant when it is in the repo: the larger of source + base, and base + imatrix + the largest quant + the
    base's predictions; and MARGIN, which it leaves free. `source` is what the job itself brought here: 0 if it is
    streamed, or is a file of the user's.
    """
    if not published:
        return source + base + imatrix + sum(quants) + predictions
    return max(source + base, base + imatrix + max(quants, default=0) + predictions) + MARGIN


def check_space(ctx: Context, due: Iterable[Step], sizes: JobForecast, *, published: bool = False) -> None:
    """Raises DiskError when what is due does not fit on the disk at its peak, beside what is here of it."""
    due = tuple(due)
    made = {kind: [left_bytes(ctx, step, sizes) for step in due if step.kind == kind] for kind in MAKING}
    measured = [left_bytes(ctx, step, sizes) for step in due if step.kind == EVALUATE]
    here = ctx.source.stat().st_size if made[CONVERT] and ctx.request.source.remote and ctx.source.exists() else 0
    needed = peak_bytes(
        base=sum(made[CONVERT]),
        imatrix=sum(made[IMATRIX]),
        quants=made[QUANTIZE],
        predictions=max(measured, default=0),
        source=here,
        published=published,
    )
    needed -= here
    free = free_bytes(ctx.folder)
    if needed > free:
        raise DiskError(
            "{needed} are needed in {folder} and {free} are free, {missing} too little: choose fewer {TYPES} or "
            "another {OUT}.",
            needed=human_size(needed),
            folder=ctx.folder.absolute(),
            free=human_size(free),
            missing=human_size(needed - free),
        )


def check_download_space(ctx: Context) -> None:
    """Raises DiskError when the source itself does not fit into the cache."""
    free = free_bytes(ctx.source)
    if ctx.request.source.size > free:
        raise DiskError(
            "the source needs {needed} in {folder} and {free} are free: free some space or set GGUFY_CACHE to "
            "another disk.",
            needed=human_size(ctx.request.source.size),
            folder=ctx.settings.cache,
            free=human_size(free),
        )


def left_bytes(ctx: Context, step: Step, sizes: JobForecast) -> int:
    """What a step's product, or what it works with, still needs on the disk: an earlier run may have left a part."""
    if step.kind == EVALUATE:
        return _left_predictions(ctx, sizes)
    return max(0, product_size(ctx.request, step, sizes) - allocated_bytes(part_of(ctx.path(step.product))))


def predictions_bytes(base: GgufHead, chunks: int) -> int:
    """Free bytes that measuring asks for: the base's predictions, which all quants share, and what stays free."""
    return logits_bytes(vocab_size(base), chunks) + SPARE


def _left_predictions(ctx: Context, sizes: JobForecast) -> int:
    request = ctx.request
    text = calibration.pinned(ctx.settings.cache, request.evaluation_sha256)
    chunks = min(request.evaluation_chunks, most_chunks(text)) if text else request.evaluation_chunks
    here = sum(path.stat().st_size for path in (ctx.work / FOLDER).glob(f"*{LOGITS_SUFFIX}"))
    whole = here >= logits_bytes(vocab_size(sizes.base), chunks)
    return 0 if whole else predictions_bytes(sizes.base, chunks) - here


def product_size(request: Request, step: Step, sizes: JobForecast) -> int:
    """Bytes of a step's product."""
    if step.kind == QUANTIZE:
        return sizes.sizes[step.quant_type]
    if step.kind == CONVERT:
        return sizes.base.file_size
    if step.kind == IMATRIX:
        return imatrix_bytes(sizes)
    return 0


def product_sizes(request: Request, sizes: JobForecast) -> dict[str, int]:
    """Bytes of every file of the result, by its name."""
    return {step.product: product_size(request, step, sizes) for step in makes(request)}


def imatrix_bytes(sizes: JobForecast) -> int:
    """No imatrix is larger: one F32 row per tensor and matrix."""
    return sum(4 * tensor.shape[0] + 512 for tensor in sizes.base.tensors.values() if len(tensor.shape) > 1)


def _forecast(ctx: Context, step: Step, base: Path) -> JobForecast:
    facts = _imatrix_facts(ctx)
    run = ctx.tool_run(step, cwd=base.absolute().parent)
    types, mix = ctx.request.quant_types, ctx.request.mix
    found = forecast_types(base, types, llama=ctx.llama, run=run, facts=facts, mix=mix)
    return replace(found, targets=target_sizes(found.base, ctx.request.targets))


def target_sizes(base: GgufHead, labels: Iterable[str]) -> dict[str, int]:
    """Bytes of files that are made to order, at most, by label."""
    weights, head = base.elements, base.data_start
    return {label: of_label(label)[0].file_budget(weights=weights, head=head) for label in labels}


def forecast_types(
    base: Path,
    types: Iterable[str],
    *,
    llama: Llama,
    run: tools.ToolRun,
    facts: ImatrixFacts | None,
    mix: str = RWKV,
) -> JobForecast:
    """What quants of a base (or of its skeleton) will be; `facts` are of the imatrix that they will name."""
    head = read_head(base)
    recipes = {t: mixed(head, t, stock=dry_run(llama, run, base, t), mix=mix) for t in types}
    return JobForecast(
        base=head,
        quants={t: forecast(head, recipe, facts) for t, recipe in recipes.items()},
        same_as=same_tensors(recipes),
    )


def _imatrix_facts(ctx: Context) -> ImatrixFacts | None:
    """What the imatrix will say about itself, or says, if it is the user's."""
    request = ctx.request
    if request.imatrix == "none":
        return None
    if request.imatrix == "file":
        given = Path(request.imatrix_path)
        return replace(facts_of(given, read_head(given)), file=imatrix_name(request))
    text = calibration.pinned(ctx.settings.cache, request.calibration_sha256)
    return ImatrixFacts(file=imatrix_name(request), dataset=text.name if text else "")

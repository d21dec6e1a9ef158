"""Sizes to order: from what a user types to the labels in a request."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufy.core.errors import UsageError
from ggufy.core.job import Request
from ggufy.core.metrics import memory_needed
from ggufy.core.outputs import GGUF
from ggufy.core.words import brief, human_size
from ggufy.jobs.options import JobOptions
from ggufy.jobs.skeleton import write_skeleton
from ggufy.llama.install import find
from ggufy.quantize.search import target as sizes
from ggufy.sources.format import Report
from ggufy.sources.registry import format_of
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path


def order_fields(options: JobOptions, report: Report | None, name: str, settings: Settings) -> dict[str, Any]:
    """Fields of a Request: sizes to order, by the labels that their files will have, which are not computed again;
    `name` is the model's.

    Raises UsageError for sizes that the model cannot have, SourceError for a model that cannot be converted.
    """
    if options.mode not in ("", *sizes.MODES):
        raise UsageError(
            "unknown mode {mode}: one of {modes}.", mode=repr(brief(options.mode)), modes=", ".join(sizes.MODES)
        )
    targets = [sizes.parse_word(word) for word in options.targets]
    if not targets or report is None:
        return {"mode": "" if options.mode == sizes.FAST else options.mode}
    base = _base_size(options, report, name, settings)
    labels = dict.fromkeys(_label(target, report.parameters, base) for target in targets)
    return {"targets": tuple(labels), "mode": options.mode or sizes.STANDARD}


def _base_size(options: JobOptions, report: Report, name: str, settings: Settings) -> int:
    """Bytes of the unquantized GGUF; about so many where it cannot be foreseen."""
    form, outtype = format_of(report.kind), options.outtype or "f16"
    llama = None if form.forecasts else find(settings.cache, settings.llama_dir)
    vocab = user_path(options.vocab) if options.vocab else None
    with tempfile.TemporaryDirectory(prefix="ggufy-") as folder:
        skeleton = Path(folder) / "skeleton.gguf"
        if write_skeleton(report, skeleton, settings, llama=llama, outtype=outtype, vocab=vocab, name=name):
            return skeleton.stat().st_size
    return form.base_bytes(report, outtype)


def _label(target: sizes.Target, weights: int, base: int) -> str:
    least = math.ceil(sizes.LEAST_BPW * weights / 8)
    budget = target.file_budget(weights=weights, head=0)  # its head, some hundred kB, is not known yet
    if budget < least:
        needed = human_size(memory_needed(least) if target.kind == sizes.MEMORY else least)
        raise UsageError(
            "{target} is too small for this model, which needs more than {size}: ask for more.",
            target=target.text,
            size=needed,
        )
    if budget >= base:
        raise UsageError(
            "{size} is no less than the unquantized file, which has {base}: take that, it is made with every job, "
            "or order a smaller size.",
            size=target.text,
            base=human_size(base),
        )
    return sizes.label(target, weights=weights, head=0)


def ordered(request: Request, *labels: str, mode: str = sizes.STANDARD) -> Request:
    """For sizes to order (`labels`) of what a job was made from; without any, for finding what every size is worth.
    Only GGUFs are made to order."""
    return replace(request, quant_types=(), output=GGUF, targets=labels, mode=mode)

"""From what a visitor has set in the form to options: the values may be anything."""

from __future__ import annotations

from typing import Any

from ggufy.core.catalog import OUTTYPES
from ggufy.core.errors import UsageError
from ggufy.jobs.estimate import EstimateOptions, chosen
from ggufy.jobs.request import JobOptions
from ggufy.quantize.search.mixes import KINDS, RWKV
from ggufy.quantize.search.target import MODES, STANDARD, parse_words

IMATRIX = ("bundled", "own", "have", "off")
MOST_CHARS = 2000  # of a field


def short_text(value: Any) -> str:
    """A visitor's text, or nothing."""
    return value.strip()[:MOST_CHARS] if isinstance(value, str) else ""


def estimate_options(types: Any, imatrix: Any, evaluate: Any, targets: Any, mode: Any) -> EstimateOptions:
    return EstimateOptions(
        quant_types=chosen([name for name in types if isinstance(name, str)] if isinstance(types, list) else []),
        imatrix=imatrix != "off",
        evaluate=bool(evaluate),
        targets=parse_words(short_text(targets)),
        mode=mode if mode in MODES else STANDARD,
    )


def outtype_or_none(value: Any) -> str | None:
    return value if value in OUTTYPES else None


def kind_of_mix(mix: Any) -> str:
    return mix if mix in KINDS else RWKV


def job_options(values: list[Any]) -> JobOptions:
    source, types, imatrix, imatrix_path, outtype, evaluate, evaluation, vocab, name, *more = values
    repo, private, mix, targets, mode, keep_card = more
    texts = (source, imatrix, imatrix_path, outtype, evaluation, vocab, name, repo, mix, targets, mode)
    if not isinstance(types, list) or not all(v is None or isinstance(v, str) for v in (*texts, *types)):
        raise UsageError("the form came back damaged: reload the page.")
    words = parse_words(short_text(targets))
    if not types and not words:
        raise UsageError("no quant type chosen: check at least one.")
    path = short_text(imatrix_path)
    if imatrix in ("own", "have") and not path:
        raise UsageError(
            "no text or imatrix given: fill in “Calibration text or imatrix file”, or choose another way."
        )
    from_text = imatrix not in ("have", "off")
    return JobOptions(
        source=short_text(source),
        quant_types=quant_types(types),
        outtype=None if outtype in ("auto", "", None) else outtype,
        imatrix="auto" if from_text else path if imatrix == "have" else "none",
        calibration=path if imatrix == "own" else "bundled",
        evaluate=bool(evaluate),
        evaluation=short_text(evaluation) or "bundled",
        vocab=short_text(vocab) or None,
        name=short_text(name) or None,
        repo_id=short_text(repo) or None,
        private=bool(private),
        keep_card=bool(keep_card),
        mix=mix or RWKV,
        targets=words,
        mode=(mode or STANDARD) if words else "",
    )


def quant_types(names: list[str]) -> tuple[str, ...]:
    known = chosen(names)
    if len(known) < len(set(names)):
        raise UsageError("the form came back damaged: reload the page.")
    return known

"""What a wish may ask for in the format of its quants, and what that format does without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufy.core.catalog import make_order
from ggufy.core.errors import UsageError, VocabError
from ggufy.core.job import COMPENSATED, PLAIN, STOCK_MIX
from ggufy.core.outputs import GGUF, RWKVCPP, names_of_output
from ggufy.core.source import Source
from ggufy.core.words import brief
from ggufy.jobs.options import BY_NAME, ROUNDINGS, JobOptions
from ggufy.models.chat_format import AUTO
from ggufy.rwkvcpp.tokenizer import AUTO as AUTO_TOKENIZER
from ggufy.rwkvcpp.tokenizer import PILE_NAMES, PILE_ROWS, tokenizer_of
from ggufy.sources.format import Report
from ggufy.system.files import sha256
from ggufy.system.user_paths import user_file


def fit_output(options: JobOptions) -> JobOptions:
    """The wish without what files of its format do not have. Raises UsageError for a format that is not known, and for
    what was asked for and cannot be."""
    names_of_output(options.output)
    if options.output != RWKVCPP:
        return _fit_rounding(_fit_awq(options))
    _check_rwkvcpp(options)
    only_f16 = options.quant_types == ("FP16",)  # nothing would be made of an FP32 file but this
    outtype = options.outtype or ("f16" if only_f16 else None)
    return replace(options, imatrix="none", mix=STOCK_MIX, outtype=outtype, rounding=PLAIN)


def _fit_awq(options: JobOptions) -> JobOptions:
    """AWQ needs an imatrix, and figures."""
    if not options.awq:
        return options
    if options.imatrix == "none":
        raise UsageError("AWQ follows the imatrix: leave out {NO_IMATRIX}, or {AWQ}.")
    if options.evaluate is False:
        raise UsageError("AWQ is kept where it lowers what measuring finds: measure the quants, or leave out {AWQ}.")
    return replace(options, evaluate=True)


def _fit_rounding(options: JobOptions) -> JobOptions:
    """How codes are rounded, if that was left open: compensated, unless there is no text to collect covariances from,
    or llama-quantize's own recipes were asked for, which go with its own codes. Neither types nor sizes matter here,
    since jobs that differ only in these share a folder."""
    if options.rounding not in ROUNDINGS:
        raise UsageError(
            "unknown rounding {rounding}: one of {roundings}.",
            rounding=repr(brief(options.rounding)),
            roundings=", ".join(ROUNDINGS),
        )
    if options.rounding == COMPENSATED:
        if options.imatrix != "auto":
            raise UsageError(
                "compensated codes come from the text that the imatrix is made from: leave out {IMATRIX}, or "
                "{COMPENSATED}."
            )
        if options.awq:
            raise UsageError("codes are not compensated for channels with scales: leave out {AWQ}, or {COMPENSATED}.")
    return replace(options, rounding=chosen_rounding(options))


def chosen_rounding(options: JobOptions) -> str:
    """PLAIN or COMPENSATED, of options that need not go together."""
    open_to_it = options.output != RWKVCPP and options.imatrix == "auto" and not options.awq
    if open_to_it and options.rounding == ROUNDINGS[0]:
        return PLAIN if options.mix == STOCK_MIX else COMPENSATED
    return COMPENSATED if open_to_it and options.rounding == COMPENSATED else PLAIN


def _check_rwkvcpp(options: JobOptions) -> None:
    if options.imatrix not in ("auto", "none") or _asked(options, "calibration") or _asked(options, "chunks"):
        raise UsageError("files of rwkv.cpp are made without an imatrix: leave it and its text out.")
    if options.targets or options.mode:
        raise UsageError("files of rwkv.cpp are not made to order: choose types instead of sizes.")
    if _asked(options, "mix"):
        raise UsageError("rwkv.cpp has recipes of its own: leave out whose they are.")
    if options.rounding == COMPENSATED:
        raise UsageError("files of rwkv.cpp are made with plain codes: leave {COMPENSATED} out.")
    if options.awq:
        raise UsageError("files of rwkv.cpp are made without AWQ: leave {AWQ} out.")
    if options.chat_format != AUTO:
        raise UsageError("files of rwkv.cpp hold no chat format: leave it out.")


def _asked(options: JobOptions, name: str) -> bool:
    """Whether an option has another value than by default."""
    value: Any = getattr(options, name)
    return bool(value != BY_NAME[name].default)


def tokenizer_fields(options: JobOptions, source: Source, report: Report) -> dict[str, Any]:
    """Fields of a request for files of rwkv.cpp that say in which tokens the model reads: of the file that was given
    or, for a model of the Pile, lies beside it. Raises VocabError for one that does not fit, and if there is none
    where quants are to be measured."""
    model, rows = Path(source.path), report.vocab_size
    path = user_file(options.vocab) if options.vocab else None
    if options.vocab and path is None:
        raise VocabError(
            "the vocabulary {path} does not exist: check the path given with {VOCAB}.", path=brief(options.vocab)
        )
    if path is None and rows == PILE_ROWS and not source.remote:
        path = next((one for name in PILE_NAMES if (one := model.with_name(name)).is_file()), None)
    if path is not None or options.evaluate:
        tokenizer_of(model, rows, str(path) if path else AUTO_TOKENIZER)
    return {"vocab_path": str(path), "vocab_sha256": sha256(path)} if path else {}


def quant_types_of(options: JobOptions, outtype: str) -> tuple[str, ...]:
    """In the order of making; a type that the base has already is not made again."""
    names = names_of_output(options.output)
    base = "" if options.output == GGUF else names.outtypes.get(outtype, "")
    if base == "FP16" and "FP32" in options.quant_types:
        raise UsageError("an FP32 file is not made from FP16: leave out {OUTTYPE}, or FP32.")
    return make_order(set(options.quant_types) - {base}, names.types)

"""From what a visitor has set in the form to options: the values may be anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufy.core.catalog import OUTTYPES
from ggufy.core.errors import UsageError
from ggufy.core.job import COMPENSATED, MIX_KINDS, RWKV_MIX
from ggufy.core.outputs import GGUF, OUTPUT_NAMES, RWKVCPP
from ggufy.jobs.estimate import BaseOptions, EstimateOptions, chosen
from ggufy.jobs.options import BY_NAME, OPTIONS, ROUNDINGS, JobOptions
from ggufy.jobs.output_fit import chosen_rounding
from ggufy.jobs.texts import named_texts
from ggufy.jobs.values import LONGEST, read_options, read_text
from ggufy.quantize.search.target import MODES, STANDARD, parse_words

_ONLY_GGUF = {"imatrix", "imatrix_path", "chunks", "mix", "targets", "mode", "chat_format", "awq", "rounding"}
_ONLY_GGUF |= {"mtp", "mmproj"}
IMATRIX = ("bundled", "own", "have", "off")


def short_text(value: Any) -> str:
    """A visitor's text, or nothing."""
    return value.strip()[:LONGEST] if isinstance(value, str) else ""


def _count(values: Mapping[str, Any], name: str) -> int:
    """A visitor's number of chunks, or the usual one."""
    value = values.get(name)
    usual: int = BY_NAME[name].default
    return value if type(value) is int and value >= 0 else usual


def estimate_options(values: Mapping[str, Any]) -> EstimateOptions:
    """What decides the cost, from the fields of the form as `job_options` takes them."""
    types, mode = values.get("types"), values.get("mode")
    return EstimateOptions(
        quant_types=chosen([name for name in types if isinstance(name, str)] if isinstance(types, list) else []),
        imatrix=values.get("imatrix") != "off",
        chunks=_count(values, "chunks"),
        evaluate=bool(values.get("evaluate")),
        texts=len(named_texts(short_text(values.get("evaluation")))),
        evaluation_chunks=_count(values, "evaluation_chunks"),
        targets=parse_words(short_text(values.get("targets"))),
        mode=mode if mode in MODES else STANDARD,
    )


def base_options(values: Mapping[str, Any]) -> BaseOptions:
    """What decides the base, likewise."""
    output, mix, rounding, outtype = (values.get(name) for name in ("output", "mix", "rounding", "outtype"))
    wish = JobOptions(
        source="",
        quant_types=(),
        output=output if output in tuple(OUTPUT_NAMES) else GGUF,
        mix=mix if mix in MIX_KINDS else RWKV_MIX,
        imatrix="auto" if values.get("imatrix") in ("bundled", "own") else "none",
        awq=bool(values.get("awq")),
        rounding=rounding if rounding in ROUNDINGS else ROUNDINGS[0],
    )
    return BaseOptions(
        outtype=outtype if outtype in OUTTYPES else None,
        vocab=short_text(values.get("vocab")) or None,
        mix=wish.mix,
        output=wish.output,
        compensated=chosen_rounding(wish) == COMPENSATED,
    )


def job_options(values: Mapping[str, Any]) -> JobOptions:
    """Options from the fields of the form, by what the page calls them (`Option.page`)."""
    if values.get("output") == RWKVCPP:
        values = {name: value for name, value in values.items() if name not in _ONLY_GGUF}
    if not values.get("types") and not values.get("targets"):
        raise UsageError("no quant type chosen: check at least one.")
    given = {option.name: values.get(option.page) for option in OPTIONS if option.page}
    kind, path = values.get("imatrix"), read_text("imatrix_path", values.get("imatrix_path"))
    if kind in ("own", "have") and not path:
        raise UsageError(
            "no text or imatrix given: fill in “Calibration text or imatrix file”, or choose another way."
        )
    given["imatrix"] = {"have": path, "off": "none"}.get(str(kind), "auto")
    given["calibration"] = path if kind == "own" else None
    given |= {name: None for name in ("outtype", "mtp") if values.get(name) == "auto"}
    if not values.get("targets"):
        given["mode"] = None
    return read_options(values.get("source"), given)

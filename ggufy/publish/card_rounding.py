"""What a card says of how codes were rounded."""

from __future__ import annotations

from collections.abc import Mapping

from ggufy.core.job import COMPENSATED, Job, Making
from ggufy.core.plan import quant_name
from ggufy.quantize.search import target

_COMPENSATED = (
    "The codes are compensated: each column of a matrix makes up for the rounding errors of those before it, weighed "
    "by the covariance of its inputs over the calibration text (GPTQ, with the scales of ggml's kernels). A matrix "
    "keeps the kernels' own codes where that does not lower its output error on a part of the text that was held out. "
    "Types and sizes are the same, `ggufy.rounding` in the metadata says it, and unmodified llama.cpp reads the files."
)
_PLAIN = "Compensated codes were asked for, but {quants} {have} plain ones, without covariances of the inputs: {why}."


def rounding_lines(job: Job, making: Mapping[str, Making]) -> list[str]:
    """Which quants have compensated codes, and why others that were to have them do not; nothing where none were."""
    request = job.request
    found = {
        target.short(quant) if quant in request.targets else quant: made
        for quant in request.quants
        if (made := making.get(quant_name(request, quant))) and made.rounding
    }
    lines = ["", _COMPENSATED] if any(made.rounding == COMPENSATED for made in found.values()) else []
    reasons: dict[str, list[str]] = {}
    for name, made in found.items():
        if made.rounding != COMPENSATED:
            reasons.setdefault(made.plain_because, []).append(f"`{name}`")
    for why, names in reasons.items():
        have = "have" if len(names) > 1 else "has"
        lines += ["", _PLAIN.format(quants=", ".join(names), have=have, why=why)]
    return lines

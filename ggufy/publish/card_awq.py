"""What a card says of activation-aware scales."""

from __future__ import annotations

from collections.abc import Mapping

from ggufy.core.job import Job, Making
from ggufy.core.plan import quant_name
from ggufy.quantize.search import target

_AWQ = (
    "Activation-aware scales (AWQ) were tried: channels that matter are multiplied before quantizing, and what is in "
    "front of them is divided, so that the model computes the same. Each quant was made and measured with and without "
    "them. Adapters for the model itself do not fit a file that has them."
)


def awq_lines(job: Job, making: Mapping[str, Making]) -> list[str]:
    """Which quants got the scales, and what these gained or would have cost; nothing where they were not tried."""
    lines = []
    for quant in job.request.quants:
        made = making.get(quant_name(job.request, quant), Making())
        if made.awq is None:
            continue
        told = "no matrix gained"
        if made.plain_kld is not None and made.awq_kld is not None:
            told = f"KLD {made.awq_kld:.4f} with them, {made.plain_kld:.4f} without"
        label = target.short(quant) if quant in job.request.targets else quant
        lines.append(f"- `{label}`: {'kept' if made.awq else 'not kept'} ({told})")
    return ["", _AWQ, "", *lines] if lines else []

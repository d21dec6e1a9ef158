"""The words for quant types that people write, by the format of the quants."""

from __future__ import annotations

from ggufy.core.catalog import parse_types
from ggufy.core.outputs import RWKVCPP, names_of_output
from ggufy.rwkvcpp.types import parse_type

_SETS = ("all", "recommended", "none")


def read_types(text: str, output: str) -> tuple[str, ...]:
    """Quant types of a format in the order of making. Raises UsageError for what is none, and says of a type that
    rwkv.cpp has no more what came instead."""
    if output == RWKVCPP:
        words = filter(None, (word.strip() for word in text.split(",")))
        text = ",".join(word if word.lower() in _SETS else parse_type(word) for word in words)
    return parse_types(text, names_of_output(output).types)

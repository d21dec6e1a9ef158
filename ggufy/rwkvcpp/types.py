"""The types that files of rwkv.cpp are made in, as its quantizer offers them, and what people call them."""

from __future__ import annotations

from ggufy.core.errors import UsageError
from ggufy.core.words import brief
from ggufy.formats.rwkvcpp import OLD_TYPES, REMOVED

UNQUANTIZED = ("FP32", "FP16")
QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K")
OFFERED = UNQUANTIZED + QUANTIZED
_SPELLINGS = {"F32": "FP32", "F16": "FP16", "FLOAT32": "FP32", "FLOAT16": "FP16"}
# Its quantizer of April 2023 took these instead of names.
_NUMBERS = {str(one.number): one.name for one in OLD_TYPES.values()}


def parse_type(word: str) -> str:
    """The type that is meant: a name in any spelling of rwkv.cpp's, or the number that its quantizer took in 2023.

    Raises UsageError for any other, and says of a removed one what came instead.
    """
    name = word.strip().upper()
    name = _NUMBERS.get(name, _SPELLINGS.get(name, name))
    if gone := REMOVED.get(name):
        raise UsageError(
            "{type} was removed from rwkv.cpp on {date}, and nothing reads it any more: choose {instead}.",
            type=name,
            date=gone.date,
            instead=gone.instead,
        )
    if name not in OFFERED:
        raise UsageError(
            "rwkv.cpp has no type {type}: choose one of {types}.", type=brief(word), types=", ".join(OFFERED)
        )
    return name

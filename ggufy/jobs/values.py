"""Values of options that may be anything, read with a sentence for what is none: texts, lists and numbers, and all
options of a job from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ggufy.core.errors import UsageError
from ggufy.jobs.options import OPTIONS, JobOptions, Kind, Option
from ggufy.jobs.type_words import read_types
from ggufy.quantize.search.target import parse_words

LONGEST = 4096  # characters of a text, as of a path
MOST = 256  # words of a list


def read_text(name: str, value: object) -> str:
    """A text without blanks around it; empty for null. Raises UsageError for anything else."""
    if value is not None and not isinstance(value, str):
        raise UsageError("{name} must be text: put it between quotes.", name=name)
    if len(text := (value or "").strip()) > LONGEST:
        raise UsageError(
            "{name} has {count} characters: use at most {most}.", name=name, count=len(text), most=LONGEST
        )
    return text


def read_list(name: str, value: object) -> list[str]:
    """Its texts, or the only one; empty ones are left out. Raises UsageError."""
    words = value if isinstance(value, list | tuple) else [value]
    if len(words) > MOST:
        raise UsageError("{name} has {count} words: use at most {most}.", name=name, count=len(words), most=MOST)
    return [text for word in words if (text := read_text(name, word))]


def read_number(name: str, value: object) -> float | None:
    """None for null or nothing. Raises UsageError for what is no number."""
    try:
        if value is None or value == "":
            return None
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise UsageError("{name} must be a number, such as 32.", name=name)


def read_options(
    source: object, values: Mapping[str, object], called: Callable[[Option], str] = lambda option: option.name
) -> JobOptions:
    """Options from what was typed, chosen or sent, by their names; what is missing, null or empty is the default.

    `called` gives what an option is called where its value comes from. Raises UsageError for a value of the wrong
    kind; which values there are says make_job.
    """
    given = {option.name: _read(option, values.get(option.name), called(option)) for option in OPTIONS}
    given["targets"] = parse_words(given["targets"])
    types = given["quant_types"] or ("none" if given["targets"] else "recommended")
    given["quant_types"] = read_types(types, given["output"])
    return JobOptions(source=read_source(source), **given)


def read_source(value: object) -> str:
    """Raises UsageError if there is none."""
    if text := read_text("source", value):
        return text
    raise UsageError("no source given: enter demo, a path, or owner/repo:file.pth.")


def _read(option: Option, value: object, name: str) -> Any:
    match option.kind:
        case Kind.WORDS:
            return ",".join(read_list(name, value))
        case Kind.PLACES:
            return tuple(read_list(name, list(parse_words(value)) if isinstance(value, str) else value))
        case Kind.FLAG if value is not None and not isinstance(value, bool):
            raise UsageError("{name} must be true or false.", name=name)
        case Kind.NUMBER if value is not None and (type(value) is not int or value < 0):  # True is an int, too
            raise UsageError("{name} must be a whole number, and not negative.", name=name)
        case Kind.REAL:
            return read_number(name, value)
        case Kind.TEXT:
            return read_text(name, value) or option.default
    return option.default if value is None else value

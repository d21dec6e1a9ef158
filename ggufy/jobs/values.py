"""Values of options that may be anything: texts, lists and numbers, read with a sentence for what is none."""

from __future__ import annotations

from ggufy.core.errors import UsageError

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

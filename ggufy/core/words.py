"""Numbers and texts as people read them."""

from __future__ import annotations

_LONGEST_QUOTE = 200  # letters of what somebody typed


def brief(text: str) -> str:
    """The beginning of what may be a whole page, for a sentence."""
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def human_size(size: float) -> str:
    """Bytes as people read them: decimal units, three digits."""
    for unit in ("B", "kB", "MB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def human_time(seconds: float) -> str:
    """Seconds as `4.2 s`, `42 s`, `3 min 10 s` or `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

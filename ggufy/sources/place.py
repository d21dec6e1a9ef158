"""Where a source is, as the user typed it: on this machine, at a plain address, or on the Hub."""

from __future__ import annotations

from pathlib import Path

from ggufy import demo
from ggufy.errors import SourceError
from ggufy.sources import hub


def is_plain_url(text: str) -> bool:
    """True for an http(s) address that is not one of the Hub's own. Raises SourceError if it makes no sense."""
    try:
        return text.startswith(("https://", "http://")) and not hub.is_reference(text)
    except ValueError as error:
        raise SourceError(f"{text} is no address that can be fetched ({error}): check it.") from error


def local_file(text: str, *, hub_only: bool = False) -> Path | None:
    """The file on this machine that is meant, with its links followed, or None if it can only be on the Hub; with
    `hub_only` no file but the demo's is looked for.

    Raises SourceError if a file here is meant that is not there.
    """
    if text == "demo" or hub_only:
        return demo.CHECKPOINT.resolve() if text in ("demo", str(demo.CHECKPOINT)) else None
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return path.resolve()
    except (OSError, RuntimeError) as error:  # too long a name, a folder that may not be entered, ~somebody unknown
        raise SourceError(f"{text[:80]} cannot be looked at: give the path of a .pth, or owner/repo.") from error
    looks_local = ":" not in text and (
        text.count("/") != 1 or text.startswith((".", "/", "~")) or text.endswith((".pth", ".gguf"))
    )
    if path.exists() or looks_local:
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SourceError(f"{text} {what}: give a .pth file, an unquantized .gguf, owner/repo:file.pth, or demo.")
    return None

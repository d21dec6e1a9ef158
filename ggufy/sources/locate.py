"""Where a source is, as the user typed it: on this machine, at a plain address, or on the Hub."""

from __future__ import annotations

from pathlib import Path

from ggufy import demo
from ggufy.core.errors import SourceError, UsageError
from ggufy.core.words import brief
from ggufy.sources import hub
from ggufy.sources.registry import format_of_name, models_among, unnamed_among
from ggufy.system.user_paths import is_there, user_file, user_path, user_text

_MOST_LISTED = 40  # files of a folder


def is_plain_url(text: str) -> bool:
    """True for an http(s) address that is not one of the Hub's own. Raises SourceError if it makes no sense."""
    return text.startswith(("https://", "http://")) and not hub.is_reference(text)


def models_in(folder: str) -> list[Path]:
    """The models of a folder on this machine to choose from, the first of many; none if it is no folder that can be
    read, or has only one, which the folder then stands for."""
    try:
        path = user_path(folder)
        if not path.is_dir():
            return []
        found = [entry for entry in path.iterdir() if format_of_name(entry.name) and entry.is_file()]
    except (OSError, UsageError):  # no permission, no path at all
        return []
    return sorted(found)[:_MOST_LISTED] if len(found) > 1 else []


def local_file(text: str, *, hub_only: bool = False) -> Path | None:
    """The file on this machine that is meant, with its links followed, or None if it can only be on the Hub; with
    `hub_only` no file but the demo's is looked for.

    Raises SourceError if a file here is meant that is not there, UsageError for what can be no path.
    """
    if text == "demo" or hub_only:
        return demo.CHECKPOINT.resolve() if text in ("demo", str(demo.CHECKPOINT)) else None
    if file := user_file(text):
        return file
    path = user_path(text)
    looks_local = ":" not in text and (
        text.count("/") != 1 or text.startswith((".", "/", "~")) or format_of_name(text) is not None
    )
    if looks_local or is_there(path):
        if is_there(path) and path.is_dir():
            return _only_model(path.resolve(), text)
        raise SourceError(
            "{text} does not exist: give a .pth file, an unquantized .gguf, owner/repo:file.pth, or demo.",
            text=brief(text),
        )
    return None


def vocab_with(text: str, given: str | None) -> str | None:
    """The vocabulary file of what was typed: the one that was given, or the demo's own."""
    return given or (str(demo.VOCAB) if text in ("demo", str(demo.CHECKPOINT)) else None)


def _only_model(folder: Path, text: str) -> Path:
    """The one model of a folder that need not be named. Raises SourceError if there is none, or several."""
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    except OSError as error:
        raise SourceError(
            "{path} cannot be read ({reason}): check its permissions.", path=brief(text), reason=error.strerror
        ) from error
    unnamed = sorted(unnamed_among(models_among(names)))
    if not unnamed:
        raise SourceError(
            "{text} is a folder: give a .pth file, an unquantized .gguf, owner/repo:file.pth, or demo.",
            text=brief(text),
        )
    if len(unnamed) > 1:
        raise SourceError(
            "{text} holds {count} models: name one, for example {example}.",
            text=brief(text),
            count=len(unnamed),
            example=brief(unnamed[0]),
        )
    user_text(unnamed[0])
    return folder / unnamed[0]

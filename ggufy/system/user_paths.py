"""What somebody typed, as a path: the one way in for every path that people give."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ggufy.core.errors import UsageError
from ggufy.core.words import brief


def user_text(text: str) -> str:
    """What somebody typed, if it can stand in a record, an address or a sentence. Raises UsageError if not: names of
    files may be any bytes, and those that are no text come with lone surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            "the name {text} is not UTF-8: rename that file or folder.", text=repr(brief(text))
        ) from error
    return text


def user_path(text: str | Path) -> Path:
    """The path that somebody typed: `~` and `~name` are the home folders that they are in a shell.

    Every path that people give comes through here. Raises UsageError for one that can name nothing.
    """
    text = user_text(str(text))
    if not text.strip() or "\0" in text:
        raise UsageError("{text} is no path: give that of a file or a folder.", text=repr(brief(text)))
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody unknown, or nobody knows where home is
        raise UsageError("there is no home folder for {text}: write the path in full.", text=brief(text)) from error


def user_file(text: str | Path) -> Path | None:
    """The file that somebody typed, with its links followed; None if there is none, and none can be. Raises UsageError
    for a text that names nothing, or one that may not be looked at."""
    path = user_path(text)
    if not is_there(path) or not path.is_file():
        return None
    path = path.resolve()
    user_text(str(path))
    if not os.access(path, os.R_OK):
        raise _unreadable(path, os.strerror(errno.EACCES))
    return path


def is_there(path: Path) -> bool:
    """True if there is a file, a folder or something else. Raises UsageError if that cannot be known."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # 255 bytes a name on most disks
            return False
        raise _unreadable(path, error.strerror) from error


def _unreadable(path: Path, reason: str | None) -> UsageError:
    return UsageError("{path} cannot be read ({reason}): check its permissions.", path=brief(str(path)), reason=reason)

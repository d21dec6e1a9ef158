"""Every error that ggufy raises on purpose: a template and its values (see messages.py), one sentence that says what
to do next. What comes from outside is a value, never a template.

GgufyError
├── UsageError            the request itself is wrong: an unknown quant type, two options that exclude each other
├── SourceError           the source cannot be opened or is not what it should be
│   ├── CheckpointError   a .pth that is missing, cut, no checkpoint, or has wrong, missing or non-finite tensors
│   ├── VocabError        a vocabulary that is broken or of the wrong size
│   ├── SourceAway        its server cannot be reached or is out of order: it passes
│   ├── CannotStream      it can only be had as a whole: it has to be downloaded
│   └── SourceChanged     the server holds another file now than the one that was pinned
├── CalibrationError      calibration text too short, or an imatrix that does not fit the model
├── ToolError             a llama.cpp tool is missing, too old, or failed
├── DiskError             too little free space, or no permission to write
├── HubError              a repo cannot be read or written
│   ├── HubAway           the Hub cannot be reached or is out of order: it passes
│   ├── QuotaError        too many requests or commits: it passes after `retry_after` seconds
│   ├── TokenError        the token is missing, expired, or may not write: its owner must act
│   ├── StorageError      the account has no room left, or the Hub wants to be paid: its owner must act
│   ├── RepoMissing       the repo does not exist (any more)
│   ├── StaleParent       the repo has moved on since it was read
│   └── LeaseLost         another runner has taken the work over
├── BusyError             another run holds the folder
└── Cancelled             the user ended the job
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import PurePath

from ggufy.core.messages import Message, message_of
from ggufy.core.scrub import scrub


class GgufyError(Exception):
    """Base class; the command line shows its text as one line and exits with 1."""

    def __init__(self, template: str = "", /, **values: object):
        super().__init__(template if isinstance(template, Message) else Message(template, **values))

    @property
    def message(self) -> str:
        """The text, with what it was made from."""
        return message_of(self)


class UsageError(GgufyError):
    """The request is wrong; the command line exits with 2."""


class SourceError(GgufyError):
    """The source cannot be opened or is not a model."""


class CheckpointError(SourceError):
    """A .pth that cannot be read as an RWKV checkpoint."""


class VocabError(SourceError):
    """A vocabulary file that is broken or does not fit the checkpoint."""


class SourceAway(SourceError):
    """The server that has the source cannot be reached or is out of order; asking again later may help."""


class CannotStream(SourceError):
    """The file can only be had as a whole: it has to be downloaded."""


class SourceChanged(SourceError):
    """The server holds another file now than the one that was pinned."""


class CalibrationError(GgufyError):
    """Calibration text or imatrix that cannot be used."""


class ToolError(GgufyError):
    """A llama.cpp tool is missing, of the wrong version, or ended with an error; `output` is what it printed."""

    def __init__(self, template: str, output: str = "", /, **values: object):
        super().__init__(template, **values)
        self.output = scrub(output)


class DiskError(GgufyError):
    """Not enough free space, or no permission to write."""


class HubError(GgufyError):
    """A repo, on the Hub or in a folder, cannot be read or written."""


class HubAway(HubError):
    """The Hub cannot be reached or is out of order; asking again later may help."""


class QuotaError(HubError):
    """Too many requests or commits; the Hub may be asked again after `retry_after` seconds."""

    def __init__(self, template: str, retry_after: float, /, **values: object):
        super().__init__(template, **values)
        self.retry_after = retry_after


class TokenError(HubError):
    """The token is missing, expired, or may not do this."""


class StorageError(HubError):
    """The account has no room left, or must pay for it; trying again does not help."""


class RepoMissing(HubError):
    """The repo does not exist: it was never made, was deleted, or is hidden from this token."""


class StaleParent(HubError):
    """Somebody else has committed to the repo since it was read."""


class LeaseLost(HubError):
    """This process is not, or no longer, the one runner of a state repo."""


class BusyError(GgufyError):
    """Another run works on the same folder."""


class Cancelled(GgufyError):
    """The user cancelled the job."""


#: What kind of error ended a job, in a word: all that a model card says is made from it, and never from the sentence.
CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (SourceAway, "source away"),
    (SourceChanged, "source changed"),
    (VocabError, "vocabulary"),
    (SourceError, "source"),
    (CalibrationError, "text"),
    (ToolError, "tool"),
    (DiskError, "disk"),
    (StorageError, "storage"),
    (TokenError, "token"),
    (HubError, "hub"),
    (UsageError, "options"),
    (GgufyError, "other"),
    (OSError, "machine"),
)
_ABSOLUTE = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*/|/|[A-Za-z]:[\\/])[^\s'\"`,;:()<>|]*[^\s'\"`,;:()<>|.]")
_SOMEWHERE = "…"


def cause_of(error: BaseException) -> str:
    """The word of CAUSES for an error; "unexpected" for one that nobody thought of."""
    return next((word for kind, word in CAUSES if isinstance(error, kind)), "unexpected")


def sentence_of(error: BaseException) -> str:
    """What people read of an error."""
    if isinstance(error, GgufyError):
        return error.message
    return Message("unexpected error, please report it: {kind}: {error}", kind=type(error).__name__, error=error)


def without_folders(sentence: str, paths: Iterable[PurePath] = ()) -> str:
    """A sentence in which files of this machine stand without their folders, and folders as "…".

    `paths` are those that it may well name: in them, blanks and whatever else may end a path are known.
    """
    if isinstance(sentence, Message):
        return sentence.changed(partial(without_folders, paths=tuple(paths)))
    known = {str(parent): _SOMEWHERE for path in paths for parent in path.parents if len(parent.parts) > 1}
    known |= {str(path): path.name for path in paths if path.suffix}
    for text in sorted(known, key=len, reverse=True):
        sentence = sentence.replace(text, known[text])
    return _ABSOLUTE.sub(_bare, sentence.replace(_SOMEWHERE + "/", ""))


def _bare(match: re.Match[str]) -> str:
    *folders, name = re.split(r"[\\/]", match[0])
    return name if "." in name and len(folders) > 2 else _SOMEWHERE  # a folder's name may be an account's

"""Every error that ggufy raises on purpose. Its text is one sentence, and says what to do next.

GgufyError
├── UsageError            the request itself is wrong: an unknown quant type, two options that exclude each other
├── SourceError           the source cannot be opened or is not what it should be
│   ├── CheckpointError   a .pth that is missing, cut, no checkpoint, or has wrong, missing or non-finite tensors
│   └── VocabError        a vocabulary that is broken or of the wrong size
├── CalibrationError      calibration text too short, or an imatrix that does not fit the model
├── ToolError             a llama.cpp tool is missing, too old, or failed
├── DiskError             too little free space, or no permission to write
├── BusyError             another run holds the folder
└── Cancelled             the user ended the job
"""

from __future__ import annotations


class GgufyError(Exception):
    """Base class; the command line shows its text as one line and exits with 1."""


class UsageError(GgufyError):
    """The request is wrong; the command line exits with 2."""


class SourceError(GgufyError):
    """The source cannot be opened or is not a model."""


class CheckpointError(SourceError):
    """A .pth that cannot be read as an RWKV checkpoint."""


class VocabError(SourceError):
    """A vocabulary file that is broken or does not fit the checkpoint."""


class CalibrationError(GgufyError):
    """Calibration text or imatrix that cannot be used."""


class ToolError(GgufyError):
    """A llama.cpp tool is missing, of the wrong version, or ended with an error; `output` is what it printed."""

    def __init__(self, message: str, output: str = ""):
        super().__init__(message)
        self.output = output


class DiskError(GgufyError):
    """Not enough free space, or no permission to write."""


class BusyError(GgufyError):
    """Another run works on the same folder."""


class Cancelled(GgufyError):
    """The user cancelled the job."""

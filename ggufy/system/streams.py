"""Standard output and error, made safe for a program whose work matters more than what it says.

`guard` is called once, first thing. What cannot be written is not the work's fault: a full disk, a pipe whose reader
has gone, letters that the terminal's encoding lacks. The streams swallow it, and `lost` says at the end what did not
get out. File descriptor 1 itself is pointed at standard error, so that no library's native code writes into a result:
results go through a descriptor of our own. Secrets are taken out of whatever is written.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from ggufy.core.scrub import scrub

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_AS_JSON = "ggufy-as-json"  # an encoding error's handler
_output: _Sink | None = None


class _Sink(io.FileIO):
    """A file that takes everything, and writes what it can; `error` is the first failure."""

    error: OSError | None = None

    def write(self, block: ReadableBuffer, /) -> int:
        try:
            while (count := super().write(block)) is None:  # a pipe that somebody made non-blocking, and full
                select.select([], [self], [])
            return count
        except OSError as error:
            self.error = self.error or error
            return len(memoryview(block).cast("B"))


class _Stream(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        super().write(scrub(text))
        return len(text)


def guard(*, results: bool) -> None:
    """Takes the two streams over. With `results`, stdout is for them alone, and what others write to descriptor 1
    goes to stderr."""
    global _output
    _fill_closed()
    codecs.register_error(_AS_JSON, _as_json)
    sys.stderr, _ = _stream(sys.stderr, 2, errors="backslashreplace")
    own = os.dup(1) if results else 1
    if results:
        os.dup2(2, 1)
    sys.stdout, _output = _stream(sys.stdout, own, errors="replace")


def say_json() -> None:
    """Makes stdout fit for JSON, which is UTF-8: where something else is expected, all but ASCII is escaped."""
    if isinstance(sys.stdout, _Stream):
        other = codecs.lookup(sys.stdout.encoding).name != "utf-8"
        sys.stdout.reconfigure(encoding="ascii" if other else "utf-8", errors=_AS_JSON)


def lost() -> str:
    """Why not all of the results got out, to be asked last; empty if they did, or nobody wanted to read the rest."""
    if sys.stdout is not None:
        sys.stdout.flush()
    error = _output.error if _output else None
    return "" if error is None or error.errno == errno.EPIPE else (error.strerror or str(error))


def _stream(old: TextIO | None, descriptor: int, *, errors: str) -> tuple[TextIO, _Sink]:
    sink = _Sink(descriptor, "w", closefd=False)
    encoding = old.encoding if old is not None else "utf-8"
    lines = descriptor == 2 or sink.isatty()
    return _Stream(io.BufferedWriter(sink), encoding=encoding, errors=errors, line_buffering=lines), sink


def _fill_closed() -> None:
    """Puts the null device where a standard descriptor is closed: the next file that is opened would take its place,
    and would be written to by whoever writes an error."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _as_json(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end

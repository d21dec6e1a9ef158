"""A file that is written from front to back, in spans, and taken up again where that was stopped.

A journal beside `<target>.part`, `<target>.journal.part`, starts with a line that stands for everything that decides
the bytes, and gets another for each span that is whole: the SHA-256 of the file up to its end.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ggufy.system.files import PART_SUFFIX, Buffer, part_of

logger = logging.getLogger(__name__)
_LINE = 65  # bytes of a journal's line: 64 hex digits and its end
_BLOCK = 4 << 20


class JournaledPart:
    """The file that is being made, and its journal; a context manager once it is open.

    `source` and `header`, which the file starts with, stand for all that decides its bytes; `spans` are the sizes of
    what follows. `whole` is how many spans are there and noted, `digest` the SHA-256 of what is there.
    """

    def __init__(self, target: Path, source: str, header: bytes, spans: Sequence[int]):
        self.path, self.journal = part_of(target), target.with_name(f"{target.name}.journal{PART_SUFFIX}")
        self.whole, self.digest = 0, hashlib.sha256(header)
        self._header, self._spans = header, spans
        self._mark = hashlib.sha256(source.encode() + header).hexdigest()
        self._inside = 0  # bytes that are there of the span that is being written
        self._file: BinaryIO
        self._notes: BinaryIO

    def open(self, tell: Callable[[int], None]) -> None:
        """Keeps what is whole, drops the rest; `tell` gets the bytes of spans that are checked."""
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        self._notes = self.journal.open("r+b" if self.journal.exists() else "w+b")
        try:
            self.whole = self._count(tell)
            self._notes.truncate((1 + self.whole) * _LINE if self.whole else 0)
            self._notes.seek(0, os.SEEK_END)
            self._file.truncate(len(self._header) + sum(self._spans[: self.whole]) if self.whole else 0)
            self._file.seek(0, os.SEEK_END)
            if not self.whole:
                self._file.write(self._header)
                self._note(self._mark)
        except BaseException:
            self._close()
            raise

    def _count(self, tell: Callable[[int], None]) -> int:
        """How many spans are whole."""
        lines = self._notes.read(_LINE * (1 + len(self._spans)))
        noted = [lines[at : at + _LINE].decode("ascii", "replace") for at in range(0, len(lines) - _LINE + 1, _LINE)]
        if noted[:1] != [f"{self._mark}\n"] or self._file.read(len(self._header)) != self._header:
            return 0
        done, digest = 0, self.digest.copy()
        for whole, (line, span) in enumerate(zip(noted[1:], self._spans, strict=False)):
            for at in range(0, span, _BLOCK):
                digest.update(self._file.read(min(_BLOCK, span - at)))
                tell(done + at)
            if line != f"{digest.hexdigest()}\n":
                logger.warning("%s: tensor %d is not as it was written: made again", self.path.name, whole)
                return whole
            done, self.digest = done + span, digest.copy()
        return len(noted) - 1

    def write(self, block: Buffer, /) -> None:
        """Adds a block, which never reaches over the end of a span; notes the span that it ends."""
        self._file.write(block)
        self.digest.update(block)
        self._inside += len(block)
        if self._inside and self._inside == self._spans[self.whole]:
            self._file.flush()
            self._note(self.digest.hexdigest())
            self.whole, self._inside = self.whole + 1, 0

    def _note(self, digest: str) -> None:
        self._notes.write(f"{digest}\n".encode())
        self._notes.flush()

    def __enter__(self) -> JournaledPart:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        self._file.close()
        self._notes.close()

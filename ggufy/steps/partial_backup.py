"""What is finished of a quant in the making goes to the state repo from time to time, for when the disk is lost too.

Each time, the chunks that came since go into one file, `<quant>.<number>.chunks`:

    the journal's key                               (see quantize/engine.py)
    <SHA-256> <offset in the quant> <size>          one line a chunk
                                                    an empty line, then the bytes of the chunks, in this order

On a new disk they are put back where they were, beside a journal that names them, and the engine checks them as if it
had been interrupted here. All files of one quant together are never larger than the quant; they are deleted when it is
in the output repo.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ggufy.core.errors import Cancelled, DiskError, HubError
from ggufy.quantize.journal import journal_line, journal_of, read_journal
from ggufy.steps.context import BackupStore
from ggufy.system.files import partial, write_text

logger = logging.getLogger(__name__)
WORTH_S = 100.0  # CPU seconds whose loss is worth a commit
LEAST_S = 60.0  # seconds between commits
_MOST = 512 << 20  # bytes at once
SUFFIX = ".chunks"
_LONGEST_HEAD = 32 << 20  # bytes; a model of 14B parameters is 14,000 chunks


def saved_files(names: list[str], quant: str) -> list[str]:
    """Those of one quant among what is kept, oldest first."""
    return sorted(name for name in names if name.startswith(f"{quant}.") and name.endswith(SUFFIX))


class PartialBackup:
    """For one run over one quant. `looked` is to be called often while it is being made."""

    def __init__(self, safe: BackupStore, part: Path, work: Path, busy: Callable[[], float]):
        """`part` is the file in the making, `work` a folder for what is sent, `busy` how many CPUs are at work."""
        self._safe, self._part, self._work, self._busy = safe, part, work, busy
        self._quant = part.name.removesuffix(".part")
        self._there: set[int] = set()  # offsets of the chunks that are safe
        self._number = 0
        self._cpu_s, self._looked_at, self._saved_at = 0.0, time.monotonic(), time.monotonic()
        self._sending = threading.Thread()

    def restore(self) -> None:
        """Puts back what is safe, unless this disk still has what an earlier run left."""
        try:
            names = saved_files(list(self._safe.names()), self._quant)
            self._number = max(
                (int(name.split(".")[-2]) for name in names if name.split(".")[-2].isdecimal()), default=0
            )
            if names and not journal_of(self._part).exists():
                self._put_back(names)
        except HubError as error:
            logger.warning("what was saved of %s could not be fetched: %s", self._quant, error)

    def looked(self) -> None:
        """Sends off what came since, if it is worth it and there is a commit to spare; does not wait for it."""
        now = time.monotonic()
        self._cpu_s += self._busy() * (now - self._looked_at)
        self._looked_at = now
        if self._cpu_s < WORTH_S or now - self._saved_at < LEAST_S or self._sending.is_alive():
            return
        self._cpu_s, self._saved_at = 0.0, now
        self._sending = threading.Thread(target=self._send, name="salvage", daemon=True)
        self._sending.start()

    def _send(self) -> None:
        """Failing is only logged: the chunks go along the next time."""
        key, chunks = read_journal(journal_of(self._part))
        new = self._new(chunks)
        path = self._work / f"{self._quant}.{self._number + 1:04d}{SUFFIX}"
        try:
            if new and self._safe.wait_s() <= 0:
                with partial(path) as file:
                    self._write(file, key, new)
                self._safe.put(path)
                self._there |= set(new)
                self._number += 1
        except (HubError, DiskError, Cancelled, FileNotFoundError) as error:  # or the quant has its final name now
            logger.warning("a part of %s was not saved: %s", self._quant, error)
        except Exception:  # nobody waits for this thread, and the work does not depend on it
            logger.exception("a part of %s was not saved", self._quant)
        finally:
            path.unlink(missing_ok=True)

    def _new(self, chunks: dict[int, tuple[str, int]]) -> dict[int, tuple[str, int]]:
        """The chunks that are not safe yet, so many as may go at once."""
        new, total = {}, 0
        for offset, (digest, size) in chunks.items():
            if offset not in self._there and total < _MOST:
                new[offset] = (digest, size)
                total += size
        return new

    def _write(self, path: Path, key: str, chunks: dict[int, tuple[str, int]]) -> None:
        lines = [journal_line(digest, offset, size) for offset, (digest, size) in chunks.items()]
        with path.open("wb") as out, self._part.open("rb") as part:
            out.write("".join([f"{key}\n", *lines, "\n"]).encode())
            for offset, (_, size) in chunks.items():
                part.seek(offset)
                out.write(part.read(size))

    def _put_back(self, names: list[str]) -> None:
        """What one file says of another key than the last one's is of no use, and the engine would not take it."""
        lines: list[str] = []
        key = ""
        self._part.parent.mkdir(parents=True, exist_ok=True)
        with self._part.open("wb") as part:
            for name in names:
                path = self._work / name
                self._safe.get(name, path)
                with path.open("rb") as file:
                    head = file.read(_LONGEST_HEAD).partition(b"\n\n")[0]
                    file.seek(len(head) + 2)
                    first, *more = head.decode(errors="replace").splitlines()
                    lines, key = (lines, key) if first == key else ([], first)
                    for line in more:
                        _, offset, size = line.split()
                        os.pwrite(part.fileno(), file.read(int(size)), int(offset))
                    lines += more
                path.unlink()
        write_text(journal_of(self._part), "\n".join([key, *lines, ""]))
        self._there = {int(line.split()[1]) for line in lines}

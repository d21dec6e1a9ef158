"""Products on disk: they appear whole or not at all.

A product is written as `<name>.part`, checked, flushed to the disk and renamed; whatever carries a final name is
complete. A lock file holds a folder for one run; the kernel lets go of it when the process and its tools are gone.

Disks that lack something are used as far as they go: one that cannot flush a folder is not asked to, and on one
without locks (some network disks) a file in this machine's own folder for temporary files is locked instead. That
keeps two runs on this machine apart, not two machines that share the disk, which a warning says.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from ggufy.core.errors import Cancelled, DiskError
from ggufy.core.messages import Message
from ggufy.core.words import human_size

logger = logging.getLogger(__name__)
PART_SUFFIX = ".part"  # being made
DOWNLOAD_SUFFIX = ".download"  # arriving; the next process goes on with it
_HASH_BLOCK = 4 << 20
UNSUPPORTED = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
)  # a disk cannot do this at all
_NOT_OF_FILES = (ConnectionError, ChildProcessError, InterruptedError, BlockingIOError)
Buffer = bytes | memoryview


@contextlib.contextmanager
def partial(path: Path) -> Iterator[Path]:
    """Yields `<path>.part` to write to; renames it to `path` if the block ends well, removes it otherwise.

    Raises DiskError, naming the step's file, when the disk is full or not writable.
    """
    part = part_of(path)
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)
            yield part
            finish(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def finish(part: Path, path: Path) -> None:
    """Gives a whole file its final name, after it has reached the disk."""
    flush(part)
    part.replace(path)
    flush(path.parent)


_choices: dict[Path, str] = {}  # folder -> the setting that chose it


def chosen_with(folder: Path, setting: str) -> None:
    """From now on errors about what is in the folder advise to change this setting."""
    _choices[folder.absolute()] = setting


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system says of a disk into a DiskError about `path`."""
    try:
        yield
    except OSError as error:
        if (failure := disk_error(error, path)) is None:
            raise
        raise failure from error


def disk_error(error: OSError, path: Path) -> DiskError | None:
    """What went wrong with writing `path`, or with another file that the error names, in one sentence; None if it was
    no file."""
    if error.errno is None or isinstance(error, _NOT_OF_FILES):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            "the disk is full while writing {name} ({free} free): free some space and {AGAIN}; what is finished "
            "stays.",
            name=path.name,
            free=human_size(_free(path)),
        )
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    elsewhere = not _has(path.absolute().parent, named.absolute()) and not _has(named.absolute(), path.absolute())
    if error.errno == errno.ENOENT and elsewhere:
        return DiskError("{path} is gone: put it back and {AGAIN}.", path=named)
    setting = _setting_for(path)
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and (blocking := _no_folder(path)):
        return DiskError("{path} is no folder: choose one with {setting}.", path=blocking, setting=setting)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DiskError(
            "no permission to write {path}: choose another folder with {setting}.", path=path, setting=setting
        )
    return DiskError(
        "{path} cannot be written ({reason}): choose another folder with {setting}.",
        path=path,
        reason=error.strerror,
        setting=setting,
    )


def _no_folder(path: Path) -> Path | None:
    """A file, or a link to what is gone (an unplugged disk), where a folder above the path should be."""
    return next((place for place in path.absolute().parents if os.path.lexists(place) and not place.is_dir()), None)


def _setting_for(path: Path) -> str:
    """The setting that chose the innermost folder above the path."""
    above = [folder for folder in _choices if _has(folder, path.absolute())]
    return _choices[max(above, key=lambda folder: len(folder.parts))] if above else Message("{OUT}")


def _has(folder: Path, path: Path) -> bool:
    return folder == path or folder in path.parents


def _free(path: Path) -> int:
    try:
        return free_bytes(path)
    except OSError:
        return 0


class Sink(Protocol):
    """What blocks are written to: an open file, or what stands for one."""

    def write(self, block: Buffer, /) -> object: ...


class Digesting:
    """A sink that keeps the SHA-256 of what goes through it to another one."""

    def __init__(self, sink: Sink):
        self._sink, self._digest = sink, hashlib.sha256()

    def write(self, block: Buffer, /) -> None:
        self._sink.write(block)
        self._digest.update(block)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class BackgroundWriter:
    """Writes blocks to a sink in a thread of its own, in order, a few at a time, while the caller makes more.

    Whatever goes wrong there is raised by the next `write`, or at the end of the `with` block; the thread goes on
    taking blocks, so that nobody waits for it.
    """

    def __init__(self, file: Sink, blocks: int = 8):
        self._file = file
        self._queue: queue.Queue[Buffer | None] = queue.Queue(blocks)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, name="ggufy-writer", daemon=True)

    def __enter__(self) -> BackgroundWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def write(self, block: Buffer) -> None:
        """Queues a block, which must not change any more."""
        if self._error is not None:
            raise self._error
        self._queue.put(block)

    def _loop(self) -> None:
        while (block := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._file.write(block)
                except BaseException as error:  # raised again in the thread that writes
                    self._error = error


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    with partial(path) as part:
        part.write_text(text, encoding="utf-8")


def sha256(
    path: Path, progress: Callable[[int], None] | None = None, *, stopped: Callable[[], bool] = lambda: False
) -> str:
    """Hex digest of a file; `progress` gets the bytes read so far. Raises Cancelled soon after `stopped()` turned
    true: large files take minutes."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            if stopped():
                raise Cancelled("the job was stopped.")
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done)
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Free space, in bytes, on the disk that holds (or would hold) `path`."""
    return shutil.disk_usage(existing_parent(path)).free


def part_of(path: Path) -> Path:
    """What `path` is called while it is being made."""
    return path.with_name(path.name + PART_SUFFIX)


def allocated_bytes(path: Path) -> int:
    """What a file takes on the disk; 0 if there is none."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path`, or `path` itself, that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def flush(path: Path) -> None:
    """Sees to it that a file or folder has reached the disk, as far as the disk can promise that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some foreign disks answer so where a folder cannot be flushed; for a file it is a fault.
        if not (path.is_dir() and error.errno in (errno.EIO, errno.EACCES, errno.EPERM)):
            raise


def sync(descriptor: int) -> None:
    """As `flush`, for an open file."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise

"""Quants that are in an output repo and no more on this disk, brought back for a chat.

They lie apart from products, in `<cache>/chat/<owner>/<repo>/`, and the longest unused ones go when there are many.
A file is fetched once, by a thread of its own, however many wait for it; each of them sees how far it is, and whoever
goes away keeps nobody waiting. The download ends when nobody waits for it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ggufy.core.errors import Cancelled, DiskError
from ggufy.core.outputs import OUTPUT_NAMES
from ggufy.core.words import human_size
from ggufy.hub.protocol import OutputHub
from ggufy.system.clock import never
from ggufy.system.files import free_bytes

KEPT = 2
_POLL_S = 0.25
_MARGIN = 64 << 20  # bytes that stay free


@dataclass(eq=False)
class _Download:
    """One file on its way."""

    size: int  # bytes
    done: int = 0
    waiting: set[object] = field(default_factory=set)  # one token for each that waits
    ended: threading.Event = field(default_factory=threading.Event)
    failure: BaseException | None = None

    @property
    def fraction(self) -> float:
        return min(1.0, self.done / max(1, self.size))


class ModelCache:
    """The models of this kind. Any thread may fetch; `stopped` ends all downloads."""

    def __init__(self, hub: OutputHub, cache: Path, stopped: Callable[[], bool]):
        self._hub, self._root, self._stopped = hub, cache / "chat", stopped
        self._lock = threading.Lock()  # never held while somebody waits, or over the network
        self._downloads: dict[Path, _Download] = {}

    def path(self, repo_id: str, name: str) -> Path:
        """Where the file is, or will be."""
        return self._root / repo_id / name

    def fetch(self, repo_id: str, name: str, size: int, stopped: Callable[[], bool] = never) -> Iterator[float]:
        """Brings the file here unless it is; yields the fraction that has come, now and then. Raises HubError,
        DiskError, and Cancelled once `stopped` says so."""
        me = object()
        while (download := self._join(me, repo_id, name, size)) is not None:
            try:
                while not download.ended.wait(_POLL_S):
                    if stopped() or self._stopped():
                        raise Cancelled("stopped while the model was being fetched.")
                    yield download.fraction
            finally:  # without a lock: the garbage collector may close what was left, in any thread
                download.waiting.discard(me)
            if download.failure is None:
                return
            # It may have been given up for want of anybody who waits, a moment before this one came: then once more.
            if self._stopped() or not isinstance(download.failure, Cancelled):
                raise download.failure

    def _join(self, me: object, repo_id: str, name: str, size: int) -> _Download | None:
        """The download to wait for, begun if there is none; None when the file is here. Raises DiskError."""
        target = self.path(repo_id, name)
        with self._lock:
            if (download := self._downloads.get(target)) is None:
                if target.exists():
                    target.touch()  # used now
                    return None
                self._make_room(size)
                download = self._downloads[target] = _Download(size)
                work = threading.Thread(
                    target=self._work, args=(download, repo_id, name, target), name="ggufy-fetch", daemon=True
                )
                download.waiting.add(me)
                work.start()
            download.waiting.add(me)
            return download

    def _work(self, download: _Download, repo_id: str, name: str, target: Path) -> None:
        def progress(count: int) -> None:
            download.done = count

        def stopped() -> bool:
            return not download.waiting or self._stopped()

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._hub.download(repo_id, name, target, kind="model", progress=progress, stopped=stopped)
        except BaseException as error:  # a thread's edge: whoever waits gets it
            download.failure = error
        finally:
            with self._lock:
                del self._downloads[target]
            download.ended.set()

    def _make_room(self, needed: int) -> None:
        """Removes the longest unused models for one more, beside those on their way."""
        models = (path for row in OUTPUT_NAMES.values() for path in self._root.glob(f"*/*/*.{row.suffix}"))
        here = sorted(models, key=lambda path: path.stat().st_mtime)
        coming = self._downloads.values()
        needed += sum(max(0, download.size - download.done) for download in coming)
        while here and (len(here) + len(coming) >= KEPT or free_bytes(self._root) < needed + _MARGIN):
            here.pop(0).unlink()
        if (free := free_bytes(self._root)) < needed + _MARGIN:
            raise DiskError(
                "the model needs {needed} in {folder} and {free} are free: choose a smaller quant, or free some "
                "space.",
                needed=human_size(needed),
                folder=self._root,
                free=human_size(free),
            )

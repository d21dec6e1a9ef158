"""Quants that are in an output repo and no more on this disk, brought back for a chat.

They lie apart from products, in `<cache>/chat/<owner>/<repo>/`, and the longest unused ones go when there are many.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ggufy.errors import DiskError, GgufyError
from ggufy.files import free_bytes, human_size
from ggufy.hub.protocol import Hub

logger = logging.getLogger(__name__)
KEPT = 2
_POLL_S = 0.25
_MARGIN = 64 << 20  # bytes that stay free


class FetchedModels:
    """The models of this kind; one is fetched at a time, others wait."""

    def __init__(self, hub: Hub, cache: Path, stopped: Callable[[], bool]):
        self._hub, self._root, self._stopped = hub, cache / "chat", stopped
        self._lock = threading.Lock()

    def path(self, repo_id: str, name: str) -> Path:
        """Where the file is, or will be."""
        return self._root / repo_id / name

    def fetch(self, repo_id: str, name: str, size: int) -> Iterator[float]:
        """Brings the file here unless it is; yields the fraction that has come, now and then. Raises HubError,
        DiskError."""
        target = self.path(repo_id, name)
        with self._lock:
            if target.exists():
                target.touch()  # used now
                return
            self._make_room(size)
            yield from self._download(repo_id, name, target, size)

    def _download(self, repo_id: str, name: str, target: Path, size: int) -> Iterator[float]:
        target.parent.mkdir(parents=True, exist_ok=True)
        done, failure, left = 0, None, threading.Event()

        def progress(count: int) -> None:
            nonlocal done
            done = count

        def work() -> None:
            nonlocal failure
            try:
                stopped = lambda: left.is_set() or self._stopped()  # noqa: E731
                self._hub.download(repo_id, name, target, kind="model", progress=progress, stopped=stopped)
            except (GgufyError, OSError) as error:
                failure = error

        thread = threading.Thread(target=work, name="ggufy-fetch", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                yield min(1.0, done / max(1, size))
                thread.join(_POLL_S)
        finally:  # whoever asked may be gone
            left.set()
            thread.join()
        if failure is not None:
            raise failure

    def _make_room(self, needed: int) -> None:
        here = sorted(self._root.glob("*/*/*.gguf"), key=lambda path: path.stat().st_mtime)
        while here and (len(here) >= KEPT or free_bytes(self._root) < needed + _MARGIN):
            here.pop(0).unlink()
        if (free := free_bytes(self._root)) < needed + _MARGIN:
            raise DiskError(
                f"the model needs {human_size(needed)} in {self._root} and {human_size(free)} are free: choose a "
                "smaller quant, or free some space."
            )

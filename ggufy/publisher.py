"""Uploads finished products to the output repo in a thread of its own, while the next ones are made.

    put(file) ──► queue ──► all that waits, with a new model card, in one commit ──► compared with what the repo lists

The card, and what else is written anew for each commit, are the `pages`: text by file name.

While the Hub is away or takes no more commits for now, files wait and then share a commit. Anything else that goes
wrong, expected or not, is raised to the runner at its next call: nobody else would hear of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ggufy.errors import Cancelled, GgufyError, HubAway, HubError, QuotaError, RepoMissing
from ggufy.hub.protocol import Hub, RemoteFile
from ggufy.job import Artifact

logger = logging.getLogger(__name__)
_PATIENCE_S = (2.0, 5.0, 15.0, 60.0)  # between tries while the Hub is away


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A file that is to be uploaded."""

    path: Path
    artifact: Artifact


class Publisher:
    """One output repo, for one run of one job."""

    def __init__(
        self,
        hub: Hub,
        repo_id: str,
        *,
        private: bool,
        pages: Callable[[Mapping[str, int]], Mapping[str, str]],
        check: Callable[[], None],
        stopped: Callable[[], bool],
        uploaded: Callable[[list[Artifact]], None],
        fraction: Callable[[Artifact, float], None],
    ):
        self._hub, self._repo_id, self._private = hub, repo_id, private
        self._pages, self._check, self._stopped = pages, check, stopped
        self._uploaded, self._fraction = uploaded, fraction
        self._remote: dict[str, RemoteFile] = {}
        self._waiting: list[Waiting] = []
        self._card_waits = False
        self._error: Exception | None = None
        self._ends = False
        self._busy = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="ggufy-publisher", daemon=True)

    def start(self) -> None:
        """Makes the repo if there is none, looks at what it holds, and starts the thread. Raises HubError."""
        self._check()
        self._hub.create_repo(self._repo_id, kind="model", private=self._private)
        self._remote = self._hub.list_files(self._repo_id, kind="model")
        self._thread.start()

    def file(self, name: str) -> RemoteFile | None:
        """What the repo holds under this name."""
        with self._changed:
            return self._remote.get(name)

    def fetch(self, name: str, target: Path, progress: Callable[[int], None]) -> None:
        """Brings a file of the repo here, whole and checked. Raises HubError, Cancelled."""
        self._hub.download(self._repo_id, name, target, kind="model", progress=progress, stopped=self._stopped)

    def put(self, path: Path, artifact: Artifact) -> None:
        """Queues a file. Raises what went wrong with an earlier one."""
        with self._changed:
            self._raise()
            self._waiting.append(Waiting(path=path, artifact=artifact))
            self._changed.notify_all()

    def refresh_card(self) -> None:
        """Queues the card alone, for what it says besides files."""
        with self._changed:
            self._raise()
            self._card_waits = True
            self._changed.notify_all()

    @property
    def busy(self) -> bool:
        """True while files wait or are under way. Raises what went wrong."""
        with self._changed:
            self._raise()
            return self._busy or self._card_waits or bool(self._waiting)

    def drain(self) -> None:
        """Waits until every file is in the repo. Raises what went wrong, or Cancelled."""
        while self.busy:
            if self._stopped():
                raise Cancelled("stopped while files were being uploaded.")
            with self._changed:
                self._changed.wait(0.2)

    def close(self) -> None:
        """Ends the thread; what still waits stays on this machine, and is uploaded by the next run."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(10.0)

    def last_card(self) -> None:
        """Writes the card once more, for a job that ended with files missing; what goes wrong is only logged."""
        try:
            self._check()
            pages = self._encoded(self._sizes())
            self._hub.commit(self._repo_id, kind="model", add=pages, message="Update the card")
        except GgufyError as error:
            logger.warning("the card was not updated: %s", error)

    # ---- in the thread

    def _loop(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                self._commit_patiently(batch)
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - the runner is where it is told apart
            with self._changed:
                self._error, self._busy = error, False
                self._changed.notify_all()

    def _next_batch(self) -> list[Waiting] | None:
        with self._changed:
            while not self._ends and not self._stopped():
                if (self._waiting or self._card_waits) and self._hub.wait_s() <= 0:
                    batch, self._waiting, self._busy, self._card_waits = self._waiting, [], True, False
                    return batch
                self._changed.wait(0.2)
            return None

    def _commit_patiently(self, batch: list[Waiting]) -> None:
        for tries in range(1_000_000):
            try:
                self._commit(batch)
                return
            except RepoMissing:
                self._hub.create_repo(self._repo_id, kind="model", private=self._private)
            except (HubAway, QuotaError) as error:
                logger.warning("upload to %s waits: %s", self._repo_id, error)
                pause = max(_PATIENCE_S[min(tries, 3)], getattr(error, "retry_after", None) or 0)
                until = time.monotonic() + pause
                while time.monotonic() < until:
                    if self._stopped() or self._ends:
                        raise Cancelled("stopped while the Hub was away.") from error
                    time.sleep(0.2)

    def _commit(self, batch: list[Waiting]) -> None:
        self._check()
        files = {waiting.artifact.name: waiting.path for waiting in batch}
        sizes = self._sizes() | {waiting.artifact.name: waiting.artifact.size for waiting in batch}
        total = max(1, sum(waiting.artifact.size for waiting in batch))

        def progress(done: int) -> None:
            for waiting in batch:
                self._fraction(waiting.artifact, min(1.0, done / total))

        self._hub.commit(
            self._repo_id,
            kind="model",
            add={**files, **self._encoded(sizes)},
            message="Add " + ", ".join(files) if files else "Update the card",
            progress=progress,
            stopped=self._stopped,
        )
        remote = self._hub.list_files(self._repo_id, kind="model")
        for waiting in batch:
            there = remote.get(waiting.artifact.name)
            if there is None or not there.holds(waiting.path, waiting.artifact.sha256):
                raise HubError(
                    f"{waiting.artifact.name} is not in {self._repo_id} as it was sent: run the same command again."
                )
        with self._changed:
            self._remote = remote
        self._uploaded([waiting.artifact for waiting in batch])

    def _encoded(self, sizes: Mapping[str, int]) -> dict[str, bytes]:
        return {name: text.encode() for name, text in self._pages(sizes).items()}

    def _sizes(self) -> dict[str, int]:
        with self._changed:
            return {name: file.size for name, file in self._remote.items()}

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

"""Uploads finished products to the output repo in a thread of its own, while the next ones are made.

    put(file) ──► queue ──► all that waits, with a new model card, in one commit ──► compared with what the repo lists

The card, and what else is written anew for each commit, are the `pages`: text by file name.

What passes by itself is waited for, and files that wait share a commit. Anything else that goes wrong, expected or
not, is raised to the runner at its next call: nobody else would hear of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from ggufy.core.errors import Cancelled, GgufyError, HubError, RepoMissing
from ggufy.core.job import Artifact
from ggufy.core.messages import Message
from ggufy.hub.protocol import OutputHub, RemoteFile
from ggufy.records.patience import Patience, pause_s
from ggufy.system.clock import never, sleep

logger = logging.getLogger(__name__)
_LOOK_S = 0.2
_TOLD_S = 5.0  # a shorter wait for the next commit is not worth a word
_NEW_REPOS = 3  # so often a repo that is gone is made again before somebody is asked
_LEAVE_S = 2.0  # that the end waits for a commit under way


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A file that is to be uploaded."""

    path: Path
    artifact: Artifact


class Uploader:
    """One output repo, for one run of one job."""

    def __init__(
        self,
        hub: OutputHub,
        repo_id: str,
        *,
        private: bool,
        pages: Callable[[Mapping[str, int]], Mapping[str, str]],
        patience: Patience,
        uploaded: Callable[[list[Artifact]], None],
        fraction: Callable[[Artifact, float], None],
        held_up: Callable[[], str] = lambda: "",
    ):
        """`held_up` says why nothing may be uploaded yet; empty: it may."""
        self._hub, self._repo_id, self._private = hub, repo_id, private
        self._pages, self._uploaded, self._fraction, self._held_up = pages, uploaded, fraction, held_up
        self._patience, self._clock = replace(patience, say=self._says, stopped=self._stops), patience.clock
        self._asked_to_stop = patience.stopped
        self.waits_for = ""  # why nothing gets through at the moment, for people
        self._remote: dict[str, RemoteFile] = {}
        self._waiting: list[Waiting] = []
        self._card_waits = False
        self._error: Exception | None = None
        self._ends = False
        self._busy = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="ggufy-uploader", daemon=True)

    def start(self, patience: Patience) -> None:
        """Makes the repo if there is none, looks at what it holds, and starts the thread. `patience` is the caller's.
        Raises HubError."""
        patience(lambda: self._hub.create_repo(self._repo_id, kind="model", private=self._private))
        self._remote = patience(lambda: self._hub.list_files(self._repo_id, kind="model"))
        self._thread.start()

    def file(self, name: str) -> RemoteFile | None:
        """What the repo holds under this name."""
        with self._changed:
            return self._remote.get(name)

    def look_again(self) -> None:
        """Takes note of what others have brought since. Raises what went wrong with a file."""
        with self._changed:
            self._raise()
            before = self._remote
        remote = self._hub.list_files(self._repo_id, kind="model")
        with self._changed:
            if self._remote is before:  # else the thread has looked meanwhile
                self._remote = remote

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

    def drain(self, say: Callable[[str], None]) -> None:
        """Waits until every file is in the repo; `say` gets what is waited for. Raises what went wrong, Cancelled."""
        said = ""
        while self.busy:
            if self._asked_to_stop():
                raise Cancelled("stopped while files were being uploaded.")
            if self.waits_for != said:
                said = self.waits_for
                say(said)
            with self._changed:
                self._clock.wait(self._changed, _LOOK_S)
        say("")

    def close(self) -> None:
        """Ends the thread; what still waits stays on this machine, and is uploaded by the next run."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(_LEAVE_S)

    def last_card(self) -> None:
        """Writes the card once more, for a job that ended with files missing; what goes wrong is only logged."""
        try:
            self._patience.check()
            self._send({}, self._sizes(), stopped=never)
        except GgufyError as error:
            logger.warning("the card was not updated: %s", error)

    # ---- in the thread

    def _loop(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                self._commit(batch)
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - the runner is where it is told apart
            with self._changed:
                self._error, self._busy = error, False
                self._changed.notify_all()

    def _next_batch(self) -> list[Waiting] | None:
        with self._changed:
            while not self._stops():
                due = self._waiting or self._card_waits
                reason = self._held_up() if due else ""
                wait = self._hub.wait_s() if due and not reason else _LOOK_S
                if wait <= 0:
                    batch, self._waiting, self._busy, self._card_waits = self._waiting, [], True, False
                    self.waits_for = ""
                    return batch
                self.waits_for = _until(wait) if self._waiting and wait > _TOLD_S else reason
                self._clock.wait(self._changed, _LOOK_S)
            return None

    def _commit(self, batch: list[Waiting]) -> None:
        for tries in range(1, _NEW_REPOS + 1):
            try:
                self._patience(lambda: self._commit_once(batch))
                return
            except RepoMissing as error:
                if tries == _NEW_REPOS:
                    raise
                logger.warning("%s is gone: it is made again (%s)", self._repo_id, error)
                sleep(pause_s(tries), self._stops, self._clock)
                self._patience(lambda: self._hub.create_repo(self._repo_id, kind="model", private=self._private))

    def _commit_once(self, batch: list[Waiting]) -> None:
        files = {waiting.artifact.name: waiting.path for waiting in batch}
        sizes = self._sizes() | {waiting.artifact.name: waiting.artifact.size for waiting in batch}
        total = max(1, sum(waiting.artifact.size for waiting in batch))

        def progress(done: int) -> None:
            for waiting in batch:
                self._fraction(waiting.artifact, min(1.0, done / total))

        self._send(files, sizes, progress=progress, stopped=self._stops)
        remote = self._hub.list_files(self._repo_id, kind="model")
        for waiting in batch:
            there = remote.get(waiting.artifact.name)
            if there is None or not there.holds(waiting.path, waiting.artifact.sha256):
                raise HubError(
                    "{file} is not in {repo} as it was sent: {AGAIN}.", file=waiting.artifact.name, repo=self._repo_id
                )
        with self._changed:
            self._remote = remote
        self._uploaded([waiting.artifact for waiting in batch])

    def _send(
        self,
        files: Mapping[str, Path],
        sizes: Mapping[str, int],
        *,
        progress: Callable[[int], None] | None = None,
        stopped: Callable[[], bool],
    ) -> None:
        """One commit of these files and the pages, if there is anything to say."""
        pages = {name: text.encode() for name, text in self._pages(sizes).items()}
        if files or pages:
            self._hub.commit(
                self._repo_id,
                kind="model",
                add={**files, **pages},
                message="Add " + ", ".join(files) if files else "Update the card",
                progress=progress,
                stopped=stopped,
            )

    def _sizes(self) -> dict[str, int]:
        with self._changed:
            return {name: file.size for name, file in self._remote.items()}

    def _says(self, reason: str) -> None:
        self.waits_for = reason

    def _stops(self) -> bool:
        return self._ends or self._asked_to_stop()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _until(seconds: float) -> str:
    """Why the next commit has to wait."""
    then = datetime.now().astimezone() + timedelta(seconds=seconds)
    return Message(
        "it waits until {time}: only so many commits an hour are made (GGUFY_COMMITS).", time=f"{then:%H:%M}"
    )

"""Exactly one runner: a lease, kept as `lease.json` in the state repo.

Old and new containers run at the same time for a while, and a machine may be cut off and come back. So whoever works
holds the lease, and writes it anew, with a new nonce, in every commit to the state repo and at least every interval.
Each write names the commit that was seen last as its parent: of two that write at once, one is refused.

    nobody holds it        it is taken at once
    somebody does          it is watched. If its nonce stays the same for its time by the watcher's own clock, it is
                           taken over: clocks of two machines are never compared. If the holder was a process of this
                           container and is gone, nobody waits
    a write is refused     the lease is read: if the boot id in it is ours, an answer was lost or somebody changed
                           another file, and the write is made again; if it is another's, the lease is lost
    no write gets through  after its time, counted from before the last write, `held` is false: the holder stops before
                           any watcher takes over
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime

from ggufy.core.errors import GgufyError, HubAway, LeaseLost, RepoMissing, StaleParent
from ggufy.core.messages import Message
from ggufy.core.names import RepoKind
from ggufy.hub.lease_record import LeaseRecord, boot_clock, identity, process_is_dead
from ggufy.hub.protocol import Content, Hub

logger = logging.getLogger(__name__)
LEASE_FILE = "lease.json"
KIND: RepoKind = "dataset"
SQUASH_EVERY = 500  # commits; the Hub grows slow with some thousands
_TRIES = 5  # writes in a row that somebody else's commits may refuse
_SHORTEST_S, _LONGEST_S = 0.5, 3600.0  # what another's time is taken for, whatever is written


class Lease:
    """The lease of one state repo, as one runner sees it.

    One thread takes, writes and releases it; any thread may ask `held`, `due`, `check` and `check_taken`, which never
    wait.
    """

    def __init__(
        self,
        hub: Hub,
        repo_id: str,
        *,
        interval_s: float = 120.0,
        expires_s: float = 600.0,
        clock: Callable[[], float] = boot_clock,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        process: str | None = None,
    ):
        self.hub, self.repo_id, self.interval_s, self.expires_s = hub, repo_id, interval_s, expires_s
        self.boot_id = secrets.token_hex(16)
        self._clock, self._now = clock, now
        self._process = identity() if process is None else process
        self._own: LeaseRecord | None = None  # what we wrote last
        self._head = ""  # the state repo's newest commit, as far as we know
        self._written = float("-inf")  # by our clock: when the last write that got through was begun
        self._lost = ""  # why we hold it no more
        self._seen: tuple[str, float] = ("", 0.0)  # another's nonce, and when it was first seen
        self.other: LeaseRecord | None = None  # who holds it instead, for people

    # ---- holding it

    @property
    def held(self) -> bool:
        """True while nobody else can have taken the lease over."""
        return self._own is not None and not self._lost and self._clock() < self._written + self.expires_s

    @property
    def term(self) -> int:
        """How often the lease has changed hands, up to this runner; 0 if this one never had it."""
        return self._own.term if self._own else 0

    @property
    def age_s(self) -> float | None:
        """Seconds since it was last written; None if it never was."""
        return None if self._own is None else round(self._clock() - self._written, 1)

    @property
    def due(self) -> bool:
        """True if the lease should be renewed now: no commit has done so for half an interval."""
        return self._clock() - self._written >= self.interval_s / 2

    def check_taken(self) -> None:
        """Raises LeaseLost if the lease was never taken, or is known to be another's."""
        if self._lost or self._own is None:
            raise LeaseLost(self._lost or Message("this runner does not hold the lease."))

    def check(self) -> None:
        """Raises LeaseLost if nothing must be touched any more; to be asked before every commit elsewhere."""
        self.check_taken()
        if not self.held:
            raise LeaseLost(
                "the lease could not be renewed for {seconds} s and may be another's by now: the work goes on "
                "when the Hub can be reached again.",
                seconds=f"{self.expires_s:.0f}",
            )

    def try_acquire(self, least_term: int = 0) -> bool:
        """Takes the lease if nobody holds it or its holder has been silent for its time; to be called again and again
        if it returns False, since silence is measured between calls. `least_term` is the greatest term known from
        elsewhere, for when the file was deleted. Raises HubError."""
        if self.held or self._revived():
            return True
        head = self.hub.head(self.repo_id, kind=KIND)
        if head is None:
            self.hub.create_repo(self.repo_id, kind=KIND, private=True)
            head = self.hub.head(self.repo_id, kind=KIND) or ""
        try:
            found = self._read(head)
            if not self._may_take(found):
                self.other = found
                return False
            self._take(head, found, least_term)
        except StaleParent:
            return False  # somebody was faster
        self.other = None
        return True

    def commit(
        self,
        add: Mapping[str, Content] | None = None,
        *,
        delete: Collection[str] = (),
        message: str,
        urgent: bool = False,
    ) -> None:
        """Commits to the state repo, and renews the lease in the same commit.

        Raises LeaseLost if another runner holds it, and HubErrors; after one that passes the lease may be renewed
        later, whether the commit was made or not.
        """
        self.check_taken()
        self._write(self._own or LeaseRecord(), add or {}, delete=delete, message=message, urgent=urgent)

    def renew(self) -> None:
        """Writes the lease anew, unless another commit has just done so. Errors as for `commit`."""
        if self.due:
            self.commit(message="renew the lease", urgent=True)

    def release(self, add: Mapping[str, Content] | None = None, *, delete: Collection[str] = ()) -> bool:
        """Lets the next runner take the lease at once, and commits these files; True if that was written. A lease that
        could not be released runs out by itself."""
        own, self._own = self._own, None
        if own is None or self._lost:
            return False
        free = dataclasses.replace(own, boot_id="", process="")
        try:
            self._write(free, add or {}, delete=delete, message="release the lease", urgent=True)
        except GgufyError as error:
            logger.warning("the lease was not released, it runs out in %.0f s: %s", self.expires_s, error)
            return False
        finally:
            self._own = None
        return True

    def follow(self) -> None:
        """Takes note of commits that somebody else made to the state repo; raises LeaseLost if that is a runner."""
        self.check_taken()
        self._look_again()

    def squash(self) -> None:
        """Makes one commit of the history when it has grown long. Raises HubError."""
        if self._own is None or self._own.commits < SQUASH_EVERY or not self.held:
            return
        self.hub.squash(self.repo_id, kind=KIND, message="squash the history")
        self._own = dataclasses.replace(self._own, commits=0)
        self._look_again()

    # ---- reading and writing it

    def _revived(self) -> bool:
        """True if the lease was not renewed in time, and nobody has taken it over."""
        if self._own is None or self._lost:
            return False
        with contextlib.suppress(LeaseLost, RepoMissing):
            self.commit(message="renew the lease", urgent=True)
        return self.held

    def _read(self, head: str) -> LeaseRecord:
        return LeaseRecord.from_bytes(self.hub.read(self.repo_id, LEASE_FILE, kind=KIND, at=head))

    def _may_take(self, found: LeaseRecord) -> bool:
        if found.boot_id in ("", self.boot_id) or process_is_dead(found.process):
            return True
        if found.nonce != self._seen[0]:
            self._seen = (found.nonce, self._clock())
        return self._clock() >= self._seen[1] + min(max(found.expires_s, _SHORTEST_S), _LONGEST_S)

    def _take(self, head: str, found: LeaseRecord, least_term: int) -> None:
        if found.boot_id not in ("", self.boot_id):
            logger.warning("taking over the lease of a runner that was last heard of at %s", found.renewed)
        own = LeaseRecord(
            boot_id=self.boot_id,
            since=self._now().isoformat(timespec="seconds"),
            expires_s=self.expires_s,
            process=self._process,
            term=found.term if found.boot_id == self.boot_id else max(found.term, least_term) + 1,
            commits=found.commits,
        )
        self._head = head
        self._write_once(own, {}, message="take the lease", urgent=True)
        self._lost = ""

    def _write(
        self,
        record: LeaseRecord,
        add: Mapping[str, Content],
        *,
        delete: Collection[str] = (),
        message: str,
        urgent: bool,
    ) -> None:
        for _ in range(_TRIES):
            try:
                self._write_once(record, add, delete=delete, message=message, urgent=urgent)
                return
            except StaleParent:
                self._look_again()
        raise HubAway("{repo} is being changed by somebody all the time: it is tried again later.", repo=self.repo_id)

    def _write_once(
        self,
        record: LeaseRecord,
        add: Mapping[str, Content],
        *,
        delete: Collection[str] = (),
        message: str,
        urgent: bool,
    ) -> None:
        begun = self._clock()
        new = dataclasses.replace(
            record,
            nonce=secrets.token_hex(8),
            renewed=self._now().isoformat(timespec="seconds"),
            commits=record.commits + 1,
        )
        self._head = self.hub.commit(
            self.repo_id,
            kind=KIND,
            add={**add, LEASE_FILE: new.to_bytes()},
            delete=delete,
            message=message,
            parent=self._head,
            urgent=urgent,
        )
        self._own, self._written = new, begun

    def _look_again(self) -> None:
        """After a refused write: whose is the lease now?"""
        head = self.hub.head(self.repo_id, kind=KIND)
        if head is None:
            raise RepoMissing(
                "{repo} is gone: it is made again, and what this runner knows is saved in it.", repo=self.repo_id
            )
        try:
            found = self._read(head)
        except StaleParent:
            return  # changed once more: the next write is refused too
        # An empty one is not another's: somebody has deleted the file, or made the repo anew.
        if found.nonce and found.boot_id != self.boot_id:
            self.other = found
            self._lost = Message(
                "another runner has had the lease since {since}: this one stops, the other goes on.", since=found.since
            )
            raise LeaseLost(self._lost)
        self._head = head

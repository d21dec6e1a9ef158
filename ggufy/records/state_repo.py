"""The state repo `<owner>/ggufy-state` on the Hub: a copy of the job records, the lease, and unfinished work.

    jobs/<job id>.json   every record, so that a machine that lost its disk knows what to do
    lease.json           who works (hub/lease.py)
    files/<key>/<name>   small files that a job needs after a restart, such as the segments of an imatrix

Records are saved on this machine, and whoever saves one never waits for the Hub: one thread takes the lease, renews
it and commits what is new, all that waits in one commit. The others put an order, and ask `held` or `check`. While the
Hub is away, takes no more commits, or does not know the token any more, everything waits; `trouble` says why.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from apscheduler.schedulers.background import BackgroundScheduler

from ggufy.core.errors import Cancelled, GgufyError, HubAway, HubError, LeaseLost, RepoMissing, sentence_of
from ggufy.core.messages import Message
from ggufy.hub.lease import KIND, Lease
from ggufy.hub.protocol import Hub, RemoteFile
from ggufy.records.account import Account
from ggufy.records.commits import BackupOrder, PendingWork, backup_path, commit_title
from ggufy.records.mirror import RecordMirror
from ggufy.records.patience import Verdict, pause_s, verdict
from ggufy.records.records import JobRecords
from ggufy.records.store import STATE_REPO
from ggufy.system.clock import CLOCK, Clock, never, sleep
from ggufy.system.timer import start_timer

logger = logging.getLogger(__name__)
_POLL_S = 15.0  # between looks at another's lease
_LONG_S = 60.0  # between tries of what does not pass by itself
_IDLE_S = 3600.0
_SILENT_S = 5.0  # after which a question that has no answer yet is worth a word
_LOOK_S = 0.2  # somebody who stops a wait is noticed as fast as this


class StateRepo:
    """One runner's view of it. Any thread may call any method; only `turn` asks the Hub to change something."""

    def __init__(
        self,
        records: JobRecords,
        hub: Hub,
        account: Account,
        make_lease: Callable[[Hub, str], Lease] = Lease,
        clock: Clock = CLOCK,
    ):
        self._records, self._hub, self._account = records, hub, account
        self._make_lease, self._clock = make_lease, clock
        self.lease: Lease | None = None  # once the owner is known
        self.trouble = ""  # why nothing gets through at the moment, for people
        self._owner = account.remembered(records.store.root)
        self._work = PendingWork()
        self._ready = False  # we hold the lease, and have read the records since
        self._error: GgufyError | None = None  # what somebody must act on
        self._failed, self._not_before = 0, float("-inf")
        self._ends = False
        self._changed = threading.Condition()
        self._scheduler: BackgroundScheduler | None = None
        self._thread = threading.Thread(target=self._loop, name="ggufy-state", daemon=True)
        self._mirror = RecordMirror(records, hub, self._changed)
        records.changed = self._mirror.mark
        records.removed = lambda job_id: self._delete([self._mirror.gone(job_id)])

    # ---- for everybody

    @property
    def owner(self) -> str:
        """The account that the token belongs to; empty until the Hub has answered, this time or an earlier one."""
        return self._owner

    @property
    def repo_id(self) -> str:
        return f"{self._owner}/{STATE_REPO}"

    @property
    def held(self) -> bool:
        """True while the lease is ours and the records here are those of the repo."""
        return self._ready and self.lease is not None and self.lease.held

    @property
    def unsent(self) -> bool:
        """True while records wait for the Hub."""
        return bool(self._mirror.unsent)

    def misses(self, job_id: str) -> str:
        """Why the repo does not know yet that a job is at work; empty if it does. Before that, nothing of it should
        be anywhere else: after the loss of this disk nobody would know whose it is. Raises LeaseLost."""
        self.check()
        if job_id in self._mirror.at_work:
            return ""
        return self.trouble or Message("the job's record goes to the Hub first.")

    def check(self) -> None:
        """Raises LeaseLost when nothing must be changed any more."""
        if self.lease is None:
            raise LeaseLost("this runner does not hold the lease.")
        self.lease.check()

    def acquire(self, stopped: Callable[[], bool] = never, say: Callable[[str], None] = lambda reason: None) -> None:
        """Waits until the lease is ours, for as long as it takes; `say` gets what is waited for. Raises Cancelled soon
        after `stopped()` turned true, and what somebody must act on, such as TokenError."""
        said, asked, began = "", False, self._clock.now()
        while not self.held:
            with self._changed:
                if not (asked and self._work.wanted):  # it may have been taken, and lost again, since it was asked for
                    asked = self._work.wanted = True
                    self._error, self._not_before = None, float("-inf")
                    self._changed.notify_all()
            if stopped() or self._ends:
                raise Cancelled("stopped while waiting for the Hub or for another runner.")
            if self._error is not None:
                raise self._error
            silent = self._clock.now() - began >= _SILENT_S
            reason = self.trouble or (Message("the Hub was asked, and has not answered yet.") if silent else "")
            if reason != said:
                said = reason
                say(said)
            with self._changed:
                self._clock.wait(self._changed, _LOOK_S)
        if said:
            say("")

    def keep(self, key: str, files: Mapping[str, Path], stopped: Callable[[], bool] = never) -> None:
        """Commits files under a key (of a job, or of its inputs), by name; returns when they are there. Their bytes go
        ahead, and hold up nobody. Raises HubError, also if nothing gets through at the moment; whether there is a
        commit to spare says `wait_s`."""
        self.check()
        if self._failed:
            raise HubAway(self.trouble)
        paths = {backup_path(key, name): path for name, path in files.items()}
        order = BackupOrder(add=self._hub.stage(self.repo_id, paths, kind=KIND, stopped=stopped))
        with self._changed:
            self._work.orders.append(order)
            self._changed.notify_all()
            while not order.done:
                if self._ends or stopped():
                    raise Cancelled("stopped while unfinished work was being saved.")
                self._clock.wait(self._changed, _LOOK_S)
        if order.error is not None:
            raise order.error

    def drop(self, key: str, names: Collection[str]) -> None:
        """Deletes kept files with one of the next commits."""
        self._delete(backup_path(key, name) for name in names)

    def _delete(self, paths: Iterable[str]) -> None:
        with self._changed:
            self._work.stale.update(paths)
            self._changed.notify_all()

    def kept(self, key: str) -> dict[str, RemoteFile]:
        """The files that are kept under the key, by name. Raises HubError."""
        start = backup_path(key, "")
        there = self._hub.list_files(self.repo_id, kind=KIND, under=start)
        stale = self._work.stale
        return {name.removeprefix(start): file for name, file in there.items() if name not in stale}

    def fetch(self, key: str, name: str, target: Path) -> None:
        """Brings a kept file here, whole or not at all. Raises HubError."""
        self._hub.download(self.repo_id, backup_path(key, name), target, kind=KIND)

    def wait_s(self) -> float:
        """Seconds until an ordinary commit may be made, 0 if now; records need not wait for it, they wait here."""
        return self._hub.wait_s()

    # ---- the thread

    def start(self, interval_s: float | None = None) -> None:
        """Starts the thread, which finds out whose token it is; with `interval_s`, it renews the lease so often."""
        self._thread.start()
        if interval_s is not None:
            self._scheduler = start_timer(self.wake, interval_s)

    def wake(self) -> None:
        """Lets the thread look whether the lease is due."""
        with self._changed:
            self._changed.notify_all()

    def close(self, wait_s: float) -> None:
        """Commits what waits and lets the next runner start at once, if that takes no longer than this."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def _loop(self) -> None:
        while not self._ends:
            try:
                self.turn()
                with self._changed:
                    if not self._ends and (wait := self._until_due()) > 0:
                        self._clock.wait(self._changed, wait)
            except Exception:  # what waits is handed nothing on by `turn` then, and is tried again
                logger.exception("the thread of the state repo")
                with contextlib.suppress(Cancelled):
                    sleep(_LONG_S, lambda: self._ends, self._clock)
        self._leave()

    def turn(self) -> float:
        """Does what is due, and hands on what goes wrong; returns the seconds until it is worth another look."""
        if self._not_before <= self._clock.now():
            try:
                self._do()
                self._failed, self.trouble = 0, "" if self._ready or not self._work.wanted else self.trouble
            except GgufyError as error:
                self._hand_on(error)
            except Exception as error:
                logger.exception("the state repo")
                self._hand_on(HubError(sentence_of(error)))
        with self._changed:
            return self._until_due()

    def _until_due(self) -> float:
        """Seconds until there may be something to do; called with the lock held."""
        work, now = self._work, self._clock.now()
        if (wait := self._not_before - now) > 0:
            return wait
        if not self._owner or self.lease is None or (work.wanted and not self.held) or (self._ready and self._due()):
            return 0.0
        if self._ready and (self.unsent or work.stale):
            return self._hub.wait_s()
        return _IDLE_S

    def _due(self) -> bool:
        return bool(self._work.orders) or (self.lease is not None and self.lease.due)

    def _do(self) -> None:
        if self.lease is None:
            self._identify()
        lease = self.lease
        assert lease is not None
        if self._work.wanted and not self.held:
            self._take(lease)
        if not self._ready:
            return
        lease.check_taken()
        if self._due() or ((self.unsent or self._work.stale) and self._hub.wait_s() <= 0):
            self._push(lease)
            lease.squash()

    def _identify(self) -> None:
        owner = self._account.ask()
        with self._changed:
            self._owner = owner
        self.lease = self._make_lease(self._hub, self.repo_id)
        self._account.remember(self._records.store.root, owner)

    def _take(self, lease: Lease) -> None:
        self._ready = False
        if not lease.try_acquire(self._records.term):
            self.trouble = Message("another runner is at work on {repo}: this one waits for it.", repo=self.repo_id)
            self._not_before = self._clock.now() + min(_POLL_S, lease.expires_s / 4)
            return
        self._hub.count_past_commits(self.repo_id, kind=KIND)
        self._mirror.refresh(self.repo_id, but=self._work.stale)
        self._records.term = max(self._records.term, lease.term)
        with self._changed:
            self._ready, self._work.wanted = True, False
            self._changed.notify_all()

    def _hand_on(self, error: GgufyError) -> None:
        # This repo is made again whenever it is missing; deleted between two questions, it is missed by one of them.
        kind = Verdict.WAITS if isinstance(error, RepoMissing) else verdict(error)
        with self._changed:
            orders, self._work.orders = self._work.orders, []
            for order in orders:
                order.done, order.error = True, error
            if kind is Verdict.MOVES:
                self._ready = False
            else:
                self._failed += 1
                pause = pause_s(self._failed, error) if kind is Verdict.WAITS else _LONG_S
                self._not_before = self._clock.now() + pause
            if kind in (Verdict.PAUSES, Verdict.FAILS):
                self._error = error
            if error.message != self.trouble:
                logger.warning("the state repo: %s", error)
            self.trouble = error.message
            self._changed.notify_all()

    def _leave(self) -> None:
        """Lets go of the lease, and takes along what waits."""
        with self._changed:
            self._work.orders.clear()
            self._changed.notify_all()
        self._records.all()  # writes what the disk had no room for
        if self._ready and self.lease is not None:
            sent = self._mirror.waiting()
            if self.lease.release(sent, delete=self._work.stale - sent.keys()):
                self._mirror.note_sent(sent)
        if self.unsent:
            logger.warning("%d job records could not be saved on the Hub: they are here.", len(self._mirror.unsent))

    # ---- commits

    def _push(self, lease: Lease) -> None:
        with self._changed:
            orders, stale = list(self._work.orders), set(self._work.stale)
        sent = self._mirror.waiting()
        more = {path: content for order in orders for path, content in order.add.items()}
        try:
            lease.commit(
                {**sent, **more}, delete=stale - {*more, *sent}, message=commit_title(sent, more), urgent=lease.due
            )
        except RepoMissing:
            logger.warning("%s is gone: it is made again, with all records that are known here", self.repo_id)
            self._hub.create_repo(self.repo_id, kind=KIND, private=True)
            lease.follow()
            self._mirror.start_anew()
            sent = self._mirror.waiting()
            lease.commit({**sent, **more}, message="save all job records", urgent=True)
        self._mirror.note_sent(sent)
        with self._changed:
            self._work.stale -= stale
            for order in orders:
                order.done = True
            self._work.orders = [order for order in self._work.orders if not order.done]
            self._changed.notify_all()

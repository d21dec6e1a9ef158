"""Repos that the page's owner follows: looked at in the background, as long as the page runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler

from ggufy.core.errors import GgufyError
from ggufy.core.job import Job
from ggufy.jobs.follow import Follower, next_look, options_record, parse_every
from ggufy.jobs.options import JobOptions
from ggufy.jobs.workspace import Workspace
from ggufy.records.followed import Followed, FollowedRepos
from ggufy.service.access import Visitor, check_owner, is_owner
from ggufy.system.settings import Settings
from ggufy.system.timer import start_timer

logger = logging.getLogger(__name__)
_TICK_S = 60


class Following:
    """What the page may do with them. Any thread may call any method; one looks."""

    def __init__(
        self,
        settings: Settings,
        workspace: Workspace,
        *,
        make: Callable[[JobOptions], Job],
        queue: Callable[[Job], Any],
        stopped: Callable[[], bool],
    ):
        self._settings, self._workspace = settings, workspace
        self._repos = FollowedRepos(settings.out)
        self._follower = Follower(
            repos=self._repos,
            workspace=workspace,
            make=make,
            queue=queue,
            token=settings.hf_token,
            stopped=stopped,
        )
        self._same = False  # the state repo knows what is known here, and the other way round
        self._scheduler: BackgroundScheduler | None = None

    def start(self) -> None:
        """Begins to look; returns at once."""
        self._scheduler = start_timer(self.tick, _TICK_S, at_once=True)

    def close(self) -> None:
        """Looks no more."""
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)
            self._scheduler = None

    def tick(self) -> None:
        """Looks at what is due, if the account's work is this runner's."""
        if self._workspace.state is not None and not self._workspace.state.held:
            self._same = False
            return
        due = any(next_look(one) <= datetime.now(UTC) for one in self._repos.all())
        if self._same and not due:
            return
        try:
            self._follower.synchronize()
            self._follower.look_due()
            self._same = True  # unless somebody follows another one meanwhile
            self._follower.synchronize()
        except GgufyError as error:
            self._same = False
            logger.warning("followed repos: %s", error)

    def follow(self, source: str, options: JobOptions, every: str, visitor: Visitor) -> None:
        """Begins to follow a repo, or changes how it is followed. Raises UsageError, SourceError, DiskError."""
        check_owner(visitor, self._settings)
        self._follower.follow(source, options_record(options), parse_every(every))
        self._same = False

    def remove(self, source: str, visitor: Visitor) -> None:
        """Ends it. Raises UsageError, DiskError."""
        check_owner(visitor, self._settings)
        self._repos.remove(source)
        self._same = False

    def repos(self, visitor: Visitor) -> list[Followed]:
        """Those that are followed, for their owner."""
        return self._repos.all() if is_owner(visitor, self._settings) else []

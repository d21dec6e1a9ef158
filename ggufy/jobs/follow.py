"""Following a repo: models that are new in it are queued, each once.

A look lists what matches at one commit. A model is known by the digest of its bytes: one that was renamed is not new,
one that was uploaded again with other bytes is. What no job can be made of is left out, and said; while the Hub is
away, or the account's work is another runner's, everything waits for the next look.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ggufy.core.errors import GgufyError, SourceAway, SourceError, UsageError
from ggufy.core.job import Job
from ggufy.core.messages import Message
from ggufy.core.words import brief
from ggufy.jobs.options import OPTIONS, JobOptions
from ggufy.jobs.several import check_names
from ggufy.jobs.values import read_options
from ggufy.jobs.workspace import Workspace
from ggufy.records.followed import FILE_NAME, LEAST_S, Followed, FollowedRepos, now
from ggufy.sources.variants import RepoModel, list_models
from ggufy.system.clock import never

logger = logging.getLogger(__name__)
DEFAULT_EVERY = "6h"
_AGAIN_S = 300  # after a look that did not succeed
_MOST_AT_ONCE = 20  # jobs of one look; the next goes on
_KEY = "followed"  # of the file in the state repo
_UNITS = {"m": 60, "h": 3600, "d": 86_400}


def parse_every(text: str) -> int:
    """Seconds of `30m`, `6h` or `1d`. Raises UsageError for anything else."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text.strip())
    if found is None:
        raise UsageError("{text} is no time between looks: write 30m, 6h or 1d.", text=repr(brief(text)))
    return int(found[1]) * _UNITS[found[2]]


def options_record(options: JobOptions) -> dict[str, Any]:
    """What is not as by default of the options, so that `read_options` makes the same of it. Raises UsageError for
    what several models cannot share."""
    check_names(options)
    given = {option.name: getattr(options, option.name) for option in OPTIONS}
    kept = {option.name: given[option.name] for option in OPTIONS if given[option.name] != option.default}
    kept |= {"quant_types": options.quant_types or ("none",)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def next_look(one: Followed) -> datetime:
    """When it is due."""
    if not one.looked:
        return datetime.now(UTC)
    pause = min(one.every_s, _AGAIN_S) if one.trouble else one.every_s
    return datetime.fromisoformat(one.looked) + timedelta(seconds=pause)


@dataclass(frozen=True, kw_only=True)
class Follower:
    """Looks, and queues; no two looks at a time."""

    repos: FollowedRepos
    workspace: Workspace
    make: Callable[[JobOptions], Job]  # pins a wish
    queue: Callable[[Job], Any]
    token: str | None = None
    stopped: Callable[[], bool] = never

    def follow(self, source: str, options: Mapping[str, Any], every_s: int, *, existing: bool = False) -> None:
        """Begins to follow a repo, or changes how it is followed; what is there now counts as seen, or not if
        `existing`. Raises SourceError for a repo that cannot be read, unless that may pass; UsageError, DiskError."""
        if every_s < LEAST_S:
            raise UsageError("a repo is looked at once a minute at most: give a longer time.")
        read_options(source, options)
        known = self.repos.find(source)
        there: list[RepoModel] | None = None  # not known: the first look will be
        with contextlib.suppress(SourceAway):
            there = [] if known else self._models(source)
        wish = Followed(source=source, options=options, every_s=every_s)
        if known is None and existing:
            wish = replace(wish, begun=True)
        elif known is None and there is not None:
            wish = replace(wish, begun=True, seen={model.digest: model.name for model in there}, looked=now())
        self.repos.put(wish)

    def look_due(self) -> list[Job]:
        """Looks at every repo whose time has come; returns the jobs that were queued."""
        at = datetime.now(UTC)
        return [job for one in self.repos.all() if next_look(one) <= at for job in self.look(one.source)]

    def look(self, source: str) -> list[Job]:
        """Looks at a repo now; returns the jobs that were queued. What goes wrong is noted, and tried again."""
        one = self.repos.find(source)
        if one is None:
            return []
        jobs: list[Job] = []
        trouble = ""
        try:
            models = self._models(source)
            if not one.begun:
                self._note(source, begun=True, seen={model.digest: model.name for model in models})
            fresh = [model for model in models if one.begun and model.digest not in one.seen]
            for model in fresh[:_MOST_AT_ONCE]:
                jobs += self._queue_model(one, model)
        except GgufyError as error:
            if self.stopped():
                raise
            logger.warning("%s is looked at again later: %s", source, error)
            trouble = error.message
        self._note(source, looked=now(), trouble=trouble)
        return jobs

    def _models(self, source: str) -> list[RepoModel]:
        return list_models(source, token=self.token, stopped=self.stopped)

    def _queue_model(self, one: Followed, model: RepoModel) -> list[Job]:
        """Queues its job, unless there is such a job already; and notes that it is not new any more."""
        jobs: list[Job] = []
        try:
            options = read_options(model.source, one.options)
            job = self.make(self.workspace.addressed(options))
            if self.workspace.records.latest(job.id) is None:
                self.queue(job)
                jobs.append(job)
        except SourceAway:
            raise
        except (SourceError, UsageError) as error:
            logger.warning("%s is left out: %s", model.source, error)
            self._note(one.source, refused=Message("{name} was left out: {why}", name=model.name, why=error.message))
        self.repos.note(one.source, lambda it: replace(it, seen={**it.seen, model.digest: model.name}))
        return jobs

    def _note(self, source: str, **changes: Any) -> None:
        self.repos.note(source, lambda one: replace(one, **changes))

    # ---- the state repo

    def synchronize(self) -> None:
        """Joins what is followed here with what the state repo knows, and brings there what it does not; for who holds
        the lease. Raises HubError, also if nothing gets through at the moment."""
        if (state := self.workspace.state) is None:
            return
        there = state.kept(_KEY).get(FILE_NAME)
        with TemporaryDirectory(prefix="ggufy-") as folder:
            path = Path(folder) / FILE_NAME
            if there is not None and not there.holds(self.repos.shared().encode()):
                state.fetch(_KEY, FILE_NAME, path)
                try:
                    self.repos.merge(path.read_text(encoding="utf-8"))
                except ValueError as error:
                    logger.warning("%s of the state repo is left aside: %s", FILE_NAME, error)
            shared = self.repos.shared()
            if shared and (there is None or not there.holds(shared.encode())):
                path.write_text(shared, encoding="utf-8")
                state.keep(_KEY, {FILE_NAME: path}, self.stopped)

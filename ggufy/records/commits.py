"""What goes into the next commit to the state repo beside the records, and what such a commit is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ggufy.core.errors import GgufyError
from ggufy.hub.protocol import Content
from ggufy.records.mirror import parse_record

_FILES = "files"


@dataclass(kw_only=True)
class BackupOrder:
    """What goes into the next commit beside the records; somebody waits for it."""

    add: Mapping[str, Content]
    done: bool = False
    error: GgufyError | None = None


@dataclass(kw_only=True)
class PendingWork:
    """What waits for the thread."""

    orders: list[BackupOrder] = field(default_factory=list)
    stale: set[str] = field(default_factory=set)  # paths to delete with the next commit
    wanted: bool = False  # somebody waits for the lease


def backup_path(key: str, name: str) -> str:
    """Where a file that is kept under a key lies in the repo."""
    return f"{_FILES}/{key}/{name}"


def commit_title(sent: Mapping[str, bytes], more: Mapping[str, Content]) -> str:
    """Of a commit, for people."""
    if more:
        return "save unfinished work"
    jobs = [job for data in sent.values() if (job := parse_record(data))]
    return "; ".join(f"{job.id}: {job.status}" for job in jobs[:3]) or "renew the lease"

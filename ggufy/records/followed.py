"""The repos that are followed, in one small file: `ggufy-state/followed.json`, written whole or not at all.

It holds, for each, which models were there when it was begun or have been queued since, by their digests, so that no
restart and no other machine queues them again. `shared` is what goes to the state repo of it, and `merge` joins what
another machine has left there. Any thread, and any process on this machine, may read and change it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from ggufy.core.messages import Message
from ggufy.core.scrub import scrub
from ggufy.records.store import STATE_REPO
from ggufy.system.files import write_text
from ggufy.system.locks import lock

logger = logging.getLogger(__name__)
VERSION = 1
FILE_NAME = "followed.json"
LEAST_S = 60  # between looks
_LOCK_WAIT_S = 10.0
_HERE = ("looked", "trouble")  # fields that say something of this machine only
_TEXTS = ("source", "created", "changed", "looked")


def now() -> str:
    """As records have it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class Followed:
    """A repo that is followed."""

    source: str  # owner/repo[@revision][:pattern], as it was typed
    options: Mapping[str, Any] = field(default_factory=dict)  # of its jobs, by the names that the API has for them
    every_s: int  # seconds from one look to the next
    begun: bool = False  # it was looked at, or what is there shall be queued too
    seen: Mapping[str, str] = field(default_factory=dict)  # digest of a model that is not new -> its name
    refused: str = ""  # why the last model that no job could be made of was left out
    removed: bool = False  # nobody follows it any more
    created: str = ""  # UTC, ISO 8601
    changed: str = ""  # when any of these fields changed; of two records the later one counts
    looked: str = ""  # when this machine looked last; empty: never
    trouble: str = ""  # why that look did not succeed

    def merged(self, other: Self) -> Self:
        """What counts of two records of the same source: of the one that was followed anew, or changed, later; what
        one has seen, both have."""
        newer, older = (
            (self, other) if (self.created, self.changed) >= (other.created, other.changed) else (other, self)
        )
        if newer.removed or newer.created != older.created:
            return newer
        seen = {**older.seen, **newer.seen}
        return dataclasses.replace(newer, seen=seen, begun=newer.begun or older.begun)


class FollowedRepos:
    """The file of one output folder."""

    def __init__(self, out: Path):
        self.path = out / STATE_REPO / FILE_NAME

    def all(self) -> list[Followed]:
        """Those that are followed, oldest first."""
        return [one for one in self._read().values() if not one.removed]

    def find(self, source: str) -> Followed | None:
        """The one of that source, or None if it is not followed."""
        return next((one for one in self.all() if one.source == source), None)

    def put(self, one: Followed) -> None:
        """Notes a repo that is to be followed, from now on if it was not before. Raises DiskError, BusyError."""
        with self._changing() as known:
            at = now()
            before = known.get(one.source)
            if before is None or before.removed:
                known[one.source] = dataclasses.replace(one, created=at, changed=at)
            elif (before.options, before.every_s) != (one.options, one.every_s):
                known[one.source] = dataclasses.replace(before, options=one.options, every_s=one.every_s, changed=at)

    def remove(self, source: str) -> bool:
        """Ends it; False if it was not followed. Raises DiskError, BusyError."""
        with self._changing() as known:
            one = known.get(source)
            if one is None or one.removed:
                return False
            known[source] = dataclasses.replace(one, removed=True, seen={}, refused="", trouble="", changed=now())
            return True

    def note(self, source: str, change: Callable[[Followed], Followed]) -> None:
        """Writes what `change` makes of one that is still followed. Raises DiskError, BusyError."""
        with self._changing() as known:
            one = known.get(source)
            if one is not None and not one.removed:
                new = change(one)
                known[source] = new if _shared(new) == _shared(one) else dataclasses.replace(new, changed=now())

    def shared(self) -> str:
        """What other machines should know, as JSON; empty if there is nothing."""
        known = self._read()
        return _text([_shared(one) for one in known.values()]) if known else ""

    def merge(self, theirs: str) -> None:
        """Takes over what `shared` gave on another machine. Raises ValueError for anything else, DiskError,
        BusyError."""
        found = _parsed(theirs)
        with self._changing() as known:
            for source, other in found.items():
                own = known.get(source)
                here = {name: getattr(own, name) for name in _HERE} if own else {}
                known[source] = dataclasses.replace(own.merged(other) if own else other, **here)

    def _read(self) -> dict[str, Followed]:
        try:
            return _parsed(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            logger.warning("%s is left aside: %s", self.path, error)
            return {}

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Followed]]:
        busy = Message("another program is changing {name}: try again.", name=FILE_NAME)
        with lock(self.path.with_suffix(".lock"), wait_s=_LOCK_WAIT_S, message=busy):
            known = self._read()
            before = dict(known)
            yield known
            if known != before:
                write_text(self.path, _text([dataclasses.asdict(one) for one in known.values()]))


def _shared(one: Followed) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(one).items() if name not in _HERE}


def _text(repos: list[dict[str, Any]]) -> str:
    record = {"version": VERSION, "repos": [{key: _said(value) for key, value in one.items()} for one in repos]}
    return scrub(json.dumps(record, indent=2, ensure_ascii=False)) + "\n"


def _said(value: Any) -> Any:
    return value.to_record() if isinstance(value, Message) else value


def _parsed(text: str) -> dict[str, Followed]:
    """By source, oldest first. Raises ValueError for what `_text` did not write: it may come from the Hub."""
    record = json.loads(text)
    if not isinstance(record, dict) or record.get("version") != VERSION or not isinstance(record.get("repos"), list):
        raise ValueError(f"not a record of followed repos of version {VERSION}")
    found = [_one(one) for one in record["repos"]]
    return {one.source: one for one in sorted(found, key=lambda one: one.created)}


def _one(record: Any) -> Followed:
    if not isinstance(record, dict):
        raise ValueError("not a followed repo")
    known = {item.name for item in dataclasses.fields(Followed)}
    fields = {name: value for name, value in record.items() if name in known}
    for name in ("refused", "trouble"):
        said = fields.get(name, "")
        fields[name] = Message.from_record(said) if isinstance(said, dict) else str(said)
    seen, every_s = fields.get("seen", {}), fields.get("every_s")
    if (
        type(every_s) is not int
        or every_s < LEAST_S
        or not fields.get("source")
        or not all(isinstance(fields.get(name, ""), str) for name in _TEXTS)
        or not isinstance(fields.get("options", {}), dict)
        or not isinstance(seen, dict)
        or not all(isinstance(name, str) for name in seen.values())
    ):
        raise ValueError("not a followed repo")
    return Followed(**fields)

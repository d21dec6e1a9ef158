"""Who makes which quant of a job, where several Jobs share one: small files in the state repo, one for each quant.

    files/shares/<job id>/<quant>.json
        {"version": 1, "worker": name, "run": digits, "made": null, or the job's record with that quant alone}

Before a quant is made it is claimed by such a file; when it has arrived and is measured, the file is written again.
Each commit names the one that was read as its parent: of two that claim at once, one is refused and reads again. A
claim holds as long as its worker is at work (see sharing.py); no time is compared, and nothing has to be renewed.
Only who holds the lease deletes these files, and only when the job's record has all that they say.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from ggufy.core.errors import HubAway, StaleParent
from ggufy.core.job import Job
from ggufy.core.job_record import from_json, to_json
from ggufy.hub.lease import KIND
from ggufy.hub.protocol import Content, Hub, RemoteFile
from ggufy.records.commits import backup_path
from ggufy.records.mirror import parse_record
from ggufy.records.store import JOBS

_VERSION = 1
_TRIES = 20  # in a row that somebody else's commits may refuse


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a file says."""

    worker: str = ""  # who makes it
    run: str = ""  # which of its processes: a Job is begun again when it fails
    made: Job | None = None  # the job's record with this quant alone, once it has arrived

    def to_bytes(self) -> bytes:
        made = json.loads(to_json(self.made)) if self.made else None
        record = {"version": _VERSION, "worker": self.worker, "run": self.run, "made": made}
        return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes | None) -> Claim:
        """What cannot be read claims nothing."""
        try:
            record = json.loads(data or b"{}")
            if record.get("version") != _VERSION:
                return cls()
            made = from_json(json.dumps(record["made"])) if record.get("made") else None
            return cls(worker=str(record["worker"]), run=str(record["run"]), made=made)
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()


class Shares:
    """The claims of one job, as one process sees them. Methods raise HubErrors."""

    def __init__(self, hub: Hub, repo_id: str, job_id: str, worker: str):
        self._hub, self._repo_id, self._job_id = hub, repo_id, job_id
        self.key, self.own = f"shares/{job_id}", Claim(worker=worker, run=secrets.token_hex(8))
        self._read: dict[str, tuple[RemoteFile, Claim]] = {}  # by quant: the file, and what it says

    def record(self) -> Job | None:
        """The job's record in the state repo."""
        return parse_record(self._hub.read(self._repo_id, f"{JOBS}/{self._job_id}.json", kind=KIND))

    def claims(self) -> dict[str, Claim]:
        """By quant."""
        start = backup_path(self.key, "")
        there = self._hub.list_files(self._repo_id, kind=KIND, under=start)
        found = {}
        for path, file in there.items():
            quant = path.removeprefix(start).removesuffix(".json")
            known = self._read.get(quant)
            if known is None or known[0] != file:
                known = file, Claim.from_bytes(self._hub.read(self._repo_id, path, kind=KIND))
            found[quant] = known
        self._read = found
        return {quant: claim for quant, (_, claim) in found.items()}

    def commit(self, choose: Callable[[Mapping[str, Claim]], Mapping[str, Claim]]) -> Collection[str]:
        """Writes the files that `choose` gives for the claims of now, all or none; returns of which quants."""
        for _ in range(_TRIES):
            head = self._hub.head(self._repo_id, kind=KIND)  # first: whatever changes after that is noticed
            chosen = choose(self.claims())
            if not chosen or head is None:
                return ()
            add: dict[str, Content] = {
                backup_path(self.key, f"{quant}.json"): claim.to_bytes() for quant, claim in chosen.items()
            }
            title = f"{self._job_id}: {', '.join(chosen)}"
            try:
                self._hub.commit(self._repo_id, kind=KIND, add=add, message=title, parent=head)
            except StaleParent:
                continue
            return chosen.keys()
        raise HubAway("{repo} is being changed by somebody all the time: it is tried again later.", repo=self._repo_id)

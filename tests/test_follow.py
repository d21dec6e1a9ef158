"""Following a repo of the test Hub: what is new is queued once, whatever restarts, other machines and renaming do."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from ggufy.core.errors import SourceError, UsageError
from ggufy.core.job import Job
from ggufy.jobs.follow import Follower, next_look, options_record, parse_every
from ggufy.jobs.request import make_job
from ggufy.jobs.values import read_options
from ggufy.jobs.workspace import Workspace
from ggufy.net import session as hub_session
from ggufy.records.followed import Followed, FollowedRepos
from ggufy.records.records import JobRecords
from ggufy.records.run_state import RunState
from ggufy.records.store import JobStore
from ggufy.sources.variants import is_pattern, list_models
from tests.folder_hub import LocalHub as FolderHub
from tests.hands import HandClock
from tests.hub_fixture import LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.test_service import settings
from tests.test_state_repo import Machine

pytestmark = pytest.mark.fast
NUMBERS = itertools.count()
OPTIONS = options_record(read_options("x/y", {"quant_types": "Q8_0", "imatrix": "none"}))


@pytest.fixture(autouse=True)
def hub(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", local_hub.endpoint)
    template = local_hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    local_hub.mend()
    return local_hub


@pytest.fixture
def repo(hub: LocalHub) -> str:
    """With one model, and what is none."""
    name = f"bob/followed-{next(NUMBERS)}"
    hub.put(name, "old.pth", b"old")
    hub.put(name, "README.md", b"# Card", lfs=0)
    return name


def follower(out: Path, workspace: Workspace | None = None) -> Follower:
    """As one start of the program makes it."""
    place = workspace or Workspace(records=JobRecords(JobStore(out / "out")))
    own = settings(out)
    return Follower(
        repos=FollowedRepos(out / "out"),
        workspace=place,
        make=lambda options: make_job(options, own),
        queue=lambda job: place.records.queue(job, RunState().run_id),
    )


def names(jobs: list[Job]) -> list[str]:
    return [job.request.source.path for job in jobs]


def test_a_new_model_is_queued_once_over_restarts(repo: str, hub: LocalHub, tmp_path: Path) -> None:
    first = follower(tmp_path)
    first.follow(repo, OPTIONS, 3600)
    assert first.look(repo) == []  # what was there counts as seen
    put = hub.put(repo, "new.pth", b"new")
    (job,) = first.look(repo)
    source = job.request.source
    assert (source.path, source.revision, source.sha256) == ("new.pth", put["sha"], put["oid"])
    assert job.request.quant_types == ("Q8_0",) and job.request.imatrix == "none"
    assert first.look(repo) == []
    again = follower(tmp_path)
    again.follow(repo, OPTIONS, 3600)  # as a scheduler types it each time
    assert again.look(repo) == []
    assert names(again.workspace.records.all()) == ["new.pth"]


def test_other_bytes_are_new_and_another_name_is_not(repo: str, hub: LocalHub, tmp_path: Path) -> None:
    here = follower(tmp_path)
    here.follow(repo, OPTIONS, 3600)
    hub.put(repo, "renamed.pth", b"old")
    assert here.look(repo) == []
    hub.put(repo, "old.pth", b"better")
    assert names(here.look(repo)) == ["old.pth"]
    hub.put(repo, "old.pth", b"old")
    assert here.look(repo) == []


def test_what_is_there_is_queued_if_that_is_wanted_and_only_at_first(repo: str, tmp_path: Path) -> None:
    here = follower(tmp_path)
    for _ in range(2):
        here.follow(repo, OPTIONS, 3600, existing=True)
        here.look(repo)
    assert names(here.workspace.records.all()) == ["old.pth"]
    assert here.look(repo) == []


def test_a_pattern_chooses_what_is_new(repo: str, hub: LocalHub, tmp_path: Path) -> None:
    source = f"{repo}:*-pro.pth"
    here = follower(tmp_path)
    here.follow(source, OPTIONS, 3600)
    for path in ("a-pro.pth", "b.pth", "deep/c-pro.pth"):
        hub.put(repo, path, path.encode())
    assert names(here.look(source)) == ["a-pro.pth", "deep/c-pro.pth"]


def test_a_kill_between_queueing_and_noting_queues_nothing_twice(
    repo: str, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = follower(tmp_path)
    here.follow(repo, OPTIONS, 3600)
    hub.put(repo, "new.pth", b"new")

    class Killed(BaseException):
        pass

    def killed(self: FollowedRepos, source: str, change: Callable[[Followed], Followed]) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(FollowedRepos, "note", killed)
        here.look(repo)
    (job,) = here.workspace.records.all()
    queued = []
    again = replace(follower(tmp_path), queue=queued.append)
    assert again.look(repo) == [] and queued == []
    assert again.workspace.records.all() == [job]


def test_the_hub_away_is_said_and_waited_for(repo: str, hub: LocalHub, tmp_path: Path) -> None:
    here = follower(tmp_path)
    here.follow(repo, OPTIONS, 86_400)
    hub.put(repo, "new.pth", b"new")
    hub.fault(f"GET /api/models/{repo}.*", status=503, times=100)
    assert here.look(repo) == []
    (one,) = here.repos.all()
    assert one.trouble and (next_look(one) - next_look(replace(one, trouble=""))).total_seconds() < -80_000
    hub.mend()
    assert names(here.look(repo)) == ["new.pth"]
    assert here.repos.all()[0].trouble == ""


def test_followed_while_the_hub_is_away(repo: str, hub: LocalHub, tmp_path: Path) -> None:
    """What is there at the first look counts as seen."""
    here = follower(tmp_path)
    hub.fault(f"GET /api/models/{repo}.*", status=503, times=100)
    here.follow(repo, OPTIONS, 3600)
    hub.mend()
    assert here.look(repo) == []
    hub.put(repo, "new.pth", b"new")
    assert names(here.look(repo)) == ["new.pth"]


def test_what_no_job_can_be_made_of_is_left_out_and_said(repo: str, hub: LocalHub, tmp_path: Path) -> None:
    here = follower(tmp_path)
    here.follow(repo, OPTIONS, 3600)
    hub.put(repo, "a.pth", b"text", lfs=0)
    hub.put(repo, "b.pth", b"weights")
    assert names(here.look(repo)) == ["b.pth"]
    assert "a.pth was left out: a.pth in" in here.repos.all()[0].refused
    assert here.look(repo) == []
    assert "a.pth" in FollowedRepos(tmp_path / "out").all()[0].refused


@pytest.mark.parametrize("text", ["", "6", "0h", "h", "-1h", "1w", "999999m"])
def test_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="no time between looks"):
        parse_every(text)


def test_what_cannot_be_followed(repo: str, tmp_path: Path) -> None:
    here = follower(tmp_path)
    for source in ("demo", "./x.pth", "https://example.org/m.pth"):
        with pytest.raises(SourceError, match="is no repo on the Hub"):
            here.follow(source, OPTIONS, 3600)
    with pytest.raises(SourceError):
        here.follow("bob/nothing-there", OPTIONS, 3600)
    with pytest.raises(UsageError, match="once a minute"):
        here.follow(repo, OPTIONS, 30)
    with pytest.raises(UsageError, match="for one model"):
        options_record(read_options(repo, {"name": "x"}))
    assert [parse_every(text) for text in ("30m", "6h", "1d")] == [1800, 21_600, 86_400]
    assert here.repos.all() == []


def test_the_options_come_back(tmp_path: Path) -> None:
    for values in ({"quant_types": "none"}, {"quant_types": "Q8_0", "mix": "stock", "chunks": 7, "evaluate": False}):
        options = read_options("x/y", values)
        assert read_options("x/y", json.loads(json.dumps(options_record(options)))) == options
    assert tmp_path.is_dir()


def test_a_repo_that_is_followed_no_longer_and_then_again(repo: str, hub: LocalHub, tmp_path: Path) -> None:
    here = follower(tmp_path)
    here.follow(repo, OPTIONS, 3600)
    assert here.repos.remove(repo) and not here.repos.remove(repo)
    hub.put(repo, "new.pth", b"new")
    assert here.look(repo) == [] and here.look_due() == []
    here.follow(repo, OPTIONS, 3600)
    assert here.look(repo) == []  # begun anew


# ---- other machines


def machine(out: Path, hub: FolderHub, clock: HandClock) -> tuple[Machine, Follower]:
    one = Machine(out / "out", hub, clock)
    assert one.take()
    workspace = Workspace(records=one.records, hub=hub, state=one.state)
    clock.meanwhile = one.state.turn
    return one, follower(out, workspace)


def test_another_machine_knows_what_was_queued(repo: str, hub: LocalHub, tmp_path: Path) -> None:
    shared, clock = FolderHub(tmp_path / "hub"), HandClock()
    first, here = machine(tmp_path / "a", shared, clock)
    here.follow(repo, OPTIONS, 3600)
    hub.put(repo, "new.pth", b"new")
    assert names(here.look(repo)) == ["new.pth"]
    here.synchronize()
    first.leave()
    second, there = machine(tmp_path / "b", shared, clock)
    there.synchronize()
    (one,) = there.repos.all()
    assert (one.source, one.every_s, one.looked) == (repo, 3600, "")
    assert there.look(repo) == []
    hub.put(repo, "newer.pth", b"newer")
    assert names(there.look(repo)) == ["newer.pth"]
    there.repos.remove(repo)
    there.synchronize()
    second.leave()
    third, back = machine(tmp_path / "a", shared, clock)
    back.synchronize()
    assert back.repos.all() == []  # and stays so
    third.leave()


def test_a_look_that_finds_nothing_commits_nothing(repo: str, tmp_path: Path) -> None:
    clock, shared = HandClock(), FolderHub(tmp_path / "hub")
    one, here = machine(tmp_path / "a", shared, clock)
    here.follow(repo, OPTIONS, 3600)
    here.synchronize()
    head = shared.head("alice/ggufy-state", kind="dataset")
    here.look(repo)
    here.synchronize()
    assert shared.head("alice/ggufy-state", kind="dataset") == head
    one.leave()


RECORD = Followed(source="a/b", every_s=60, created="2026-01-01", changed="2026-01-02", begun=True, seen={"1": "a"})


def test_of_two_records_the_later_one_counts_and_both_have_seen() -> None:
    other = replace(RECORD, changed="2026-01-03", every_s=90, seen={"2": "b"})
    assert RECORD.merged(other) == other.merged(RECORD) == replace(other, seen={"1": "a", "2": "b"})
    gone = replace(RECORD, changed="2026-01-04", removed=True, seen={})
    assert RECORD.merged(gone) == gone.merged(RECORD) == gone
    anew = replace(RECORD, created="2026-01-05", changed="2026-01-05", seen={"3": "c"})
    assert gone.merged(anew) == anew.merged(gone) == anew


@pytest.mark.parametrize(
    "change",
    [
        {"every_s": 0},
        {"every_s": True},
        {"source": ""},
        {"source": 3},
        {"seen": ["x"]},
        {"seen": {"x": 1}},
        {"options": []},
        {"changed": None},
        {"refused": {"template": 3}},
    ],
)
def test_a_record_from_elsewhere_that_is_none(change: dict[str, object], tmp_path: Path) -> None:
    repos = FollowedRepos(tmp_path)
    repos.put(RECORD)
    record = json.loads(repos.shared())
    record["repos"][0] |= change
    with pytest.raises(ValueError, match="followed repo|not a message"):
        repos.merge(json.dumps(record))
    for other in ("[]", "{}", '{"version": 2, "repos": []}', '{"version": 1, "repos": [3]}', "x"):
        with pytest.raises(ValueError):
            repos.merge(other)
    assert [one.source for one in repos.all()] == ["a/b"]


# ---- patterns


def test_patterns_of_a_repo(hub: LocalHub) -> None:
    repo = f"bob/many-{next(NUMBERS)}"
    for path in ("a1.pth", "a2.pth", "b[1].pth", "deep/a3.pth", "m-F16.gguf", "m-Q8_0.gguf", "note.txt"):
        put = hub.put(repo, path, path.encode())
    found = {
        pattern: [model.name for model in list_models(f"{repo}:{pattern}" if pattern else repo)]
        for pattern in ("", "a?.pth", "a[2-9].pth", "*a*.pth", "deep/*", "*", "*-F16.gguf", "b[1].pth", "note*", "A*")
    }
    assert found == {
        "": ["a1.pth", "a2.pth", "b[1].pth", "deep/a3.pth"],
        "a?.pth": ["a1.pth", "a2.pth"],
        "a[2-9].pth": ["a2.pth"],
        "*a*.pth": ["a1.pth", "a2.pth", "deep/a3.pth"],
        "deep/*": ["deep/a3.pth"],
        "*": ["a1.pth", "a2.pth", "b[1].pth", "deep/a3.pth"],
        "*-F16.gguf": ["m-F16.gguf"],
        "b[1].pth": ["b[1].pth"],
        "note*": [],
        "A*": [],
    }
    assert list_models(f"{repo}:a1*")[0].source == f"{repo}@{put['sha']}:a1.pth"


def test_what_is_a_pattern() -> None:
    assert all(is_pattern(text) for text in ("a/b:*.pth", "a/b@v1:x?.pth", "a/b:[ab].pth"))
    assert not any(is_pattern(text) for text in ("a/b", "a/b:c.pth", "demo", "./*.pth", "*.pth", "https://["))

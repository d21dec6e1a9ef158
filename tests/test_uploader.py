"""The thread that uploads: what passes is waited for, and what does not reaches the job."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ggufy.core.errors import Cancelled, HubAway, HubError, LeaseLost, QuotaError, RepoMissing, TokenError
from ggufy.core.job import Artifact, Status
from ggufy.jobs.options import JobOptions
from ggufy.jobs.request import make_job
from ggufy.jobs.runner import Runner
from ggufy.llama.install import Llama
from ggufy.publish import hub_repo, uploader
from ggufy.publish.uploader import Uploader
from ggufy.records.patience import Patience
from ggufy.records.run_state import RunState
from ggufy.steps.context import artifact_of
from ggufy.system.settings import Settings
from tests import tiny
from tests.folder_hub import LocalHub, connected
from tests.hands import QuickClock
from tests.hub_client import wait_for

REPO = "alice/model"


class Impatient(threading.Event):
    """Set by itself after a minute, for what would otherwise wait for ever."""

    def __init__(self) -> None:
        super().__init__()
        timer = threading.Timer(60.0, self.set)
        timer.daemon = True
        timer.start()


class Faulty(LocalHub):
    """A hub whose next commits fail in these ways, and that has a commit to spare at this time by the clock."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.clock = QuickClock()
        self.fails: list[Exception | Callable[[], object]] = []
        self.spares = 0.0

    def commit(self, *arguments: object, **options: object) -> str:
        if self.fails:
            fails = self.fails.pop(0)
            if isinstance(fails, Exception):
                raise fails
            fails()
        return super().commit(*arguments, **options)  # type: ignore[arg-type]

    def wait_s(self) -> float:
        return max(0.0, self.spares - self.clock.time)


class Run:
    """An uploader at work, and what was heard of it."""

    def __init__(self, hub: Faulty, folder: Path, stopped: Callable[[], bool] | None = None):
        self.hub, self.folder, self.said, self.batches = hub, folder, list[str](), list[list[str]]()
        self.fractions: dict[str, float] = {}
        self.cards: list[list[str]] = []
        self.patience = Patience(stopped=stopped or Impatient().is_set, clock=hub.clock)
        self.uploader = Uploader(
            hub,
            REPO,
            private=False,
            pages=self.pages,
            patience=self.patience,
            uploaded=lambda artifacts: self.batches.append([artifact.name for artifact in artifacts]),
            fraction=lambda artifact, done: self.fractions.update({artifact.name: done}),
        )

    def pages(self, sizes: Mapping[str, int]) -> Mapping[str, str]:
        self.cards.append(sorted(set(sizes) - {"README.md"}))
        return {"README.md": f"card {len(self.cards)}"}

    def put(self, *names: str) -> None:
        for name in names:
            (self.folder / name).write_bytes(name.encode())
            self.uploader.put(self.folder / name, artifact_of(self.folder / name))

    def drain(self) -> None:
        self.uploader.drain(self.said.append)

    def there(self) -> list[str]:
        return sorted(self.hub.list_files(REPO, kind="model"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(Faulty(tmp_path / "hub"), tmp_path)
    yield run
    run.uploader.close()


class BrokenClock(LocalHub):
    def wait_s(self) -> float:
        raise ZeroDivisionError("a bug in the hub")


def broken(sizes: Mapping[str, int]) -> Mapping[str, str]:
    raise ValueError("a bug in the card")


def ignore(said: str) -> None:
    pass


@pytest.mark.parametrize(("kind", "bug"), [(LocalHub, ValueError), (BrokenClock, ZeroDivisionError)])
def test_a_bug_in_the_thread_is_raised_to_who_waits(
    kind: type[LocalHub], bug: type[Exception], tmp_path: Path
) -> None:
    patience = Patience(stopped=Impatient().is_set)
    broken_one = Uploader(
        kind(tmp_path / "hub"),
        REPO,
        private=False,
        pages=broken,
        patience=patience,
        uploaded=lambda artifacts: None,
        fraction=lambda artifact, done: None,
    )
    broken_one.start(patience)
    file = tmp_path / "file"
    file.write_bytes(b"content")
    broken_one.put(file, Artifact(name="file", size=7, sha256=""))
    with pytest.raises(bug, match="a bug"):
        broken_one.drain(ignore)
    for call in (broken_one.refresh_card, lambda: broken_one.drain(ignore), lambda: broken_one.busy):
        with pytest.raises(bug, match="a bug"):
            call()
    broken_one.close()


def test_files_that_wait_share_a_commit_and_a_card(run: Run) -> None:
    first, go = threading.Event(), threading.Event()
    run.hub.fails = [lambda: (first.set(), go.wait(60))]
    run.uploader.start(run.patience)
    run.put("a.gguf")
    assert first.wait(60) and run.uploader.busy
    run.put("b.gguf", "c.gguf")
    go.set()
    run.drain()
    assert run.batches == [["a.gguf"], ["b.gguf", "c.gguf"]] and run.said == [""]
    assert run.cards == [["a.gguf"], ["a.gguf", "b.gguf", "c.gguf"]]
    assert run.there() == ["README.md", "a.gguf", "b.gguf", "c.gguf"]
    assert run.fractions == {"a.gguf": 1.0, "b.gguf": 1.0, "c.gguf": 1.0}
    there = run.uploader.file("a.gguf")
    assert there is not None and there.holds(b"a.gguf") and run.uploader.file("d.gguf") is None
    run.uploader.refresh_card()
    run.drain()
    assert len(run.cards) == 3 and run.batches[2:] == [[]]


def test_what_passes_is_waited_for_and_said(run: Run) -> None:
    run.hub.fails = [HubAway("the Hub is away.")] * 3 + [QuotaError("too much.", 100.0)]
    run.uploader.start(run.patience)
    run.put("a.gguf")
    run.drain()
    assert run.batches == [["a.gguf"]] and run.hub.clock.time > 120
    assert run.said[-1] == "" and set(run.said) <= {"", "the Hub is away.", "too much."} and len(run.said) > 1


def test_a_commit_that_has_to_wait_for_its_turn_says_until_when(run: Run) -> None:
    run.hub.spares = 60.0
    run.uploader.start(run.patience)
    run.put("a.gguf")
    run.drain()
    assert run.batches == [["a.gguf"]] and run.hub.clock.time >= 60
    assert any(said.startswith("it waits until ") for said in run.said) and run.said[-1] == ""


def test_a_repo_that_is_gone_is_made_again_but_not_for_ever(run: Run) -> None:
    run.uploader.start(run.patience)
    shutil.rmtree(run.hub.folder(REPO))
    run.put("a.gguf")
    run.drain()
    assert run.there() == ["README.md", "a.gguf"]
    run.hub.fails = [RepoMissing("it is hidden.")] * 3
    run.put("b.gguf")
    with pytest.raises(RepoMissing):
        run.drain()
    assert run.there() == ["README.md", "a.gguf"] and not run.hub.fails


@pytest.mark.parametrize("error", [TokenError("a new token."), HubError("a riddle."), LeaseLost("another's.")])
def test_what_does_not_pass_is_raised_to_who_puts_the_next_file(run: Run, error: HubError) -> None:
    run.hub.fails = [error]
    run.uploader.start(run.patience)
    run.put("a.gguf")
    wait_for(lambda: run.uploader._error is not None)
    for call in (lambda: run.put("b.gguf"), run.uploader.refresh_card, run.drain, lambda: run.uploader.busy):
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error
    assert run.there() == []


def test_a_file_that_is_not_there_as_it_was_sent_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Faulty.commit

    def damaged(hub: Faulty, *arguments: object, **options: object) -> str:
        made = real(hub, *arguments, **options)
        (hub.folder(REPO) / "a.gguf").write_bytes(b"A.gguf")
        return made

    monkeypatch.setattr(Faulty, "commit", damaged)
    run.uploader.start(run.patience)
    run.put("a.gguf")
    with pytest.raises(HubError, match="is not in alice/model as it was sent"):
        run.drain()
    assert run.batches == []


def test_a_stop_ends_the_wait_for_a_hub_that_is_away(tmp_path: Path) -> None:
    stop = threading.Event()
    run = Run(Faulty(tmp_path / "hub"), tmp_path, stop.is_set)
    run.hub.fails = [HubAway("the Hub is away.")] * 10_000
    run.uploader.start(run.patience)
    run.put("a.gguf")
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Cancelled):
        run.drain()
    run.uploader.close()
    assert not run.uploader._thread.is_alive() and run.there() == []


def test_the_end_leaves_what_still_waits(run: Run) -> None:
    run.hub.spares = float("inf")
    run.uploader.start(run.patience)
    run.put("a.gguf")
    run.uploader.close()
    run.uploader.close()
    assert not run.uploader._thread.is_alive() and run.there() == [] and (run.folder / "a.gguf").exists()


def test_the_end_waits_no_longer_than_it_may(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploader, "_LEAVE_S", 0.05)
    hangs, called = threading.Event(), threading.Event()
    run.hub.fails = [lambda: (called.set(), hangs.wait(60))]
    run.uploader.start(run.patience)
    run.put("a.gguf")
    assert called.wait(60)
    run.uploader.close()
    assert run.uploader._thread.is_alive()
    hangs.set()


def test_starting_waits_for_a_hub_that_is_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fails, said, real = [HubAway("away.")] * 3, list[str](), Faulty.create_repo

    def create(hub: Faulty, *arguments: object, **options: object) -> None:
        if fails:
            raise fails.pop()
        real(hub, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Faulty, "create_repo", create)
    run.uploader.start(replace(run.patience, say=said.append))
    assert said == ["away."] * 3 + [""]


def test_the_last_card_is_written_once_and_only_while_the_lease_is_ours(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.uploader.start(run.patience)
    run.put("a.gguf")
    run.drain()
    run.uploader.last_card()
    assert run.hub.read(REPO, "README.md", kind="model") == b"card 2"
    run.hub.fails = [HubAway("the Hub is away."), HubAway("once more.")]
    run.uploader.last_card()
    assert "the Hub is away." in caplog.text and len(run.hub.fails) == 1, "nobody waits for it"

    def lost() -> None:
        raise LeaseLost("it is another's.")

    run.uploader._patience = replace(run.uploader._patience, check=lost)
    run.uploader.last_card()
    assert len(run.hub.fails) == 1 and "it is another's." in caplog.text


@pytest.mark.tools
def test_the_job_fails_and_says_why(llama: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"GGUFY_OUT": str(tmp_path / "out"), "HOME": str(tmp_path)}
    settings = Settings.from_env(environment | {"GGUFY_CACHE": str(Settings.from_env().cache)})
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=256)
    job_options = JobOptions(source=str(checkpoint), vocab=str(vocab), name="a", quant_types=("Q8_0",), imatrix="none")
    job = make_job(job_options, settings)
    job = replace(job, request=replace(job.request, repo_id="alice/a-GGUF"))
    live = RunState()
    live.stop.cancelled = Impatient()
    here = threading.current_thread()
    monkeypatch.setattr(
        hub_repo, "pages", lambda job, facts, readme: {} if threading.current_thread() is here else broken({})
    )
    with connected(settings.out, LocalHub(tmp_path / "hub"), "alice") as workspace:
        ended = Runner(settings=settings, llama=llama, workspace=workspace).run(job, live)
    assert ended.status is Status.FAILED
    assert "ValueError: a bug in the card" in ended.error

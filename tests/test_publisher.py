"""The thread that uploads: what goes wrong in it reaches the job."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from ggufy.publisher import Publisher

from ggufy import publication
from ggufy.connection import Connection
from ggufy.hub.state import JobStore
from ggufy.intake import Wish, make_job
from ggufy.job import Artifact, Status
from ggufy.llama.install import Llama
from ggufy.runner import Live, Runner
from ggufy.settings import Settings
from tests import tiny
from tests.folder_hub import LocalHub


class Impatient(threading.Event):
    """Set by itself after a minute, for what would otherwise wait for ever."""

    def __init__(self) -> None:
        super().__init__()
        timer = threading.Timer(60.0, self.set)
        timer.daemon = True
        timer.start()


class BrokenClock(LocalHub):
    def wait_s(self) -> float:
        raise ZeroDivisionError("a bug in the hub")


def broken(sizes: Mapping[str, int]) -> Mapping[str, str]:
    raise ValueError("a bug in the card")


@pytest.mark.parametrize(("kind", "bug"), [(LocalHub, ValueError), (BrokenClock, ZeroDivisionError)])
def test_a_bug_in_the_thread_is_raised_to_who_waits(
    kind: type[LocalHub], bug: type[Exception], tmp_path: Path
) -> None:
    publisher = Publisher(
        kind(tmp_path / "hub"),
        "alice/model",
        private=False,
        pages=broken,
        check=lambda: None,
        stopped=Impatient().is_set,
        uploaded=lambda artifacts: None,
        fraction=lambda artifact, done: None,
    )
    publisher.start()
    file = tmp_path / "file"
    file.write_bytes(b"content")
    publisher.put(file, Artifact(name="file", size=7, sha256=""))
    with pytest.raises(bug, match="a bug"):
        publisher.drain()
    for call in (publisher.refresh_card, publisher.drain, lambda: publisher.busy):
        with pytest.raises(bug, match="a bug"):
            call()
    publisher.close()


@pytest.mark.tools
def test_the_job_fails_and_says_why(llama: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"GGUFY_OUT": str(tmp_path / "out"), "HOME": str(tmp_path)}
    settings = Settings.from_env(environment | {"GGUFY_CACHE": str(Settings.from_env().cache)})
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=256)
    wish = Wish(source=str(checkpoint), vocab=str(vocab), name="a", quant_types=("Q8_0",), imatrix="none")
    job = make_job(wish, settings)
    job = replace(job, request=replace(job.request, repo_id="alice/a-GGUF"))
    connection = Connection(store=JobStore(settings.out), hub=LocalHub(tmp_path / "hub"))
    live = Live()
    live.stop.cancelled = Impatient()
    here = threading.current_thread()
    monkeypatch.setattr(
        publication, "pages", lambda job, facts: {} if threading.current_thread() is here else broken({})
    )
    ended = Runner(settings=settings, llama=llama, connection=connection).run(job, live)
    assert ended.status is Status.FAILED
    assert "ValueError: a bug in the card" in ended.error

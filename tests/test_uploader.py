"""The thread that uploads: what goes wrong in it reaches the job."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ggufy.intake import Wish, make_job
from ggufy.job import Artifact, Status
from ggufy.jobs.run_state import Live
from ggufy.llama.install import Llama
from ggufy.publish import hub_repo
from ggufy.runner import Runner
from ggufy.settings import Settings
from tests import tiny
from tests.folder_hub import LocalHub, connected


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
    uploader, patience = an_uploader(kind(tmp_path / "hub"), broken)
    uploader.start(patience)
    file = tmp_path / "file"
    file.write_bytes(b"content")
    uploader.put(file, Artifact(name="file", size=7, sha256=""))
    with pytest.raises(bug, match="a bug"):
        uploader.drain(ignore)
    for call in (uploader.refresh_card, lambda: uploader.drain(ignore), lambda: uploader.busy):
        with pytest.raises(bug, match="a bug"):
            call()
    uploader.close()


@pytest.mark.tools
def test_the_job_fails_and_says_why(llama: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"GGUFY_OUT": str(tmp_path / "out"), "HOME": str(tmp_path)}
    settings = Settings.from_env(environment | {"GGUFY_CACHE": str(Settings.from_env().cache)})
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=256)
    wish = Wish(source=str(checkpoint), vocab=str(vocab), name="a", quant_types=("Q8_0",), imatrix="none")
    job = make_job(wish, settings)
    job = replace(job, request=replace(job.request, repo_id="alice/a-GGUF"))
    live = Live()
    live.stop.cancelled = Impatient()
    here = threading.current_thread()
    monkeypatch.setattr(hub_repo, "pages", lambda job, facts: {} if threading.current_thread() is here else broken({}))
    with connected(settings.out, LocalHub(tmp_path / "hub"), "alice") as connection:
        ended = Runner(settings=settings, llama=llama, connection=connection).run(job, live)
    assert ended.status is Status.FAILED
    assert "ValueError: a bug in the card" in ended.error

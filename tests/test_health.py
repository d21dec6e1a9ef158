"""What GET /health tells, and the watchdog that starts a program anew whose job hangs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ggufy.core.job import Job
from ggufy.jobs.queue import Worker
from ggufy.jobs.runner import Runner
from ggufy.jobs.workspace import connect
from ggufy.records.records import JobRecords
from ggufy.records.store import JobStore
from ggufy.service.health import HANGS_S, Health, Watchdog
from ggufy.system.settings import Settings
from tests.test_views import REQUEST
from tests.test_worker import Hanging

pytestmark = pytest.mark.fast
SECRET = "hf_secretsecretsecret"


def settings(tmp_path: Path, **more: str) -> Settings:
    return Settings.from_env({"GGUFY_OUT": str(tmp_path), "HOME": str(tmp_path), **more})


def test_a_job_that_no_longer_asks_whether_it_should_end_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = JobRecords(JobStore(tmp_path))
    runner = Hanging(records)
    worker = Worker(records=records, make_runner=lambda: cast(Runner, runner))
    health = Health(settings(tmp_path), worker, connect(settings(tmp_path)))
    assert not health.facts()["ok"]  # nobody works
    worker.start()
    assert health.facts()["ok"] and worker.silent_s() == 0  # nothing to do
    job = worker.submit(Job(request=REQUEST))
    assert runner.hangs.wait(60)
    live = worker.live(job.id)
    assert live is not None
    live.stop.asked -= HANGS_S + 1
    facts = health.facts()
    assert not facts["ok"] and cast(dict[str, float], facts["worker"])["silent_s"] > HANGS_S
    live.stop()  # it asks again
    assert health.facts()["ok"]
    runner.answers.set()
    worker.shutdown()
    assert not health.facts()["ok"]
    health.close()


def test_the_watchdog_restarts_once_and_only_what_hangs() -> None:
    silent = iter([0.0, 59.0, 60.0])
    waited: list[float] = []
    restarts: list[None] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    dog = Watchdog(lambda: next(silent), wait, lambda: restarts.append(None), hangs_s=60.0)
    dog.watch()
    assert len(restarts) == 1 and waited == [30.0] * 3
    Watchdog(lambda: 1e9, lambda _: True, lambda: restarts.append(None)).watch()  # the program ends
    assert len(restarts) == 1


def test_a_program_that_hangs_starts_anew_as_it_was_called(tmp_path: Path) -> None:
    code = """
import sys, threading
from pathlib import Path
from ggufy.service.health import Watchdog
log = Path(sys.argv[1])
with log.open("a") as file:
    print(*sys.argv[1:], file=file)
if len(log.read_text().splitlines()) == 1:
    Watchdog(lambda: 9.0, threading.Event().wait, hangs_s=0.01).start()
    threading.Event().wait()  # a hand that nobody takes
"""
    program = tmp_path / "hangs.py"
    program.write_text(code)
    words = [sys.executable, str(program), str(tmp_path / "log"), "a b", "c"]
    subprocess.run(words, check=True, timeout=100, cwd=Path(__file__).parent.parent, env={"PYTHONPATH": "."})
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == second and first.endswith("a b c")


def test_the_lease_and_the_last_error_are_told_and_nothing_private(tmp_path: Path) -> None:
    wanted = settings(tmp_path, GGUFY_HUB="hf", HF_TOKEN=SECRET)
    workspace = connect(wanted)
    assert workspace.state is not None
    worker = cast(Worker, SimpleNamespace(alive=True, silent_s=lambda: 0.0))
    health = Health(wanted, worker, workspace)
    assert health.facts()["lease"] is None  # nobody has said yet whose token it is
    try:
        raise OSError(f"somebody/private {SECRET}")
    except OSError:
        logging.getLogger("ggufy.jobs").exception("somebody/private of %s", SECRET)
    facts = health.facts()
    told = cast(dict[str, str], facts["last_error"])
    assert (told["logger"], told["error"]) == ("ggufy.jobs", "OSError") and told["at"].startswith("20")
    assert facts["ok"] and cast(int, facts["disk_free"]) > 0
    assert SECRET not in json.dumps(facts) and "private" not in json.dumps(facts)
    health.close()

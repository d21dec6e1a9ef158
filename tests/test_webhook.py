"""GGUFY_WEBHOOK: hears how jobs end, once each; when it fails, no job does, and the log says so once."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest

from ggufy.core.errors import SourceError, UsageError
from ggufy.core.job import Job, Status
from ggufy.core.scrub import scrub
from ggufy.jobs.queue import Worker
from ggufy.jobs.runner import Runner
from ggufy.records.records import JobRecords
from ggufy.records.run_state import RunState
from ggufy.records.store import JobStore
from ggufy.service.webhook import Webhook
from ggufy.system.settings import Settings
from tests.test_views import REQUEST

pytestmark = pytest.mark.fast
SECRET = "/hooks/T0123456789"


class Listener(ThreadingHTTPServer):
    """Answers with `status`, and keeps what it was sent: the path, the headers that could tell who asks, the body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.status, self.heard = 200, queue.Queue[tuple[str, list[str], dict[str, object]]]()
        self.url = f"http://127.0.0.1:{self.server_port}{SECRET}"


class _Answers(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.server.status)
        if self.server.status == 307:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()
        told = [name for name in ("Authorization", "Cookie") if name in self.headers]
        self.server.heard.put((self.path, told, body))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Ends:
    """A runner whose jobs end as they are told to, by their names."""

    def __init__(self, records: JobRecords):
        self.records = records

    def run(self, job: Job, live: RunState) -> Job:
        self.records.begin(job, live.run_id)
        status = Status(job.request.name.partition("-")[0])
        return self.records.end(job, status, live.run_id, SourceError("no.") if status is Status.FAILED else None)


def jobs(*names: str) -> list[Job]:
    return [Job(request=replace(REQUEST, name=name)) for name in names]


def test_it_hears_how_each_job_ends(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    records = JobRecords(JobStore(tmp_path))
    worker = Worker(records=records, make_runner=lambda: cast(Runner, Ends(records)), ended=Webhook(listener.url).tell)
    worker.start()
    for job in jobs("done", "failed", "cancelled", "paused"):
        worker.submit(job)
    heard = [listener.heard.get(timeout=60) for _ in range(3)]
    worker.shutdown()
    assert [(path, told) for path, told, _ in heard] == [(SECRET, [])] * 3
    assert [(body["name"], body["status"], body["error"]) for _, _, body in heard] == [
        ("done", "done", ""),
        ("failed", "failed", "no."),
        ("paused", "paused", ""),
    ]
    assert {*heard[0][2]} == {"job", "name", "status", "error", "repos"}
    assert heard[0][2]["job"] in {job.id for job in records.all()}
    assert not caplog.records


def test_one_that_fails_is_logged_once_and_leads_nowhere_else(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    webhook, (job,) = Webhook(listener.url), jobs("done")
    for status, said in ((500, 1), (307, 1), (200, 1), (404, 2), (200, 2)):
        listener.status = status
        webhook.tell(job)
        assert listener.heard.get(timeout=60)[0] == SECRET
        webhook.join()
        assert len(caplog.records) == said
    assert listener.heard.empty()
    assert "HTTP status 500" in caplog.text and "HTTP status 404" in caplog.text
    assert SECRET not in caplog.text


def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    with Listener() as gone:
        url = gone.url
    webhook, (job,) = Webhook(url), jobs("done")
    for _ in range(2):
        webhook.tell(job)
    webhook.join()
    assert len(caplog.records) == 1
    assert SECRET not in caplog.text
    off = Webhook("")
    off.tell(job)
    off.join()


@pytest.mark.parametrize(
    "address",
    ["http://example.org/x", "ftp://localhost/x", "https://:1/x", "hooks", "http://127.0.0.1.evil.example/x"],
)
def test_an_address_that_others_could_read_along_with_is_refused(address: str) -> None:
    with pytest.raises(UsageError) as refused:
        Settings.from_env({"HOME": "/home/x", "GGUFY_WEBHOOK": address})
    assert "GGUFY_WEBHOOK is no https:// address" in str(refused.value)
    assert address not in str(refused.value)


@pytest.mark.parametrize("address", ["https://hooks.example/x1", "http://localhost:9/x2", "http://[::1]:9/x3"])
def test_the_address_is_a_secret(address: str) -> None:
    settings = Settings.from_env({"HOME": "/home/x", "GGUFY_WEBHOOK": f" {address} "})
    assert settings.webhook == address
    assert address not in repr(settings)
    assert scrub(f"could not reach {address}") == "could not reach ***"

"""The Hub is away for three times the lease, from a chosen moment of a published job on: the job waits, says so, and
goes on by itself. The real program against the test Hub; GGUFY_TEST_OUTAGES=n tries n pairs of moment and way.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.hub_fixture import ALICE, LocalHub
from tests.hub_outage import BUSY, HOW, REFUSES, SILENT
from tests.page_client import PageClient
from tests.processes import free_port, until
from tests.test_publish import client_of, commits_of, digests, get, kill, status_of

pytestmark = pytest.mark.tools
LEASE_S = 2.0
AWAY_S = 3 * LEASE_S
TRIED = int(os.environ.get("GGUFY_TEST_OUTAGES", "3"))
REPO, STATE = "/api/models/alice/tiny-v7-GGUF", "/api/datasets/alice/ggufy-state"
TYPES = "Q8_0,Q4_K_M"
_PATIENCE_S = 400.0  # silence is taken for an end after a minute, and more than once


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When the Hub goes."""

    match: str
    skip: int = 0
    holds: str = ""
    lost_with: Callable[[Path, LocalHub], bool] | None = None  # before that, a run was killed then, and its disk lost


def base_uploaded(out: Path, hub: LocalHub) -> bool:
    try:
        return "tiny-v7-F16.gguf" in digests(hub)
    except urllib.error.HTTPError:
        return False


def segment_measured(out: Path, hub: LocalHub) -> bool:
    """What the run would have saved after some minutes is saved."""
    for segment in out.glob("ggufy-state/work/*/imatrix/[0-9]*.gguf"):
        path = f"files/{segment.parent.parent.name}/{segment.name}"
        hub.put("alice/ggufy-state", path, segment.read_bytes(), type="dataset")
        return True
    return False


MOMENTS = {
    "the account": Moment(match="GET /api/whoami-v2"),
    "the lease": Moment(match=f"POST {STATE}/commit/"),
    "a new repo": Moment(match="POST /api/repos/create", skip=1),
    "the listing": Moment(match=f"GET {REPO}$", skip=1),
    "past commits": Moment(match=f"GET {REPO}/commits/"),
    "the base": Moment(match="GET /alice/tiny-v7-GGUF/resolve/.*F16.gguf", lost_with=base_uploaded),
    "the imatrix": Moment(match="GET /datasets/alice/ggufy-state/resolve/.*/files/", lost_with=segment_measured),
    "an upload": Moment(match=f"POST {REPO}/preupload/", holds=".gguf", skip=1),
    "a record": Moment(match=f"POST {STATE}/commit/", holds="jobs/", skip=1),
    "a renewal": Moment(match=f"POST {STATE}/commit/", holds="renew the lease"),
    "the last card": Moment(match=f"POST {REPO}/commit/", holds="Update the card"),
}
# The first ones meet every way, and a wait in each of: the start, the fetch, a commit.
_FIRST = [("a record", REFUSES), ("the account", BUSY), ("the base", SILENT)]
PAIRS = [*_FIRST, *(pair for pair in itertools.product(MOMENTS, HOW) if pair not in _FIRST)]


@pytest.fixture
def start(tmp_path: Path, hub: LocalHub, ggufy_environment: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Starts `python -m ggufy quantize` of a tiny model, measured and published, or, with a port, the page."""
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=256)
    text = tmp_path / "text.txt"
    text.write_text("The keeper of the light said nothing, and the wind rose over the sea. " * 60, encoding="utf-8")
    held_out = tmp_path / "held out.txt"
    held_out.write_text("Bread is made of flour, water and salt; it needs an oven, and some hours. " * 60)
    words = ["-m", "ggufy", "-v", "quantize", str(checkpoint), "--types", TYPES, "--vocab", str(vocab), "--json"]
    words += ["--calibration", str(text), "--evaluation", str(held_out), "--evaluate", "--evaluation-chunks", "2"]
    environment = hub.environment(tmp_path) | ggufy_environment
    environment |= {"HOME": str(tmp_path), "HF_TOKEN": ALICE, "GGUFY_HUB": "hf", "GGUFY_COMMITS": "100000"}
    environment |= {"GGUFY_LEASE": f"{LEASE_S:g}", "GGUFY_OUT": str(tmp_path / "o")}
    started: list[subprocess.Popen[str]] = []

    def run(port: int | None = None) -> subprocess.Popen[str]:
        page = [str(Path(__file__).parent.parent / "app.py")]
        number = len(started)
        with (tmp_path / f"out{number}").open("w") as out, (tmp_path / f"err{number}").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, *(words if port is None else page)],
                env=environment | ({"GRADIO_SERVER_PORT": str(port)} if port else {}),
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            kill(process)


@pytest.mark.parametrize(("moment", "how"), PAIRS[:TRIED], ids=lambda word: word.replace(" ", "-"))
def test_an_outage_is_waited_for(start: Any, hub: LocalHub, tmp_path: Path, moment: str, how: str) -> None:
    """It ends well, and nothing is made or uploaded twice."""
    when, out = MOMENTS[moment], tmp_path / "o"
    if when.lost_with:
        before = start()
        until(lambda: when.lost_with(out, hub) or before.poll() is not None)
        assert before.poll() is None, "it was faster than the test"
        kill(before)
        shutil.rmtree(out)
    hub.outage(when.match, skip=when.skip, holds=when.holds, how=how, seconds=AWAY_S)
    process = start()
    number = 1 if when.lost_with else 0
    process.wait(_PATIENCE_S)
    said, record = (tmp_path / f"err{number}").read_text(), (tmp_path / f"out{number}").read_text()
    assert process.returncode == 0, said
    went = hub.away()
    assert went["began"], said
    assert went["over"], said
    assert went["asked"], said
    assert re.search("tried again later|has not answered|again in|again: |could not be renewed", said), said
    result = json.loads(record)
    assert result["status"] == "done"
    assert {row["file"] for row in result["files"]} == {
        f"tiny-v7-{word}.gguf" for word in ("F16", "imatrix", *TYPES.split(","))
    }
    assert digests(hub) == {row["file"]: row["sha256"] for row in result["files"]}
    added = [name for title in commits_of(hub) for name in title.removeprefix("Add ").split(", ")]
    assert sorted(name for name in added if name.endswith(".gguf")) == sorted(digests(hub))
    made = re.findall(r"job \S+: ((?:convert|make|quantize|measure|evaluate) .*)", said)
    assert len(made) == len(set(made)), made


def test_the_page_is_there_while_the_hub_is_away(start: Any, hub: LocalHub, tmp_path: Path) -> None:
    """From a start that finds no Hub on: a job is taken, cancelled, taken again, and runs when the Hub is back. The
    end waits for no Hub either."""
    port = free_port()
    before = start(port)
    until((tmp_path / "o" / "ggufy-state" / "owner.txt").exists)
    before.send_signal(signal.SIGTERM)
    assert before.wait(60) == 0
    hub.outage("GET /api/", how=BUSY, seconds=3600)
    page = start(port)
    client = client_of(port)
    tab = PageClient(f"http://127.0.0.1:{port}/")
    with urllib.request.urlopen(tab.url) as front:
        assert front.status == 200
    until(lambda: "tried again later" in tab.look())
    started = client.predict("demo", "Q8_0", evaluate=False, imatrix=False, api_name="/start_job")
    job = started["job_id"]
    assert (started["status"], started["repo_id"].partition("/")[0]) == ("queued", "alice")
    for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")):
        assert job in tab.act(action, job)
        assert status_of(client, job) == status
    assert "tried again later" in tab.look()
    hub.back()
    until(lambda: status_of(client, job) == "done")
    assert {Path(name).stem.rpartition("-")[2] for name in digests(hub, started["repo_id"])} == {"F16", "Q8_0"}
    until(lambda: '"status": "done"' in get(hub, f"/datasets/alice/ggufy-state/resolve/main/jobs/{job}.json"))
    hub.outage("/api/", how=SILENT, seconds=3600)
    until(lambda: hub.away()["asked"] > 0)
    page.send_signal(signal.SIGTERM)
    assert page.wait(60) == 0

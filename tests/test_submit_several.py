"""`ggufy submit --jobs N`: one model divided among several Hugging Face Jobs, with the real client against the test
Hub, whose Jobs are processes: the same files as on one machine, whatever becomes of some of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from hub_fixture import ALICE, LocalHub

from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.records.shares import Claim, Shares
from ggufy.system.files import sha256
from tests.conftest import Ggufy
from tests.test_submit import jobs_of, names_of

REPO, STATE = "alice/RWKV-x070-Demo-7M-GGUF", "alice/ggufy-state"


class Submitted:
    """`submit --jobs N --follow`, as it goes on."""

    def __init__(self, hub: LocalHub, environment: dict[str, str], wish: list[str], count: int):
        self.hub, self.state = hub, HuggingFaceHub(token=ALICE, endpoint=hub.endpoint)
        command = [sys.executable, "-m", "ggufy", "submit", *wish, "--jobs", str(count), "--flavor", "cpu-xl"]
        self.process = subprocess.Popen(
            [*command, "--yes", "--follow", "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, found: Any) -> Any:
        """What `found` gives as soon as it gives something."""
        while self.process.poll() is None:
            if value := found():
                return value
            time.sleep(0.05)
        raise AssertionError(self.process.communicate())

    def job_of(self, worker: str) -> tuple[str, dict[str, Any]]:
        jobs = jobs_of(self.hub).items()
        return next((key, job) for key, job in jobs if job["spec"]["environment"].get("GGUFY_WORKER") == worker)

    def claims(self) -> dict[str, Claim]:
        """By quant, of the one job that there is."""
        names = [Path(name).stem for name in self.state.list_files(STATE, kind="dataset", under="jobs/")]
        return Shares(self.state, STATE, names[0], "").claims() if names else {}

    def making(self, but: str = "") -> tuple[str, str] | None:
        """Worker and process of a claim whose quant is being made."""
        found = [(one.worker, one.run) for one in self.claims().values() if not one.made and one.worker != but]
        return found[0] if found else None

    def ask(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.hub.endpoint + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            said: bytes = answer.read()
            return said

    def said(self, job_id: str) -> str:
        """What a Job has printed."""
        events = self.ask(f"/api/jobs/alice/{job_id}/logs").decode()
        lines = [line.removeprefix("data: ") for line in events.splitlines() if line.startswith("data: ")]
        return "\n".join(json.loads(line)["data"] for line in lines)


def here(ggufy: Ggufy, wish: list[str], out: Path) -> dict[str, str]:
    """SHA-256 of the files of one machine."""
    done = ggufy("quantize", *wish, "--json", "--out", out)
    assert done.code == 0, done.err
    return {path.name: sha256(path) for path in Path(json.loads(done.out)["folder"]).glob("*.gguf")}


def there(ggufy_environment: dict[str, str], hub: LocalHub, home: Path) -> dict[str, str]:
    """A short lease, and commits enough for its renewals."""
    limits = {"HF_TOKEN": ALICE, "GGUFY_LEASE": "60", "GGUFY_COMMITS": "1000"}
    return ggufy_environment | hub.environment(home) | limits


def test_four_jobs_of_which_two_are_killed_and_one_is_started_twice_while_the_hub_is_away(
    ggufy: Ggufy, ggufy_environment: dict[str, str], hub: LocalHub, tmp_path: Path
) -> None:
    wish = [
        "demo",
        "--types",
        "Q8_0,Q6_K,Q5_1,Q5_0,Q4_1,Q4_0",
        "--no-evaluate",
        "--round",
        "plain",
        "--imatrix",
        "none",
    ]
    expected = here(ggufy, wish, tmp_path / "here")
    run = Submitted(hub, there(ggufy_environment, hub, tmp_path), wish, 4)

    jobs = run.wait_for(lambda: (found := jobs_of(hub)) and len(found) == 4 and found)
    names = [job["spec"]["environment"]["GGUFY_WORKER"] for job in jobs.values()]
    assert len(set(names)) == 4 and {job["spec"]["labels"]["ggufy-worker"] for job in jobs.values()} == set(names)
    killed, first_run = run.wait_for(run.making)  # the first to claim has made the base: it leads
    os.kill(run.job_of(killed)[1]["pid"], signal.SIGKILL)  # the Hub begins it again
    lost = {quant for quant, claim in run.claims().items() if claim.run == first_run and not claim.made}
    ended, second_run = run.wait_for(lambda: run.making(but=killed))
    job_id, job = run.job_of(ended)
    run.ask(f"/api/jobs/alice/{job_id}/cancel", {})  # and this one for good
    with contextlib.suppress(ProcessLookupError):
        os.kill(job["pid"], signal.SIGKILL)
    lost |= {quant for quant, claim in run.claims().items() if claim.run == second_run and not claim.made}
    twice = next(name for name in names if name not in (killed, ended))
    run.ask("/api/jobs/alice", run.job_of(twice)[1]["spec"])
    hub.outage("POST .*/commit/main", how="busy", seconds=3)
    out, err = run.process.communicate()

    assert run.process.returncode == 0, err
    assert names_of(hub, REPO) == expected
    jobs = jobs_of(hub)
    assert len(jobs) == 5 and run.job_of(killed)[1]["attempts"] == 2 and run.job_of(ended)[1]["attempts"] == 1
    assert hub.away()["began"] and hub.away()["asked"]
    made = Counter(re.findall(r"\] quantize (\w+) .* in ", "\n".join(run.said(key) for key in jobs)))
    assert made.keys() <= set(wish[2].split(",")) and not [quant for quant in made - Counter(lost) if made[quant] > 2]
    assert {quant for quant, count in made.items() if count > 1} <= lost
    sent = Counter(line["path"] for line in hub.log("/__lfs/") if line["method"] == "PUT" and line["status"] == 200)
    again = {path.rpartition("/")[2] for path, count in sent.items() if count > 1}
    assert again <= {expected[f"RWKV-x070-Demo-7M-{quant}.gguf"] for quant in lost}
    [record] = run.state.list_files(STATE, kind="dataset", under="jobs/")
    assert json.loads(run.state.read(STATE, record, kind="dataset") or b"")["status"] == "done"
    assert not run.claims()
    told = json.loads(out)
    assert len(told["jobs"]) == 4 and told["repos"] == [REPO]
    assert "4 times cpu-xl: 16 CPUs" in err and "$48.00 at most" in err and "6 of 6 quants are made" in err
    assert ALICE not in out + err + "".join(run.said(key) for key in jobs)


def test_two_jobs_compensate_and_measure_what_one_does(
    ggufy: Ggufy, ggufy_environment: dict[str, str], hub: LocalHub, tmp_path: Path
) -> None:
    wish = ["demo", "--types", "Q8_0,Q4_0", "--chunks", "4", "--evaluation-chunks", "2"]
    expected = here(ggufy, wish, tmp_path / "here")
    run = Submitted(hub, there(ggufy_environment, hub, tmp_path), wish, 2)
    out, err = run.process.communicate()
    assert run.process.returncode == 0, err
    assert names_of(hub, REPO) == expected
    [name] = run.state.list_files(STATE, kind="dataset", under="jobs/")
    record = json.loads(run.state.read(STATE, name, kind="dataset") or b"")
    assert record["status"] == "done" and len(record["evaluations"]) == 2
    makings = [one["making"] for one in record["artifacts"] if "Q" in one["name"].rpartition("-")[2]]
    assert [one["rounding"] for one in makings] == ["compensated"] * 2
    card = run.state.read(REPO, "README.md", kind="model") or b""
    assert all(f"{one['quality']['kld']:.4f}" in card.decode() for one in record["evaluations"])


def test_all_are_cancelled_by_the_same_command(
    ggufy: Ggufy, ggufy_environment: dict[str, str], hub: LocalHub, tmp_path: Path
) -> None:
    environment = there(ggufy_environment, hub, tmp_path)
    wish = ("submit", "demo", "--types", "Q8_0,Q6_K", "--flavor", "cpu-xl", "--jobs", "2", "--no-evaluate")
    for count in ("0", "17"):
        done = ggufy(*wish, "--jobs", count, "--yes", **environment)
        assert done.code == 2 and f"--jobs is {count}: from 1 to 16." in done.err
    assert ggufy(*wish, "--yes", **environment).code == 0 and len(jobs_of(hub)) == 2
    done = ggufy(*wish, "--cancel", **environment)
    assert done.code == 0 and all(f"ended: {job_id}" in done.err for job_id in jobs_of(hub))
    deadline = time.monotonic() + 120
    while [job for job in jobs_of(hub).values() if job["pid"]] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [job for job in jobs_of(hub).values() if job["pid"]]
    assert "no Job is at work on RWKV-x070-Demo-7M-" in ggufy(*wish, "--cancel", **environment).err

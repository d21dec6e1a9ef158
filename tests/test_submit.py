"""`ggufy submit`: the same job as a Hugging Face Job, killed on its way, with the real client against the test Hub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hub_fixture import ALICE, ALICE_READ, LocalHub

from ggufy.cli.parser import build_parser
from ggufy.cli.submit import words
from ggufy.jobs.options import OPTIONS
from ggufy.jobs.values import read_options
from ggufy.system.files import sha256
from tests.conftest import Ggufy


def jobs_of(hub: LocalHub) -> dict[str, Any]:
    with urllib.request.urlopen(f"{hub.endpoint}/__jobs", timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def names_of(hub: LocalHub, repo: str) -> dict[str, str]:
    """SHA-256 of the large files of a public repo, by name; nothing if it is not there yet."""
    try:
        with urllib.request.urlopen(
            f"{hub.endpoint}/api/models/{repo}/tree/main?recursive=true", timeout=60
        ) as answer:
            return {one["path"]: one["lfs"]["oid"] for one in json.load(answer) if one.get("lfs")}
    except urllib.error.HTTPError:
        return {}


@pytest.mark.fast
@pytest.mark.parametrize(
    "typed",
    [
        "--types Q4_K_M,Q2_K",
        "--target 1.2GB --target 800MB --mode thorough",
        "--no-evaluate --round plain --imatrix none --outtype bf16 --private",
        "--calibration multilingual --chunks 12 --repo alice/x --name y --mix stock --awq",
        "--evaluation wikitext --lora alice/a --lora alice/b:0.5 --format rwkv.cpp",
    ],
)
def test_a_job_s_words_say_the_same_as_what_was_typed(typed: str) -> None:
    parser = build_parser()
    known = {option.flag for option in OPTIONS} | {"--no-evaluate"}
    flags = [word for word in typed.split() if word.startswith("--")]
    assert set(flags) <= known, set(flags) - known
    first = vars(parser.parse_args(["submit", "a/b", "--flavor", "cpu-xl", *typed.split()]))
    again = vars(parser.parse_args(["quantize", "a/b", *words(first)]))
    assert read_options("a/b", first) == read_options("a/b", again)


def test_a_job_that_is_killed_is_begun_again_and_makes_the_same_files(
    ggufy: Ggufy, ggufy_environment: dict[str, str], hub: LocalHub, tmp_path: Path
) -> None:
    wish = ["demo", "--types", "Q8_0,Q6_K,Q4_K_M", "--no-evaluate", "--round", "plain"]
    done = ggufy("quantize", *wish, "--json", "--out", tmp_path / "here")
    assert done.code == 0, done.err
    here = {path.name: sha256(path) for path in Path(json.loads(done.out)["folder"]).glob("*.gguf")}
    environment = ggufy_environment | hub.environment(tmp_path) | {"HF_TOKEN": ALICE}
    command = [sys.executable, "-m", "ggufy", "submit", *wish, "--flavor", "cpu-xl", "--yes", "--follow", "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    repo, killed = "alice/RWKV-x070-Demo-7M-GGUF", 0
    while process.poll() is None:
        for job in jobs_of(hub).values():
            if not killed and job["pid"] and names_of(hub, repo):
                killed = job["pid"]
                os.kill(killed, signal.SIGKILL)
        time.sleep(0.1)
    out, err = process.communicate()
    assert process.returncode == 0 and killed, err
    assert names_of(hub, repo) == here
    [(job_id, job)] = jobs_of(hub).items()
    assert job["attempts"] == 2
    told = json.loads(out)
    assert told["id"] == job_id and told["flavor"] == "cpu-xl" and told["repos"] == [repo]
    assert (
        "3 quants into alice/RWKV-x070-Demo-7M-GGUF" in err and "cpu-xl: 16 CPUs, 124 GB, disk 1000 GB, $1.00" in err
    )
    assert "$12.00 at most" in err and "about " in err
    assert "RWKV-x070-Demo-7M: 3 quants into" in err.split("at most", 1)[1]  # what the Job prints
    spec = job["spec"]
    assert spec["secrets"] == {"HF_TOKEN": ALICE} and spec["timeoutSeconds"] == 12 * 3600
    assert spec["spaceId"] == "alice/ggufy"
    assert ALICE not in json.dumps({**spec, "secrets": None}) + out + err


def test_what_cannot_be_submitted_is_said_before_anything_is_started(
    ggufy: Ggufy, hub: LocalHub, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text\n")
    there = hub.environment(tmp_path) | {"HF_TOKEN": ALICE}
    ask = ("submit", "demo", "--types", "Q8_0", "--yes")
    for typed, environment, says in (
        (("submit", text, "--flavor", "cpu-xl"), there, "is on this machine, and a Job does not see it: put it"),
        ((*ask, "--flavor", "cpu-xl", "--calibration", text), there, f"{text} is on this machine"),
        ((*ask, "--flavor", "huge"), there, "there is no machine huge: choose one of cpu-basic, cpu-upgrade, cpu-xl."),
        ((*ask[:-1], "--flavor", "cpu-xl"), there, "nobody can be asked here whether it may start: add --yes."),
        ((*ask, "--flavor", "cpu-xl"), there | {"HF_TOKEN": ""}, "no token was given: set HF_TOKEN"),
        ((*ask, "--flavor", "cpu-xl"), there | {"HF_TOKEN": ALICE_READ}, "HF_TOKEN"),
        (("submit", "demo", "--types", "Q9", "--flavor", "cpu-xl", "--yes"), there, "Q9"),
    ):
        done = ggufy(*typed, **environment)
        assert done.code in (1, 2) and says in done.err and not done.out, done.err
        assert len(done.err.strip().splitlines()) <= 4 and "Traceback" not in done.err
    assert jobs_of(hub) == {}

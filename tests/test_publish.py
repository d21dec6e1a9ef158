"""Jobs that go to the Hub, with the real client against the test Hub: killed, on a new disk, two at once."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from hub_fixture import ALICE, BOB, LocalHub

from ggufy.llama.install import Llama
from ggufy.models.chat_format import WORLD, ollama_files
from ggufy.system.files import sha256
from tests import chatty, tiny
from tests.processes import ended, free_port, until

pytestmark = pytest.mark.tools
TYPES = "Q8_0,Q6_K,Q4_K_M,Q3_K_M,Q2_K,TQ2_0"
KILLS = int(os.environ.get("GGUFY_TEST_KILLS", "40"))  # `make soak`: 1,000


@pytest.fixture
def command(
    tmp_path: Path,
    hub: LocalHub,
    ggufy_environment: dict[str, str],
) -> Iterator[Any]:
    """Starts `python -m ggufy quantize` of a tiny model, published as alice, with results in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    checkpoint, vocab = tiny.checkpoint(folder, "7", width=512, layers=3)
    text = folder / "text.txt"
    text.write_text("The keeper of the light said nothing, and the wind rose over the sea. " * 60, encoding="utf-8")
    arguments = ["quantize", str(checkpoint), "--types", TYPES, "--vocab", str(vocab), "--calibration", str(text)]
    environment = hub.environment(tmp_path) | ggufy_environment
    environment |= {"HOME": str(tmp_path), "HF_TOKEN": ALICE, "GGUFY_COMMITS": "100000", "GGUFY_LEASE": "8"}
    started: list[subprocess.Popen[str]] = []

    def start(
        out: Path, *more: str, source: str = "", resume: bool = False, page: bool = False, **changes: str
    ) -> subprocess.Popen[str]:
        doing = ["resume"] if resume else [arguments[0], source or arguments[1], *arguments[2:]]
        words = [sys.executable, "-m", "ggufy", "-v", *doing, "--hub", "hf", "--json", "--out", str(out), *more]
        if page:
            words = [sys.executable, str(Path(__file__).parent.parent / "app.py")]
            changes["GGUFY_OUT"] = str(out)
        process = subprocess.Popen(
            words,
            env=environment | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            kill(process)


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, Any], str]:
    out, err = process.communicate(timeout=1800)
    assert process.returncode == code, err
    return (json.loads(out) if out else {}), err


def digests(hub: LocalHub, repo: str = "alice/tiny-v7-GGUF") -> dict[str, str]:
    """The GGUF files of a repo, as the server lists them."""
    return {entry["path"]: entry["lfs"]["oid"] for entry in tree(hub, repo) if entry["path"].endswith(".gguf")}


def tree(hub: LocalHub, repo: str = "alice/tiny-v7-GGUF") -> list[dict[str, Any]]:
    """What the server lists."""
    return list(json.loads(get(hub, f"/api/models/{repo}/tree/main?recursive=1")))


def get(hub: LocalHub, path: str) -> str:
    request = urllib.request.Request(hub.endpoint + path, headers={"Authorization": f"Bearer {ALICE}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(response.read().decode())


def commits_of(hub: LocalHub, repo: str = "alice/tiny-v7-GGUF") -> list[str]:
    return [commit["title"] for commit in json.loads(get(hub, f"/api/models/{repo}/commits/main"))]


def kill(process: subprocess.Popen[str]) -> None:
    """The whole process group, tools included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_all_files_a_card_and_no_second_upload(
    command: Any,
    hub: LocalHub,
    tmp_path: Path,
) -> None:
    record, _ = finish(command(tmp_path / "o"))
    assert record["repo_id"] == "alice/tiny-v7-GGUF"
    files = {row["file"]: row["sha256"] for row in record["files"]}
    assert len(files) == 8
    assert digests(hub) == files
    card = get(hub, "/alice/tiny-v7-GGUF/resolve/main/README.md")
    assert "In progress" not in card
    assert "license" not in card.split("---")[1]  # none is known, none is invented
    assert all(f"[{name}]({name})" in card for name in files)
    assert str(tmp_path) not in card
    assert f"llama-server -hf {record['repo_id']}:Q4_K_M " in card
    for name, text in ollama_files(WORLD).items():
        assert get(hub, f"/alice/tiny-v7-GGUF/resolve/main/{name}") == text
    before = commits_of(hub)
    finish(command(tmp_path / "o"))
    finish(command(tmp_path / "new disk"))
    assert commits_of(hub) == before
    assert not list((tmp_path / "new disk").rglob("*.gguf"))


def test_a_gguf_is_published_for_what_its_vocabulary_says(
    hub: LocalHub, ggufy: Any, ggufy_environment: dict[str, str], tmp_path: Path
) -> None:
    environment = hub.environment(tmp_path) | ggufy_environment
    environment |= {"HOME": str(tmp_path), "HF_TOKEN": ALICE, "GGUFY_COMMITS": "100000", "GGUFY_HUB": "hf"}
    rwkv = tiny.converted(tmp_path, width=256).rename(tmp_path / "theirs.gguf")
    for source in (rwkv, chatty.write(tmp_path / "other.gguf")):
        done = ggufy(
            "quantize", source, "--types", "Q8_0", "--imatrix", "none", "--out", tmp_path / "o", **environment
        )
        assert done.code == 0, done.err
    card = get(hub, "/alice/theirs-GGUF/resolve/main/README.md")
    plain = "--no-jinja --chat-template rwkv-world --override-kv tokenizer.ggml.eot_token_id=int:0"
    assert f'llama-cli -hf alice/theirs-GGUF:Q8_0 {plain} -r "\\n\\nUser:"\n' in card
    assert get(hub, "/alice/theirs-GGUF/resolve/main/params") == ollama_files(WORLD)["params"]
    assert "llama-cli -hf alice/other-GGUF:Q8_0\n" in get(hub, "/alice/other-GGUF/resolve/main/README.md")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(hub, "/alice/other-GGUF/resolve/main/params")


def test_killed_40_times_with_the_disk_kept_or_wiped(
    command: Any,
    hub: LocalHub,
    tmp_path: Path,
) -> None:
    """Ends with the same files as an undisturbed run (under another name), each uploaded in one commit only."""
    undisturbed, _ = finish(command(tmp_path / "u", "--repo", "alice/undisturbed"))
    expected = {row["file"]: row["sha256"] for row in undisturbed["files"]}
    rng = random.Random(11)
    kills = 0
    ends = 0
    round_number = 0
    while kills < KILLS:
        repo = f"alice/round-{round_number}"
        out = tmp_path / f"o{round_number}"
        round_number += 1
        for _ in range(12):
            process = command(out, "--repo", repo)
            if kills % 2:
                time_s, there = 30.0, products(hub, out, repo)  # right when the next file is made or uploaded
            else:
                time_s, there = rng.uniform(1.0, 6.0), None
            changed = functools.partial(differs, there, functools.partial(products, hub, out, repo))
            if still_runs(process, time_s, changed):
                kill(process)
                kills += 1
                if rng.random() < 0.5:
                    shutil.rmtree(out, ignore_errors=True)
                continue
            process.communicate()
            break
        finish(command(out, "--repo", repo))
        ends += 1
        assert digests(hub, repo) == expected
        added = [name for title in commits_of(hub, repo) for name in title.removeprefix("Add ").split(", ")]
        assert sorted(name for name in added if name.endswith(".gguf")) == sorted(expected)
        assert not list(out.rglob("*.part"))
        assert not list((out / "ggufy-state" / "work").glob("*"))
    assert ends >= 3


def products(hub: LocalHub, out: Path, repo: str) -> set[str]:
    """What is there of the result, here and in the repo."""
    try:
        uploaded = set(digests(hub, repo))
    except urllib.error.HTTPError:
        uploaded = set()
    return {f"repo:{name}" for name in uploaded} | {path.name for path in out.rglob("*.gguf")}


def differs(before: set[str] | None, now: Callable[[], set[str]]) -> bool:
    return before is not None and now() != before


def still_runs(process: subprocess.Popen[str], seconds: float, enough: Callable[[], bool]) -> bool:
    """Waits so long, or until it is enough; False if the process ended before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not enough():
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return process.poll() is None


def test_two_at_once_take_turns(
    command: Any,
    hub: LocalHub,
    tmp_path: Path,
) -> None:
    """One works, the other waits; the first is killed, the second takes over and finishes."""
    first = command(tmp_path / "a")
    until(lambda: hub.log("/api/models/alice/tiny-v7-GGUF/commit"))
    second = command(tmp_path / "b")
    time.sleep(3)
    assert second.poll() is None
    assert not list((tmp_path / "b").rglob("*.gguf"))
    if first.poll() is None:
        kill(first)
    record, _ = finish(second)
    assert digests(hub) == {row["file"]: row["sha256"] for row in record["files"]}


def test_a_base_on_the_hub_is_fetched_and_not_made_again(
    command: Any,
    hub: LocalHub,
    tmp_path: Path,
) -> None:
    """A new disk without the checkpoint: base and imatrix come back from the output repo."""
    process = command(tmp_path / "a")
    until(lambda: len(digests_or_none(hub)) >= 2)
    kill(process)
    assert len(digests_or_none(hub)) < 8, "it was faster than the test"
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "model")  # the checkpoint, its vocabulary and the calibration text
    finish(command(tmp_path / "a", resume=True))
    logs = {path.name for path in (tmp_path / "a").rglob("*.log")}
    assert "imatrix.log" not in logs
    made = {path.name: sha256(path) for path in (tmp_path / "a").rglob("*.gguf")}
    assert made.items() <= digests(hub).items()


def digests_or_none(hub: LocalHub) -> dict[str, str]:
    try:
        return digests(hub)
    except urllib.error.HTTPError:
        return {}


def test_what_was_uploaded_right_before_a_kill_gets_into_the_record(
    command: Any, hub: LocalHub, tmp_path: Path
) -> None:
    """The kill fell between the commit to the output repo and the one of the job record."""
    whole, _ = finish(command(tmp_path / "a"))
    path = f"jobs/{whole['job']}.json"
    record = json.loads(get(hub, f"/datasets/alice/ggufy-state/resolve/main/{path}"))
    record |= {"status": "running", "artifacts": record["artifacts"][:-1]}
    hub.put("alice/ggufy-state", path, json.dumps(record).encode(), type="dataset", lfs=0)
    again, _ = finish(command(tmp_path / "b", resume=True))
    assert [(row["file"], row["sha256"]) for row in again["files"]] == [
        (row["file"], row["sha256"]) for row in whole["files"]
    ]
    assert not list((tmp_path / "b").rglob("*.gguf"))


def test_the_page_goes_on_when_the_runner_that_took_over_is_gone(command: Any, hub: LocalHub, tmp_path: Path) -> None:
    """The page loses its lease for good; then nobody holds it, and the page ends its job."""
    process = command(tmp_path / "a")
    until(lambda: len(digests_or_none(hub)) >= 1)
    kill(process)
    page = command(tmp_path / "b", page=True, GGUFY_HUB="hf", GRADIO_SERVER_PORT=str(free_port()))
    until(lambda: len(digests_or_none(hub)) >= 3)
    other = {"boot_id": "other", "nonce": "1", "expires_s": 6.0, "since": "now", "renewed": "now"}
    hub.put("alice/ggufy-state", "lease.json", json.dumps(other).encode(), type="dataset", lfs=0)
    until(lambda: len(digests(hub)) >= 8 or page.poll() is not None)
    _, err = ended(page)
    assert "another runner has had the lease" in err
    assert len(digests(hub)) == 8


def that_tell(llama: Llama, folder: Path) -> Path:
    """Those tools again, each of which first writes its environment and its words into a file in `folder`."""
    tools, seen = folder / "tools", folder / "seen"
    shutil.copytree(llama.bin, tools, copy_function=os.symlink)
    seen.mkdir()
    for tool in tools.glob("llama-*"):
        tool.unlink()
        tool.write_text(
            f'#!/bin/sh\n(/usr/bin/env; echo "$@") > "{seen}/{tool.name} $$"\nexec {llama.bin / tool.name} "$@"\n'
        )
        tool.chmod(0o755)
    return tools


def test_the_token_goes_nowhere(command: Any, hub: LocalHub, llama: Llama, tmp_path: Path) -> None:
    """Not into records, logs, cards, what is printed, temporary files or tools; in a run that ends well, and one that
    does not."""
    tools = that_tell(llama, tmp_path)
    for fault in ({}, {"status": 403, "times": 99, "skip": 4}):
        if fault:
            hub.fault("POST /api/models/.*/commit/", **fault)
        temporary = tmp_path / f"tmp{len(fault)}"
        temporary.mkdir()
        out_folder, to = tmp_path / f"o{len(fault)}", f"alice/o{len(fault)}"
        words = ["--repo", to, "--round", "compensated" if fault else "plain"]
        process = command(out_folder, *words, TMPDIR=str(temporary), GGUFY_LLAMA_DIR=str(tools))
        out, err = process.communicate()
        assert process.returncode == (1 if fault else 0), err
        assert ALICE not in out + err
        assert not list(temporary.rglob("*"))
        hub.mend()
    run = {path.name.split()[0] for path in (tmp_path / "seen").iterdir() if str(tmp_path / "o") in path.read_text()}
    assert run >= {"llama-imatrix", "llama-quantize"}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or ALICE.encode() not in path.read_bytes(), path
    for kind, repo in (("models", "alice/o0"), ("datasets", "alice/ggufy-state")):
        for entry in json.loads(get(hub, f"/api/{kind}/{repo}/tree/main?recursive=true")):
            if entry["type"] == "file" and not entry["path"].endswith(".gguf"):
                prefix = "" if kind == "models" else "datasets/"
                assert ALICE not in get(hub, f"/{prefix}{repo}/resolve/main/{entry['path']}")


def test_the_page_takes_its_job_up_on_a_new_disk_with_no_click(command: Any, hub: LocalHub, tmp_path: Path) -> None:
    """What a Space does when it restarts: a container with an empty disk starts app.py, and nobody touches it."""
    process = command(tmp_path / "a")
    until(lambda: len(digests_or_none(hub)) >= 3)
    kill(process)
    shutil.rmtree(tmp_path / "a")
    page = command(tmp_path / "b", page=True, GGUFY_HUB="hf", GRADIO_SERVER_PORT=str(free_port()))
    until(lambda: len(digests(hub)) >= 8 or page.poll() is not None)
    ended(page)
    assert len(digests(hub)) == 8
    assert page.returncode == 0


def test_the_card_says_that_a_job_was_stopped(command: Any, hub: LocalHub, tmp_path: Path) -> None:
    """It says "in progress" while files follow; when a person on the page ends the job, none will."""
    process = command(tmp_path / "a")
    until(lambda: len(digests_or_none(hub)) >= 1)
    kill(process)
    assert "In progress" in get(hub, "/alice/tiny-v7-GGUF/resolve/main/README.md")
    port = free_port()
    page = command(tmp_path / "b", page=True, GGUFY_HUB="hf", GRADIO_SERVER_PORT=str(port))
    try:
        records = json.loads(get(hub, "/api/datasets/alice/ggufy-state/tree/main?recursive=true"))
        (job,) = (Path(entry["path"]).stem for entry in records if entry["path"].startswith("jobs/"))
        client = client_of(port)
        until(lambda: status_of(client, job) == "running")
        client.predict(job, api_name="/cancel_job")
        until(lambda: "The job was cancelled." in get(hub, "/alice/tiny-v7-GGUF/resolve/main/README.md"))
        assert len(digests(hub)) < 8
    finally:
        ended(page)


def status_of(client: Client, job: str) -> str:
    try:
        return str(client.predict(job, api_name="/job_status")["status"])
    except AppError:  # not known yet: the page waits for the lease of the run that was killed
        return ""


def client_of(port: int) -> Client:
    """A client of a page that is starting."""
    until(lambda: answers(port))
    return Client(f"http://127.0.0.1:{port}/", verbose=False)


def test_a_model_of_music_is_not_one_to_talk_with(command: Any, hub: LocalHub, tmp_path: Path) -> None:
    words = (b"User", b"Assistant", b"System")
    tiny.write_vocab(tmp_path / "model" / "vocab.txt", [one for one in tiny.vocab_tokens() if one not in words])
    finish(command(tmp_path / "o", "--types", "Q8_0", "--imatrix", "none"))
    card = get(hub, "/alice/tiny-v7-GGUF/resolve/main/README.md")
    assert "llama-cli -hf alice/tiny-v7-GGUF:Q8_0\n" in card and "User:" not in card
    assert not {"template", "system", "params"} & {entry["path"] for entry in tree(hub)}
    assert "tokenizer.chat_template" not in tiny.fields(next((tmp_path / "o").rglob("*-F16.gguf")))


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def test_while_the_hub_is_away_files_wait(
    command: Any,
    hub: LocalHub,
    tmp_path: Path,
) -> None:
    hub.fault("/commit/", status=503, times=6, skip=2)
    record, _ = finish(command(tmp_path / "o"))
    assert digests(hub) == {row["file"]: row["sha256"] for row in record["files"]}


@pytest.mark.parametrize(("token", "words"), [("", "HF_TOKEN"), ("hf_nobody", "token"), ("hf_alice_read", "write")])
def test_tokens_that_cannot_publish(command: Any, tmp_path: Path, token: str, words: str) -> None:
    _, err = finish(command(tmp_path / "o", HF_TOKEN=token), code=1 if token else 2)
    lines = [line for line in err.splitlines() if line.startswith("ggufy: ")]
    assert len(lines) == 1, err
    assert words in lines[0]
    assert "hf_" not in err.replace("--hub hf", "")


def test_a_repo_of_something_else_is_not_touched(
    command: Any,
    hub: LocalHub,
    tmp_path: Path,
) -> None:
    hub.put("alice/tiny-v7-GGUF", "tiny-v7-Q8_0.gguf", b"GGUF of somebody")
    before = commits_of(hub)
    for _ in range(2):  # the refused job does not become the repo's owner
        _, err = finish(command(tmp_path / "o"), code=1)
        assert "--repo" in err
    assert commits_of(hub) == before


def test_the_sources_own_licence_is_copied(command: Any, hub: LocalHub, tmp_path: Path) -> None:
    hub.put("acme/model", "tiny-v7.pth", (tmp_path / "model" / "tiny-v7.pth").read_bytes(), lfs=1)
    hub.put("acme/model", "README.md", b"---\nlicense: cc-by-4.0\n---\n# A model\n", lfs=0)
    finish(command(tmp_path / "o", source="acme/model"))
    matter = get(hub, "/alice/tiny-v7-GGUF/resolve/main/README.md").split("---")[1].splitlines()
    assert {"license: cc-by-4.0", "base_model: acme/model", "base_model_relation: quantized"} <= set(matter)


def test_the_bob_account_is_another(command: Any, hub: LocalHub, tmp_path: Path) -> None:
    record, _ = finish(command(tmp_path / "o", HF_TOKEN=BOB))
    assert record["repo_id"] == "bob/tiny-v7-GGUF"

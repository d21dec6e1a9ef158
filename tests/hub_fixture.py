"""The test Hub (hub_server.py) as a fixture: its own process on a free port, gone when the tests are.

from hub_fixture import hub_server, local_hub  # noqa: F401 - fixtures
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from tests.processes import free_port

SERVER = Path(__file__).parent / "hub_server.py"
ALICE, ALICE_READ, BOB = "hf_alice", "hf_alice_read", "hf_bob"


class LocalHub:
    """A running test Hub."""

    def __init__(self, port: int):
        self.endpoint = f"http://127.0.0.1:{port}"

    def put(self, repo: str, path: str, data: bytes, **options: Any) -> dict[str, str]:
        """Adds a file; gives {"sha": commit, "oid": digest}. Options: type, private, gated, lfs, oid."""
        query = urllib.parse.urlencode({"repo": repo, "path": path, **options})
        answer: dict[str, str] = self._call("POST", f"/__put?{query}", data)
        return answer

    def fault(self, match: str, **fault: Any) -> None:
        """Lets requests fail; see hub_server.py."""
        self._call("POST", "/__fault", json.dumps({"match": match, **fault}).encode())

    def mend(self) -> None:
        """Ends all faults."""
        self._call("DELETE", "/__fault")

    def outage(self, match: str, **outage: Any) -> None:
        """Lets the whole Hub be away from this request on; see hub_outage.py."""
        self._call("POST", "/__outage", json.dumps({"match": match, **outage}).encode())

    def back(self) -> None:
        """Ends an outage."""
        self._call("DELETE", "/__outage")

    def away(self) -> dict[str, Any]:
        """How an outage went: {"began", "over", "asked"}. Not to be asked while connections are refused."""
        answer: dict[str, Any] = self._call("GET", "/__outage")
        return answer

    def log(self, path: str = "") -> list[dict[str, Any]]:
        """The requests so far whose path holds `path`."""
        return [line for line in self._call("GET", "/__log") if path in line["path"]]

    def clear(self) -> None:
        self._call("DELETE", "/__log")

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a process that takes this for the Hub."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "VIRTUAL_ENV") if name in os.environ}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_XET_TELEMETRY_ENABLED": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return kept | quiet | {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": self.endpoint}

    def _call(self, method: str, path: str, data: bytes | None = None) -> Any:
        request = urllib.request.Request(self.endpoint + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


@contextlib.contextmanager
def running_hub(*options: str) -> Iterator[LocalHub]:
    """Starts the server; ends it with the block, or with this process."""
    port = free_port()
    command = [sys.executable, str(SERVER), "--port", str(port), "--watch-stdin", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            hub = LocalHub(port)
            _wait_for(hub, process)
            yield hub
        finally:
            process.terminate()


def _wait_for(hub: LocalHub, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            hub.log()
            return
        time.sleep(0.05)
    raise RuntimeError("the test Hub did not start")


@pytest.fixture(scope="module")
def local_hub() -> Iterator[LocalHub]:
    """One Hub for a test module; tests use repos of their own."""
    with running_hub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def no_request_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without telemetry the client library asks no other host, whatever endpoint it is given."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)

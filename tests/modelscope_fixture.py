"""The test ModelScope (modelscope_server.py) as a fixture: its own process on two free ports, gone when the tests are.

from modelscope_fixture import local_modelscope  # noqa: F401 - a fixture
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_fixture import LocalHub, _wait_for

SERVER = Path(__file__).parent / "modelscope_server.py"
MS_ALICE, MS_ALICE_READ, MS_BOB = "ms-alice", "ms-alice-read", "ms-bob"


class LocalModelScope(LocalHub):
    """A running test ModelScope; what tests do with it is as of the test Hub."""

    def fill(self, repo: str, folder: str, count: int) -> None:
        self._call("POST", f"/__fill?repo={repo}&folder={folder}&count={count}")

    def expire(self) -> None:
        """Lets all signed addresses expire."""
        self._call("POST", "/__expire")

    def storage(self, *, oss: bool) -> None:
        """Whether uploads go to the other host."""
        self._call("POST", f"/__storage?oss={int(oss)}")

    def environment(self, home: Path) -> dict[str, str]:
        """Environment of a process that takes this for ModelScope, and has no Hub."""
        environment = super().environment(home)
        return environment | {"MODELSCOPE_ENDPOINT": environment["HF_ENDPOINT"], "HF_ENDPOINT": "http://127.0.0.1:9"}

    def paths(self, part: str = "") -> list[tuple[str, dict[str, str]]]:
        """Path and query of each request so far whose path holds `part`."""
        return [(line["path"], dict(urllib.parse.parse_qsl(line["query"]))) for line in self.log(part)]

    def uploads(self) -> list[dict[str, Any]]:
        return [line for line in self.log("/__lfs/") if line["method"] == "PUT"]


@contextlib.contextmanager
def running_modelscope() -> Iterator[LocalModelScope]:
    """Starts the server; ends it with the block, or with this process."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, cdn_port = one.getsockname()[1], other.getsockname()[1]
    command = [sys.executable, str(SERVER), "--port", str(port), "--cdn-port", str(cdn_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            site = LocalModelScope(port)
            _wait_for(site, process)
            yield site
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def local_modelscope() -> Iterator[LocalModelScope]:
    """One ModelScope for a test module; tests use repos of their own."""
    with running_modelscope() as site:
        yield site

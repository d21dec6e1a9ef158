"""The program's own client against the test Hub, and what tests look at from outside."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import itertools
import json
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from ggufy.hub.commit_rate import CommitBudget
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.net import session as hub_session
from tests.hub_fixture import ALICE, local_hub, no_request_elsewhere  # noqa: F401 - fixtures
from tests.hub_fixture import LocalHub as Server

NUMBERS = itertools.count()
COMMIT, ADD = "POST .*/commit/", {"state.json": b"new"}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch, local_hub: Server) -> Iterator[None]:
    monkeypatch.setattr(hub_session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(hub_session, "LONGEST_WAIT_S", 0.05)
    yield
    local_hub.mend()


@pytest.fixture
def connect(local_hub: Server) -> Callable[..., HuggingFaceHub]:
    def hub(token: str | None = ALICE, **options: object) -> HuggingFaceHub:
        options = {"budget": CommitBudget(limit=1000, reserve=0, burst=1000)} | options
        return HuggingFaceHub(token=token, endpoint=local_hub.endpoint, **options)  # type: ignore[arg-type]

    return hub


@pytest.fixture
def hub(connect: Callable[..., HuggingFaceHub]) -> HuggingFaceHub:
    return connect()


@pytest.fixture
def impatient(connect: Callable[..., HuggingFaceHub]) -> Iterator[HuggingFaceHub]:
    yield connect(timeout=httpx2.Timeout(1.0))
    hub_session.use_timeouts(hub_session.SESSION_TIMEOUT)


@pytest.fixture
def repo(hub: HuggingFaceHub, local_hub: Server) -> str:
    """A repo of the test's own with one small file; the log starts after it."""
    name = f"alice/faults-{next(NUMBERS)}"
    hub.create_repo(name, kind="dataset")
    hub.commit(name, kind="dataset", message="first", add={"state.json": b"old"})
    local_hub.clear()
    return name


def commits(local_hub: Server, repo: str, kind: str = "datasets") -> list[str]:
    """Titles of the repo's commits, oldest first."""
    request = urllib.request.Request(f"{local_hub.endpoint}/api/{kind}/{repo}/commits/main")
    request.add_header("Authorization", f"Bearer {ALICE}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [commit["title"] for commit in json.load(answer)][::-1]


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def change(hub: HuggingFaceHub, repo: str, **options: object) -> str:
    parent = hub.head(repo, kind="dataset")
    return hub.commit(repo, kind="dataset", message="second", add=ADD, parent=parent, **options)  # type: ignore[arg-type]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(random.Random(next(NUMBERS)).randbytes(9_000_000))  # else the Hub has it from another test
    return path

"""Models that are brought back for a chat: one download a file, and nobody waits for who has left."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ggufy.core.errors import Cancelled, DiskError, HubError
from ggufy.hub.protocol import Hub
from ggufy.service import model_cache as fetched
from ggufy.service.model_cache import ModelCache
from tests.processes import until

pytestmark = pytest.mark.fast

REPO = "alice/m-GGUF"


class SlowHub:
    """Sends a file when the test says so, and notes how each download ended."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.failure: BaseException | None = None
        self.begun: list[str] = []
        self.ended: list[str] = []

    def download(
        self, repo_id: str, path: str, target: Path, *, kind: str, progress: Callable[[int], None], stopped: Any
    ) -> None:
        self.begun.append(path)
        progress(40)
        while not self.go.wait(0.005):
            if stopped():
                self.ended.append(f"{path} stopped")
                raise Cancelled("stopped.")
        if self.failure:
            raise self.failure
        target.write_bytes(bytes(100))
        self.ended.append(path)


@pytest.fixture
def hub() -> SlowHub:
    return SlowHub()


@pytest.fixture
def models(hub: SlowHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelCache]:
    monkeypatch.setattr(fetched, "_POLL_S", 0.005)
    ended = threading.Event()
    yield ModelCache(cast("Hub", hub), tmp_path, ended.is_set)
    ended.set()


def test_all_who_wait_see_one_download(hub: SlowHub, models: ModelCache) -> None:
    first, second = (models.fetch(REPO, "a.gguf", 100) for _ in range(2))
    until(lambda: next(first) == 0.4)
    assert next(second) == 0.4
    assert hub.begun == ["a.gguf"]
    hub.go.set()
    assert [*first, *second, *models.fetch(REPO, "a.gguf", 100)][-1:] in ([], [0.4])
    assert hub.begun == ["a.gguf"]
    assert models.path(REPO, "a.gguf").stat().st_size == 100


def test_another_file_does_not_wait(hub: SlowHub, models: ModelCache) -> None:
    large, small = models.fetch(REPO, "large.gguf", 100), models.fetch(REPO, "small.gguf", 100)
    next(large)
    until(lambda: next(small) == 0.4)
    assert sorted(hub.begun) == ["large.gguf", "small.gguf"]


def test_who_leaves_keeps_nobody_waiting(hub: SlowHub, models: ModelCache) -> None:
    """An abandoned generator, still referred to or closed by the collector, in any thread; the last one ends it."""
    left, stays = models.fetch(REPO, "a.gguf", 100), models.fetch(REPO, "a.gguf", 100)
    next(left)
    next(stays)
    began = threading.Thread(target=left.close)  # as an event loop would
    began.start()
    began.join(60)
    assert not began.is_alive()
    assert next(stays) <= 0.4
    assert hub.ended == []
    del left, stays
    gc.collect()
    until(lambda: hub.ended == ["a.gguf stopped"])
    hub.go.set()
    assert list(models.fetch(REPO, "a.gguf", 100))[-1:] in ([], [0.4])
    assert models.path(REPO, "a.gguf").exists()


def test_one_that_is_not_closed_blocks_nobody(hub: SlowHub, models: ModelCache) -> None:
    abandoned = models.fetch(REPO, "a.gguf", 100)
    next(abandoned)
    other = models.fetch(REPO, "b.gguf", 100)
    next(other)
    hub.go.set()
    list(other)
    assert models.path(REPO, "b.gguf").exists()
    assert abandoned


def test_a_stop_ends_the_waiting_of_one(hub: SlowHub, models: ModelCache) -> None:
    stop = threading.Event()
    mine, others = models.fetch(REPO, "a.gguf", 100, stop.is_set), models.fetch(REPO, "a.gguf", 100)
    next(mine)
    next(others)
    stop.set()
    with pytest.raises(Cancelled):
        list(mine)
    assert hub.ended == []
    hub.go.set()
    list(others)
    assert hub.ended == ["a.gguf"]


@pytest.mark.parametrize("failure", [HubError("no such file."), OSError("disk"), ValueError("anything"), SystemExit()])
def test_every_failure_reaches_everybody(hub: SlowHub, models: ModelCache, failure: BaseException) -> None:
    waiting = [models.fetch(REPO, "a.gguf", 100) for _ in range(2)]
    for one in waiting:
        next(one)
    hub.failure = failure
    hub.go.set()
    for one in waiting:
        with pytest.raises(type(failure)):
            list(one)
    hub.failure = None
    list(models.fetch(REPO, "a.gguf", 100))  # and the next try is a new one
    assert models.path(REPO, "a.gguf").exists()


def test_room_is_kept_for_what_is_on_its_way(
    hub: SlowHub, models: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "free_bytes", lambda path: (64 << 20) + 150)
    first = models.fetch(REPO, "a.gguf", 100)
    until(lambda: next(first) == 0.4)
    with pytest.raises(DiskError, match="smaller quant"):
        next(models.fetch(REPO, "b.gguf", 100))  # 60 bytes of the first are still to come

"""Searching the Hub: what comes first, and how seldom it is asked."""

# ruff: noqa: F811 - fixtures are imported
from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

from ggufy.core.errors import HubAway
from ggufy.sources import search as module
from ggufy.sources.search import Search
from tests.hub_fixture import ALICE, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.02)


@pytest.fixture
def search(local_hub: LocalHub) -> Iterator[Search]:
    local_hub.clear()
    yield Search(endpoint=local_hub.endpoint)
    local_hub.mend()


@pytest.fixture(scope="module", autouse=True)
def models(local_hub: LocalHub) -> None:
    card = b"---\ntags: [rwkv]\n---\n"
    local_hub.put("alice/rwkv-world", "a.pth", b"a", downloads=5)
    local_hub.put("alice/rwkv-world", "b.pth", b"b")
    local_hub.put("bob/Rwkv-World-HF", "model.safetensors", b"a", downloads=900)
    local_hub.put("bob/rwkv-world-GGUF", "model.gguf", b"a", downloads=800)
    local_hub.put("bob/World-Tagged", "model.pth", b"a", downloads=7)
    local_hub.put("bob/World-Tagged", "README.md", card, lfs=0)
    local_hub.put("bob/other-world", "model.pth", b"a", downloads=1000)
    local_hub.put("bob/lama", "model.gguf", b"a", gated="auto", downloads=3)
    local_hub.put("alice/secret-rwkv-world", "model.pth", b"a", private=1)


def asked(local_hub: LocalHub) -> int:
    return len(local_hub.log("/api/models"))


def test_rwkv_checkpoints_come_first(search: Search, local_hub: LocalHub) -> None:
    found = search("RWKV  world"[:4], token=None)
    assert [one.id for one in found] == ["bob/Rwkv-World-HF", "alice/rwkv-world", "bob/rwkv-world-GGUF"]
    assert (found[1].checkpoints, found[1].downloads, found[1].rwkv) == (2, 5, True)
    assert asked(local_hub) == 1


def test_other_words_look_among_rwkv_first_and_then_everywhere(search: Search, local_hub: LocalHub) -> None:
    assert [one.id for one in search("world", token=None)] == ["bob/World-Tagged"]
    assert asked(local_hub) == 1
    (found,) = search("lama", token=None)
    assert (found.id, found.gated, found.rwkv, found.checkpoints) == ("bob/lama", True, False, 0)
    assert asked(local_hub) == 3


def test_a_short_query_asks_nothing(search: Search, local_hub: LocalHub) -> None:
    assert search("", token=None) == search(" r ", token=None) == []
    assert asked(local_hub) == 0


def test_answers_are_kept_for_some_minutes(
    search: Search, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search("rwkv", token=None)
    assert search("  RWKV ", token=None) == first
    assert asked(local_hub) == 1
    first.clear()  # what a caller does with its list is its own affair
    assert search("rwkv", token=None)
    monkeypatch.setattr(module, "KEPT_S", -1.0)
    search("rwkv-world", token=None)
    search("rwkv-world", token=None)
    assert asked(local_hub) == 3


def test_only_so_many_answers_are_kept(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    monkeypatch.setattr(module, "INTERVAL_S", 0.0)
    for number in range(8):
        search(f"rwkv {number}", token=None)
    assert [query for query, _ in search._kept] == ["rwkv 5", "rwkv 6", "rwkv 7"]


def test_what_one_token_sees_is_for_nobody_else(search: Search, local_hub: LocalHub) -> None:
    assert "alice/secret-rwkv-world" in [one.id for one in search("rwkv", token=ALICE)]
    assert "alice/secret-rwkv-world" not in [one.id for one in search("rwkv", token=None)]
    assert asked(local_hub) == 2
    assert ALICE not in repr(search._kept)


def test_there_is_always_some_time_between_two_questions(
    search: Search, local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.2)
    monkeypatch.setattr(module, "LONGEST_TURN_S", 0.5)
    refused: list[str] = []

    def ask(number: int) -> None:
        try:
            search(f"rwkv {number}", token=None)
        except HubAway as error:
            refused.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Whatever the machine's speed: the n-th question of a burst is asked n x 0.2 s later at the earliest.
    assert asked(local_hub) <= 1 + (time.monotonic() - began) / 0.2
    assert asked(local_hub) + len(refused) == 8
    assert all(text.startswith("the search is busy: try again in a moment") for text in refused)


@pytest.mark.parametrize("status", [500, 503, 403])
def test_a_hub_that_is_away_gets_a_sentence(search: Search, local_hub: LocalHub, status: int) -> None:
    local_hub.fault("GET /api/models", status=status)
    with pytest.raises(HubAway, match=rf"\(HTTP status {status}\): type the name as owner/repo"):
        search("rwkv", token=None)
    assert asked(local_hub) == 1  # a letter typed is not worth a second try
    assert search("rwkv", token=None)


def test_a_wrong_token_and_no_network(search: Search, local_hub: LocalHub) -> None:
    with pytest.raises(HubAway, match="does not know the token"):
        search("rwkv", token="hf_nobody")
    with pytest.raises(HubAway, match="the Hub cannot be searched"):
        Search(endpoint="http://127.0.0.1:9")("rwkv", token=None)


@pytest.mark.parametrize("page", [b"<html>log in</html>", b'{"a": 1}', b'[{"likes": 1}]', b"3"])
def test_another_answer_than_the_hubs_gets_a_sentence(page: bytes) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(HubAway, match="the Hub's answer cannot be understood: type the name"):
            Search(endpoint=f"http://127.0.0.1:{server.server_port}")("rwkv", token=None)
        thread.join()


def test_a_hub_that_wants_to_be_left_alone_is(search: Search, local_hub: LocalHub) -> None:
    local_hub.fault("GET /api/models", status=429, headers={"Retry-After": "200"})
    with pytest.raises(HubAway, match=r"is busy \(HTTP status 429\)"):
        search("rwkv", token=None)
    with pytest.raises(HubAway, match="the search is busy"):
        search("rwkv", token=None)
    assert asked(local_hub) == 1

"""Whose token a caller shows: hiccups are not remembered, and invented tokens cost the Hub next to nothing."""

from __future__ import annotations

from types import SimpleNamespace

import httpx2
import huggingface_hub.constants
import pytest
from hub_fixture import ALICE, BOB, LocalHub, local_hub, no_request_elsewhere  # noqa: F401 - fixtures

from ggufy.core.errors import HubAway
from ggufy.net import http_get
from ggufy.service.access import STRANGER, Visitor
from ggufy.service.accounts import BURST, INTERVAL_S, KEPT_S, TRUSTED_S, Accounts, account_of, ask

ANN = Visitor(name="ann")


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Hub:
    """Knows the tokens of `known`, or is away; counts what it is asked."""

    def __init__(self, **known: Visitor) -> None:
        self.known, self.away, self.asked = known, False, 0

    def __call__(self, token: str) -> Visitor:
        self.asked += 1
        if self.away:
            raise HubAway("away.")
        return self.known.get(token, STRANGER)


def accounts(hub: Hub) -> tuple[Accounts, Clock]:
    clock = Clock()
    return Accounts("hf_own", lambda: "owner", ask=hub, clock=clock), clock


def test_answers_are_kept_for_a_while() -> None:
    hub = Hub(hf_ann=ANN)
    who, clock = accounts(hub)
    assert [who("hf_ann"), who("hf_ann"), who("hf_x"), who("hf_x")] == [ANN, ANN, STRANGER, STRANGER]
    assert hub.asked == 2
    clock.now += KEPT_S + 1
    assert (who("hf_ann"), hub.asked) == (ANN, 3)


def test_a_hiccup_is_not_remembered() -> None:
    hub = Hub(hf_ann=ANN)
    hub.away = True
    who, clock = accounts(hub)
    assert who("hf_ann") == STRANGER
    hub.away = False
    assert who("hf_ann") == ANN


def test_a_confirmed_token_counts_on_while_the_hub_is_away() -> None:
    hub = Hub(hf_ann=ANN)
    who, clock = accounts(hub)
    assert who("hf_ann") == ANN
    hub.away = True
    clock.now += KEPT_S + 1
    assert who("hf_ann") == ANN
    clock.now += TRUSTED_S
    assert who("hf_ann") == STRANGER
    hub.away, hub.known = False, {}
    assert who("hf_ann") == STRANGER  # it was taken back


def test_invented_tokens_share_an_allowance_and_owners_come_in() -> None:
    hub = Hub(hf_ann=ANN)
    who, clock = accounts(hub)
    assert who("hf_ann") == ANN
    for number in range(10_000):
        assert who(f"hf_invented{number}") == STRANGER
    assert hub.asked <= BURST
    clock.now += KEPT_S + 1  # the owner's answer is out of date, and the flood goes on
    for number in range(10_000):
        who(f"hf_again{number}")
    before = hub.asked
    assert (who("hf_ann"), hub.asked) == (ANN, before + 1)
    assert who("hf_own") == Visitor(name="owner")  # without a question
    assert hub.asked == before + 1
    for _ in range(600):  # ten minutes of it
        clock.now += 1
        who(f"hf_more{clock.now}")
    assert hub.asked <= before + 1 + 600 / INTERVAL_S + BURST


@pytest.mark.parametrize(
    "failure",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("silent"),
        httpx2.LocalProtocolError("Illegal header value b'Bearer hf_secret1'"),
        ImportError("Using SOCKS proxy, but the 'socksio' package is not installed"),
        ValueError("Unknown scheme for proxy URL"),
        RuntimeError("Cannot send a request, as the client has been closed."),
        OSError("no route"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_whatever_the_client_raises(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(http_get, "get_session", lambda: SimpleNamespace(build_request=get))
    assert account_of("hf_secret1") == STRANGER
    with pytest.raises(HubAway, match="cannot say whose token") as told:
        ask("hf_secret1")
    assert "hf_secret1" not in str(told.value)


@pytest.mark.parametrize("token", ["", "hf_", "hf_with space", "hf_line\nend", "hf_ümlaut", "x" * 5000])
def test_what_is_no_token_is_not_asked_for(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(http_get, "get_session", never)
    assert ask(token) == STRANGER


def test_the_real_client(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", local_hub.endpoint)
    alice = Visitor(name="alice", organisations=frozenset({"acme"}))
    assert [account_of(ALICE), account_of(BOB), account_of("hf_nobody")] == [alice, Visitor(name="bob"), STRANGER]
    who = Accounts()
    for fault in ({"status": 503}, {"status": 429}, {"cut": 3}):
        local_hub.fault("whoami", times=1, **fault)
        assert who(ALICE) == STRANGER
        local_hub.mend()
    assert who(ALICE) == alice
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert account_of(ALICE) == STRANGER
    assert who(ALICE) == alice

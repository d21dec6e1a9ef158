"""What an error makes of a job, and waiting for what passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ggufy.core import errors
from ggufy.core.errors import (
    Cancelled,
    GgufyError,
    HubAway,
    LeaseLost,
    QuotaError,
    SourceAway,
    StorageError,
    TokenError,
)
from ggufy.records.patience import Patience, Verdict, pause_s, verdict
from ggufy.system.clock import sleep
from tests.hands import HandClock

pytestmark = pytest.mark.fast

W, M, P, F = Verdict.WAITS, Verdict.MOVES, Verdict.PAUSES, Verdict.FAILS
TABLE = {
    "GgufyError": F,
    "UsageError": F,
    "SourceError": F,
    "CheckpointError": F,
    "VocabError": F,
    "SourceAway": W,
    "CannotStream": F,
    "SourceChanged": F,
    "CalibrationError": F,
    "ToolError": F,
    "DiskError": F,
    "HubError": F,
    "HubAway": W,
    "QuotaError": W,
    "TokenError": P,
    "StorageError": P,
    "RepoMissing": P,
    "StaleParent": W,
    "LeaseLost": M,
    "BusyError": F,
    "Cancelled": F,  # the runner tells it apart before
}
KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, GgufyError)}


def an(name: str) -> GgufyError:
    return QuotaError("too much.", 7.0) if name == "QuotaError" else KINDS[name]("why.")


@pytest.mark.parametrize("name", KINDS)
def test_every_error_has_its_verdict(name: str) -> None:
    assert verdict(an(name)) is TABLE[name]


class Hub:
    """Fails with these errors, one after the other; then it answers."""

    def __init__(self, *fails: Exception):
        self.fails = list(fails)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.fails:
            raise self.fails.pop(0)
        return "an answer"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def test_what_passes_is_asked_again_for_as_long_as_it_takes(clock: HandClock) -> None:
    said: list[str] = []
    away, full = HubAway("the Hub is away."), QuotaError("too much.", 100.0)
    call = Hub(*[away] * 6, full, SourceAway("its server is away."))
    assert Patience(say=said.append, clock=clock)(call) == "an answer" and call.calls == 9
    assert clock.time == pytest.approx(2 + 5 + 15 + 60 + 60 + 60 + 100 + 60)
    assert [text for n, text in enumerate(said) if n == 0 or said[n - 1] != text] == [
        "the Hub is away.",
        "too much.",
        "its server is away.",
        "",
    ]


def test_nothing_is_said_when_nothing_was_waited_for(clock: HandClock) -> None:
    said: list[str] = []
    assert Patience(say=said.append, clock=clock)(Hub()) == "an answer"
    assert said == [] and clock.waits == []


@pytest.mark.parametrize("name", [name for name in KINDS if TABLE[name] is not W])
def test_what_does_not_pass_is_raised_at_once(clock: HandClock, name: str) -> None:
    error = an(name)
    call = Hub(HubAway("away."), error)
    with pytest.raises(type(error)) as caught:
        Patience(clock=clock)(call)
    assert caught.value is error and call.calls == 2


def test_a_bug_is_not_waited_for(clock: HandClock) -> None:
    with pytest.raises(ZeroDivisionError):
        Patience(clock=clock)(Hub(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("failed", "error", "expected"),
    [
        (1, None, 2.0),
        (2, HubAway(""), 5.0),
        (3, HubAway(""), 15.0),
        (4, HubAway(""), 60.0),
        (99, HubAway(""), 60.0),
        (0, None, 2.0),
        (1, QuotaError("", 900.0), 900.0),
        (4, QuotaError("", 1.0), 60.0),
        (1, QuotaError("", -5.0), 2.0),
    ],
)
def test_how_long(failed: int, error: GgufyError | None, expected: float) -> None:
    assert pause_s(failed, error) == expected


def test_a_stop_ends_a_wait_soon(clock: HandClock) -> None:
    call = Hub(*[QuotaError("too much.", 3600.0)] * 2)
    with pytest.raises(Cancelled):
        Patience(stopped=lambda: clock.time > 100, clock=clock)(call)
    assert 100 < clock.time < 101 and call.calls == 1


def test_the_lease_is_looked_at_before_every_try(clock: HandClock) -> None:
    def check() -> None:
        if clock.time > 5:
            raise LeaseLost("it is another's.")

    call = Hub(*[HubAway("away.")] * 9)
    with pytest.raises(LeaseLost):
        Patience(check=check, clock=clock)(call)
    assert call.calls == 2, "nothing is touched any more"


def test_sleeping(clock: HandClock) -> None:
    sleep(10.0, clock=clock)
    assert clock.time == pytest.approx(10.0)
    sleep(0.0, clock=clock)
    sleep(-1.0, clock=clock)
    assert clock.time == pytest.approx(10.0)
    stops: list[Callable[[], bool]] = [lambda: True, lambda: clock.time > 15]
    for stopped in stops:
        with pytest.raises(Cancelled):
            sleep(100.0, stopped, clock)
    assert clock.time < 16


def test_owners_must_act_on_these() -> None:
    """Their texts say what is to be done; see net/hub_errors.py."""
    assert {verdict(TokenError("")), verdict(StorageError(""))} == {P}

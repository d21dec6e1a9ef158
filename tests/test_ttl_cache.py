"""Answers that are kept: what is out of date or too much goes."""

from __future__ import annotations

from dataclasses import dataclass

from ggufy.system.ttl_cache import TtlCache, memory_of


@dataclass(frozen=True)
class Preview:
    """As a report holds the head of a file, and a preview the report."""

    head: bytes
    names: tuple[str, ...] = ()


def test_what_is_out_of_date_is_dropped_and_not_only_passed_over() -> None:
    now = [0.0]
    kept: TtlCache[str] = TtlCache(lambda answer: 10.0, clock=lambda: now[0])
    assert kept.get("a", lambda: "first") == kept.get("a", lambda: "second") == "first"
    now[0] = 9.0
    kept.get("b", lambda: "other")
    assert len(kept) == 2
    now[0] = 11.0
    kept.get("b", lambda: "never asked")
    assert len(kept) == 1  # "a" is gone, though nobody asked for it
    assert kept.get("a", lambda: "third") == "third"


def test_some_answers_are_kept_longer_than_others() -> None:
    now = [0.0]
    kept: TtlCache[str] = TtlCache(lambda answer: 600.0 if answer == "good" else 10.0, clock=lambda: now[0])
    for answer in ("good", "bad"):
        kept.get(answer, lambda answer=answer: answer)  # type: ignore[misc]
    now[0] = 9.0
    assert kept.get("bad", lambda: "other") == "bad"
    now[0] = 11.0
    assert kept.get("bad", lambda: "other") == "other"
    assert kept.get("good", lambda: "other") == "good"


def test_entries_are_weighed() -> None:
    kept: TtlCache[Preview] = TtlCache(lambda answer: 10.0, most_bytes=3_000_000)
    for number in range(10):
        kept.get(number, lambda: Preview(bytes(1_000_000)))
    assert len(kept) == 2
    kept.get("large", lambda: Preview(bytes(4_000_000)))
    assert len(kept) == 2  # what is too large for all is not kept at all, and drives nothing out
    for number in range(1000):
        kept.get(number, lambda: Preview(bytes(10_000)))
    assert 250 < len(kept) < 300


def test_an_answer_that_is_nothing_is_an_answer() -> None:
    kept: TtlCache[str | None] = TtlCache(lambda answer: 10.0)
    answers = iter([None, "asked twice"])
    assert kept.get("a", lambda: next(answers)) is None
    assert kept.get("a", lambda: next(answers)) is None


def test_memory_counts_what_is_inside_and_everything_once() -> None:
    head = bytes(100_000)
    assert 100_000 < memory_of(Preview(head)) < 102_000
    assert memory_of([Preview(head), {"again": head}]) < 103_000
    assert memory_of(Preview(b"", tuple(str(n) * 20 for n in range(1000)))) > 60_000
    loop: list[object] = []
    loop.append(loop)
    assert memory_of(loop) < 1000

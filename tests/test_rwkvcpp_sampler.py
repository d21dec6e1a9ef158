"""How the next token is chosen: small cases written out, and how often each comes."""

from __future__ import annotations

import numpy as np
import pytest

from ggufy.llama.chat.options import ChatOptions
from ggufy.rwkvcpp.sampler import PENALIZED, Sampler

pytestmark = pytest.mark.fast

# Probabilities 0.5, 0.25, 0.15, 0.1 for the ids 2, 0, 3, 1.
LOGITS = np.log(np.array([0.25, 0.1, 0.5, 0.15], dtype=np.float32))


def shares(**options: float) -> list[float]:
    """How often each id comes."""
    sampler = Sampler(ChatOptions(seed=1, **{"top_p": 1.0, "temperature": 1.0, **options}))  # type: ignore[arg-type]
    chosen = [sampler.choose(LOGITS, ()) for _ in range(1500)]
    return [count / len(chosen) for count in np.bincount(chosen, minlength=4)]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0.25, 0.1, 0.5, 0.15]),
        ({"top_p": 0.74}, [1 / 3, 0, 2 / 3, 0]),  # the first id with which the sum reaches it is the last
        ({"top_p": 0.76}, [0.25 / 0.9, 0, 0.5 / 0.9, 0.15 / 0.9]),
        ({"top_p": 0.49}, [0, 0, 1, 0]),
        ({"top_p": 0.0}, [0, 0, 1, 0]),
        ({"top_k": 1}, [0, 0, 1, 0]),
        ({"top_k": 2}, [1 / 3, 0, 2 / 3, 0]),
        ({"top_k": 2, "top_p": 0.6}, [0, 0, 1, 0]),  # of what top k left, 2/3 and 1/3
        ({"temperature": 0.0}, [0, 0, 1, 0]),
        ({"temperature": 0.5}, [0.0625 / 0.345, 0.01 / 0.345, 0.25 / 0.345, 0.0225 / 0.345]),  # their squares
        ({"temperature": 1e-3, "top_p": 0.9}, [0, 0, 1, 0]),
    ],
)
def test_written_out(options: dict[str, float], wanted: list[float]) -> None:
    found = shares(**options)
    assert found == pytest.approx(wanted, abs=0.05)
    assert [share > 0 for share in found] == [share > 0 for share in wanted]


def test_penalties() -> None:
    options = ChatOptions(temperature=0.0, presence=1.0, frequency=0.5, repeat=2.0)
    logits = np.array([3.0, 3.9, -1.0, 1.0], dtype=np.float32)

    def left(before: tuple[int, ...]) -> list[float]:
        return [float(x) for x in Sampler(options)._penalized(logits.astype(np.float64), before)]

    assert left(()) == pytest.approx([3.0, 3.9, -1.0, 1.0])
    assert left((1, 2, 1)) == pytest.approx([3.0, 3.9 / 2 - 2 * 0.5 - 1.0, -2.0 - 0.5 - 1.0, 1.0])
    assert Sampler(options).choose(logits, (1,)) == 0
    assert Sampler(options).choose(logits, (1, *[2] * PENALIZED)) == 1, "only the last ones count"
    assert logits.tolist() == pytest.approx([3.0, 3.9, -1.0, 1.0]), "the model's own logits stay"


def test_what_is_forbidden_never_comes() -> None:
    greedy = Sampler(ChatOptions(temperature=0.0))
    assert greedy.choose(LOGITS, (), forbidden=(2,)) == 0
    sampler = Sampler(ChatOptions(top_p=1.0, temperature=5.0))
    assert {sampler.choose(LOGITS, (), forbidden=(2, 0)) for _ in range(100)} == {1, 3}


def test_a_seed_gives_the_same_choices_again() -> None:
    def chosen(seed: int | None) -> list[int]:
        sampler = Sampler(ChatOptions(seed=seed, top_p=1.0))
        return [sampler.choose(LOGITS, ()) for _ in range(64)]

    assert chosen(7) == chosen(7) != chosen(8)
    assert chosen(None) != chosen(None)


def test_huge_logits_are_no_trouble() -> None:
    logits = np.array([1e30, -1e30, 1e4], dtype=np.float32)
    assert Sampler(ChatOptions(top_p=0.9)).choose(logits, ()) == 0

"""What was measured of one quant, and which quant to pick. Records and arithmetic, no I/O.

An `Evaluation` compares a quant with the base GGUF that it was made from, token by token over the same text: how much
less likely the text became (PPL), how far the predictions are from the base's (KLD), how often both expect the same
next token (same top p). The figures are llama-perplexity's and llama-bench's own, with their standard errors.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from ggufy.core.catalog import BY_NAME
from ggufy.core.words import human_size
from ggufy.core.writing import NAMES

VERSION = 1
DEFAULT_CHUNKS = 64  # 16 thousand scored tokens: the KLD's standard error is about 1 % of it
# What running a model takes beside its file: compute buffers and the state of some conversations, which does not grow
# with their length. With the World vocabulary, 50 to 70 MB were measured for files of 60 and 180 MB; the rest is a
# margin.
OVERHEAD_BYTES = 250_000_000
BUSY_SHARE = 0.2  # of a tool's time: one that waits longer for a CPU measures the others, not the model
NONSENSE_KLD = 0.5  # nats a token: a model that far from its base is no use (Q2_K: 0.02 to 0.1, random types: 1)
OVERHEAD_SHARE = 0.1  # of the file, for what grows with the width of the model


@dataclass(frozen=True, kw_only=True)
class Quality:
    """llama-perplexity's comparison of a quant with its base. Errors are standard errors of the mean."""

    ppl: float  # perplexity of the quant
    ppl_error: float
    base_ppl: float  # perplexity of the base, over the same tokens
    base_ppl_error: float
    ppl_ratio: float  # ppl / base_ppl; its error is much smaller than both, since the tokens are the same
    ppl_ratio_error: float
    kld: float  # mean Kullback-Leibler divergence from the base's predictions, nats a token
    kld_error: float
    kld_median: float
    kld_999: float  # 99.9 % of the tokens are below it
    kld_max: float
    delta_p: float  # mean change of the true token's probability, percentage points
    delta_p_error: float
    delta_p_rms: float
    delta_p_rms_error: float
    same_top: float  # % of tokens where both expect the same next token
    same_top_error: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """llama-bench's tokens a second on one machine, with the standard deviation between its repetitions."""

    threads: int
    prompt_tps: float  # reading 512 tokens
    prompt_tps_error: float
    generation_tps: float  # writing one after the other
    generation_tps_error: float
    throttled: bool | None = None  # whether it rested, or its threads changed, meanwhile; None: an older record
    waited: float | None = None  # part of its time in which it waited for a CPU that others used; None: not known

    @property
    def undisturbed(self) -> bool:
        """Whether it is the machine's speed: not that of a tool that rested, or shared its CPUs with others."""
        return not self.throttled and (self.waited or 0.0) < BUSY_SHARE

    @property
    def reading(self) -> str:
        """`90.3 ± 1.2`: prompt tokens a second."""
        return plus_minus(self.prompt_tps, self.prompt_tps_error)

    @property
    def writing(self) -> str:
        """`57.3 ± 0.2`: generated tokens a second."""
        return plus_minus(self.generation_tps, self.generation_tps_error)

    @property
    def latency(self) -> str:
        """`17.4 ± 0.1`: milliseconds of a generated token."""
        ms = 1000 / self.generation_tps
        return plus_minus(ms, ms * self.generation_tps_error / self.generation_tps)


def shown_latency(record: Mapping[str, Any] | None) -> str:
    """The same as milliseconds a token."""
    speed = Speed(**record) if record else None
    return f"{speed.latency} ms" if speed and speed.undisturbed else ""


def shown_speed(record: Mapping[str, Any] | None) -> str:
    """The speed of an evaluation's record as a table shows it; empty if it is not the machine's."""
    speed = Speed(**record) if record else None
    return speed.writing if speed and speed.undisturbed else ""


def plus_minus(value: float, error: float) -> str:
    """A speed with its spread; decimals only where they say something."""
    digits = 0 if value >= 100 else 1
    return f"{value:.{digits}f} ± {error:.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class TextFigures:
    """Figures of the same quant over a further text."""

    text: str  # its name
    text_sha256: str
    writing: str  # kind that most of it is of, see core/writing.py; empty: unknown
    chunks: int  # of 512 tokens
    tokens: int  # that were scored
    quality: Quality


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One quant measured against its base."""

    quant: str  # file name
    quant_sha256: str
    size: int  # bytes of the file
    bpw: float  # bits per weight
    base: str  # file name
    base_sha256: str
    text: str  # name of the evaluation text
    text_sha256: str
    llama: str  # commit of the llama.cpp that measured
    chunks: int  # of 512 tokens
    tokens: int  # that were scored: the second half of each chunk but its last
    quality: Quality
    speed: Speed | None = None  # None: not measured
    others: tuple[TextFigures, ...] = ()  # over further texts; all that is compared or picked by is over the first

    def is_of(self, sha256: str) -> bool:
        """Whether these are the figures of the file with this digest; older records may not say."""
        return self.quant_sha256 in ("", sha256)

    @property
    def shown_speed(self) -> Speed | None:
        """The speed, if it is the machine's."""
        return self.speed if self.speed and self.speed.undisturbed else None

    @property
    def over(self) -> tuple[str, int]:
        """What it was measured over. Only figures with the same text and number of tokens can be compared."""
        return (self.text_sha256, self.tokens)

    def evolve(self, **changes: Any) -> Self:
        """The next record."""
        return dataclasses.replace(self, **changes)


def to_json(evaluation: Evaluation) -> str:
    """The evaluation as JSON text, with the record's version."""
    record = {"version": VERSION, **dataclasses.asdict(evaluation)}
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Evaluation:
    """Reads what `to_json` wrote. Raises ValueError for anything else."""
    record = json.loads(text)
    if not isinstance(record, dict) or record.pop("version", None) != VERSION:
        raise ValueError(f"not an evaluation of version {VERSION}")
    return from_record(record)


def from_record(record: Mapping[str, Any]) -> Evaluation:
    """Reads the fields of an evaluation, as `dataclasses.asdict` gives them. Raises ValueError for anything else."""
    try:
        fields = dict(record)
        quality, speed = Quality(**fields.pop("quality")), fields.pop("speed")
        others = tuple(_text_figures(**one) for one in fields.pop("others", ()))
        return Evaluation(quality=quality, speed=Speed(**speed) if speed else None, others=others, **fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an evaluation: {error}") from error


def _text_figures(*, quality: Mapping[str, Any], writing: str, **fields: Any) -> TextFigures:
    return TextFigures(quality=Quality(**quality), writing=writing if writing in NAMES else "", **fields)


def memory_needed(size: int) -> int:
    """Bytes of memory to run a model file of `size` bytes: the file, and what llama.cpp sets up beside it."""
    return math.ceil(size * (1 + OVERHEAD_SHARE)) + OVERHEAD_BYTES


def comparable(found: Iterable[Evaluation]) -> list[list[Evaluation]]:
    """The evaluations in groups that can be compared with each other, the largest group first; of groups of one size,
    the one over more tokens."""
    groups: dict[tuple[str, int], list[Evaluation]] = {}
    for one in found:
        groups.setdefault(one.over, []).append(one)
    return sorted(groups.values(), key=lambda group: (-len(group), -group[0].tokens))


def which_one(sizes: Mapping[str, int], memory: int, klds: Mapping[str, float] | None = None) -> str | None:
    """The file to pick for `memory` bytes; None if none fits, or none that does is of any use.

    `sizes` are bytes by quant type, or by another name for what is none; `klds` mean KLDs of those that were measured.
    Types for other kinds of models are never picked, nor what was measured to be nonsense. If all others that fit were
    measured, the one nearest to the base is picked, and of equals the smaller; otherwise the largest of those that are
    recommended, or (where none of them fits) of the ordinary ones, which is the best guess.
    """
    known = klds or {}
    fitting = [name for name in sizes if memory_needed(sizes[name]) <= memory and known.get(name, 0.0) < NONSENSE_KLD]
    fitting = [name for name in fitting if name not in BY_NAME or not BY_NAME[name].ternary]
    if fitting and all(name in known for name in fitting):
        return min(fitting, key=lambda name: (known[name], sizes[name], name))
    best = [name for name in fitting if name not in BY_NAME or BY_NAME[name].recommended]
    ordinary = [name for name in fitting if BY_NAME[name].ordinary or name in known] if not best else []
    return min(best or ordinary, key=lambda name: (-sizes[name], name), default=None)


@dataclass(frozen=True, kw_only=True)
class Pick:
    """What to take from some amount of memory on."""

    memory: str  # for people
    type: str  # quant type, or another name for what is none


def picks(sizes: Mapping[str, int], klds: Mapping[str, float]) -> tuple[Pick, ...]:
    """Which file to take for every amount of memory: each holds from its amount on. No two name the same amount."""
    found: dict[str, str] = {}
    for memory in sorted(memory_needed(size) for size in sizes.values()):
        if best := which_one(sizes, memory, klds):
            found[human_size(memory)] = best  # of amounts that read the same, the last one, where more fits
    kept: list[Pick] = []
    for shown, name in found.items():
        if not kept or kept[-1].type != name:
            kept.append(Pick(memory=shown, type=name))
    return tuple(kept)


PROBE_CHUNKS = 16  # of 512 tokens, that each measurement reads: 4 thousand are scored

"""Sizes to order: what a user asks for, as bytes of a file, and how the file that comes of it is called.

A target is one of

    --target-size 1.2GB      bytes of the file (GB = 10^9, GiB = 2^30)
    --target-bpw 3.275       bits per weight of all tensors, embedding and head included
    --fit-memory 4GB         bytes of memory that the model may take when it runs

A made file is `<Model>-<target>-<label>.gguf`, as `Rwkv-1.6B-3.275bpw-IQ3_XXS_FIT.gguf`. The label is the quant type
of about that size and `_FIT`, and stands last, since tools read it there:

- huggingface.co and Ollama take the last name of a quant type in the file's name, with letters behind it (`_FIT`), as
  its label; digits behind it would be cut off, and the file be taken for the plain quant type.
- llama.cpp (`-hf repo:tag`) takes the first file with the tag before a `-` or `.`, in either case. So `IQ3_XXS` does
  not find this file, `IQ3_XXS_FIT` and `3.275bpw` do. Its cache tag is what follows the last `-` or `.`.

The exact bits per weight are in the metadata (`metadata`), not in the name, which is known before the file is.

In jobs and on the page a target is one word (`parse_word`), and is kept as its label: `of_label` reads it back.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

from ggufy.core.errors import UsageError
from ggufy.core.metrics import OVERHEAD_BYTES, OVERHEAD_SHARE, memory_needed
from ggufy.core.words import brief, human_size

SIZE, BPW, MEMORY = "size", "bpw", "memory"
OPTIONS = {SIZE: "--target-size", BPW: "--target-bpw", MEMORY: "--fit-memory"}
SUFFIX = "_FIT"
FAST, STANDARD, THOROUGH = "fast", "standard", "thorough"
MODES = (FAST, STANDARD, THOROUGH)  # how much of the model is measured to find a mix (see steps/mix.py)
MOST_BPW = 16.0  # nothing above has a use: it is the unquantized file
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_SIZE = re.compile(rf"({_NUMBER.pattern})\s*([A-Za-z]+)")
_WORD = re.compile(
    rf"(?P<bits>{_NUMBER.pattern})\s*bpw|(?:(?P<memory>mem|fit)[\s-]*)?(?P<size>(?:{_NUMBER.pattern})\s*[A-Za-z]+)",
    re.IGNORECASE,
)
ADVICE = {
    SIZE: "Made to order: {amount}.",
    BPW: "Made to order: {amount} bits per weight.",
    MEMORY: "Made to order: runs in {amount} of memory.",
}
LEAST_BPW = 1.5  # no type has fewer bits

# Bits per weight of whole files of an 8B model (llama.cpp, tools/quantize/README.md), one of each size: what people
# expect of a label.
LADDER: dict[str, float] = {
    "IQ1_S": 2.0042, "IQ1_M": 2.1460, "IQ2_XXS": 2.3824, "IQ2_XS": 2.5882, "IQ2_S": 2.7403, "IQ2_M": 2.9294,
    "Q2_K": 3.1593, "IQ3_XXS": 3.2548, "IQ3_XS": 3.4977, "IQ3_S": 3.6606, "IQ3_M": 3.7628, "Q3_K_M": 3.9960,
    "Q3_K_L": 4.2979, "IQ4_XS": 4.4597, "Q4_K_S": 4.6672, "Q4_K_M": 4.8944, "Q5_K_S": 5.5704, "Q5_K_M": 5.7036,
    "Q6_K": 6.5633, "Q8_0": 8.5008,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Target:
    """What was asked for."""

    kind: str  # SIZE, BPW or MEMORY
    amount: float  # bytes, or bits per weight
    text: str  # as in a file's name: 1.2GB, 3.275bpw, mem4GB

    @property
    def shown(self) -> str:
        """The amount for people: `1.2 GB`, `3.275`."""
        amount = self.text.removeprefix("mem").removesuffix("bpw")
        return re.sub(r"(?<=[0-9])(?=[A-Za-z])", " ", amount, count=1)

    def tensor_budget(self, *, weights: int, head: int) -> int:
        """Bytes that the tensors of the file may take, padding included.

        `weights` is the number of weights of all tensors, `head` the bytes before the tensors (metadata and list of
        tensors). Raises UsageError when there is no room for any tensor.
        """
        if self.kind == BPW:
            return math.floor(self.amount * weights / 8)
        budget = self.file_budget(weights=weights, head=head) - head
        if budget <= 0:
            needed = memory_needed(head) if self.kind == MEMORY else head
            raise UsageError(
                "{option} {asked} leaves no room for any weights (the rest takes {rest}): ask for more.",
                option=OPTIONS[self.kind],
                asked=human_size(self.amount),
                rest=human_size(needed),
            )
        return budget

    def file_budget(self, *, weights: int, head: int) -> int:
        """Bytes of the whole file, at most."""
        if self.kind == BPW:
            return head + math.floor(self.amount * weights / 8)
        return math.floor(self.amount) if self.kind == SIZE else file_that_fits(math.floor(self.amount))


def parse(*, size: str | None = None, bpw: str | None = None, memory: str | None = None) -> Target | None:
    """The target that the options ask for, or None. Raises UsageError for a bad one, and for more than one."""
    given = {kind: text for kind, text in ((SIZE, size), (BPW, bpw), (MEMORY, memory)) if text is not None}
    if not given:
        return None
    if len(given) > 1:
        raise UsageError(
            "{options} exclude each other: give one of them.", options=" and ".join(OPTIONS[kind] for kind in given)
        )
    [(kind, text)] = given.items()
    if kind == BPW:
        amount = _bpw(text)
        return Target(kind=kind, amount=amount, text=f"{_plain(amount)}bpw")
    size_asked, short = _bytes(text, OPTIONS[kind])
    return Target(kind=kind, amount=size_asked, text=short if kind == SIZE else f"mem{short}")


def parse_word(word: str) -> Target:
    """`1.2GB`, `900 MiB`, `3.275bpw`, `mem4GB` or `fit 4GB`, in either case. Raises UsageError.

    Its text alone gives the same target again: the number is rounded to six digits behind the point.
    """
    match = _WORD.fullmatch(word.strip())
    if match is None:
        raise UsageError(
            "{word} is no size to order: write one such as 1.2GB, 900MiB, 3.275bpw or mem4GB.", word=repr(brief(word))
        )
    bits, size = match["bits"], match["size"]
    options = {"bpw": bits} if bits else {"memory" if match["memory"] else "size": size}
    try:
        once = _one(options)
        return once if bits else _one({name: once.text.removeprefix("mem") for name in options})
    except UsageError:
        raise UsageError(
            "{word} is no size to order: it is too small, too large, or has another unit.", word=repr(brief(word))
        ) from None


def parse_words(text: str) -> tuple[str, ...]:
    """The words of a list: separated by commas, semicolons or lines, as people write them."""
    return tuple(word for part in re.split(r"[,;，；、\n]", text) if (word := part.strip()))


def of_label(text: str) -> tuple[Target, str]:
    """(target, quant type) of what `label` has made. Raises UsageError for anything else."""
    word, _, quant_type = text.removesuffix(SUFFIX).rpartition("-")
    if quant_type not in LADDER:
        raise UsageError("{label} is no label of a size to order: write it as 1.2GB-IQ3_XXS_FIT.", label=repr(text))
    return parse_word(word), quant_type


def short(quant: str) -> str:
    """What people see of a quant: its type, or the target of a label. `1.2GB-IQ3_XXS_FIT` -> `1.2GB`."""
    return quant.partition("-")[0]


def advice(text: str) -> str:
    """One line about the file with this label, in English."""
    target, _ = of_label(text)
    return ADVICE[target.kind].format(amount=target.shown)


def size_word(size: int) -> str:
    """A size in bytes as a word of four digits, rounded up, so that a file of that size fits: 5512345 -> `5.513MB`."""
    unit = next((unit for unit in ("GB", "MB", "kB") if size >= _UNITS[unit.upper()]), "B")
    amount = Decimal(size) / _UNITS[unit.upper()]
    digits = max(0, 3 - amount.adjusted())
    rounded = amount.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_UP)
    return f"{rounded.normalize():f}{unit}"


def _one(options: dict[str, str]) -> Target:
    found = parse(**options)
    assert found is not None
    return found


def parse_size(text: str, option: str = "the size") -> int:
    """`1.2GB`, `900 MB`, `3.5GiB` or `1234B`, in either case -> bytes. Raises UsageError."""
    return _bytes(text, option)[0]


def file_that_fits(memory: int) -> int:
    """The largest file, in bytes, that runs in so many bytes of memory (see `evaluation.memory_needed`); 0 if none."""
    size = max(0, math.floor((memory - OVERHEAD_BYTES) / (1 + OVERHEAD_SHARE)))
    while size and memory_needed(size) > memory:  # rounding
        size -= 1
    return size


def nearest(bpw: float) -> str:
    """The quant type whose files have about so many bits per weight."""
    return min(LADDER, key=lambda name: abs(math.log(LADDER[name] / bpw)))


def label(target: Target, *, weights: int, head: int) -> str:
    """`<target>-<quant type>_FIT`: what stands between the model's name and `.gguf`.

    Follows from the target and the model alone, so a file has its name before it is made.
    """
    return f"{target.text}-{nearest(8 * target.tensor_budget(weights=weights, head=head) / weights)}{SUFFIX}"


def file_name(model: str, target: Target, *, weights: int, head: int) -> str:
    """`<Model>-<target>-<label>.gguf`."""
    return f"{model}-{label(target, weights=weights, head=head)}.gguf"


def like_label(quant_type: str) -> str:
    """What stands there in the name of a mix that is no larger than the stock file of a quant type. Behind Q2_K_S, the
    tools would read the stock file's own label."""
    return ("Q2_K" if quant_type == "Q2_K_S" else quant_type) + SUFFIX


def metadata(target: Target, *, bpw: float) -> dict[str, str]:
    """What the file says about itself beyond llama.cpp's own keys: the exact bits per weight, and what was asked."""
    return {"ggufy.target": target.text, "ggufy.bits_per_weight": f"{bpw:.5f}"}


def _bpw(text: str) -> float:
    if not _NUMBER.fullmatch(text.strip()):
        raise UsageError(
            "{option} {text} is no number: write bits per weight, such as 3.275.", option=OPTIONS[BPW], text=repr(text)
        )
    amount = float(text)
    if not 0 < amount <= MOST_BPW:
        raise UsageError(
            "{option} {text} is out of range: give bits per weight from 1.6 to {most}.",
            option=OPTIONS[BPW],
            text=text,
            most=f"{MOST_BPW:g}",
        )
    return amount


def _bytes(text: str, option: str) -> tuple[int, str]:
    """Bytes, and the text as in a file's name."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].upper() if match else ""
    if unit in ("K", "M", "G", "T", "KI", "MI", "GI", "TI"):
        unit += "B"
    if match is None or unit not in _UNITS:
        raise UsageError(
            "{option} {text} is no size: write a number and a unit, such as 1.2GB or 900MiB.",
            option=option,
            text=repr(text),
        )
    amount = Decimal(match[1]) * _UNITS[unit]
    if not 1 <= amount < 2**63:
        raise UsageError(
            "{option} {text} is out of range: write a size such as 1.2GB or 900MiB.", option=option, text=text
        )
    return int(amount), _plain(float(match[1])) + unit.replace("K", "k", 1).replace("IB", "iB")


def _plain(number: float) -> str:
    """Without zeros that say nothing, and never with an exponent."""
    return f"{number:.6f}".rstrip("0").rstrip(".")

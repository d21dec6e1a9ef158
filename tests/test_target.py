"""Targets as users write them, and names of files as the tools read them: their rules are written out again here."""

from __future__ import annotations

import re

import pytest

from ggufy.core.catalog import BY_NAME
from ggufy.core.errors import UsageError
from ggufy.core.metrics import memory_needed
from ggufy.quantize.search import target
from ggufy.quantize.search.target import LADDER, Target, file_name, file_that_fits, label, nearest, parse, parse_size

pytestmark = pytest.mark.fast

WEIGHTS, HEAD = 1_600_000_000, 1_500_000  # of a 1.6B

# huggingface.js, packages/tasks/src/gguf.ts: the names of quant types, in its order, and the expression made of them.
# It is used by the Hub's page and for Ollama's `hf.co/<repo>:<label>`.
HUB_QUANTS = (
    "F32 F16 Q4_0 Q4_1 Q4_1_SOME_F16 Q4_2 Q4_3 Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M "
    "Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 Q4_0_4_4 "
    "Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0 MXFP4_MOE NVFP4 Q1_0 Q2_0 Q2_K_XL Q3_K_XL Q4_K_XL Q5_K_XL Q6_K_XL Q8_K_XL"
).split()
HUB_LABEL = re.compile(rf"(?:UD-)?(?:{'|'.join(HUB_QUANTS)})(?:_[A-Z]+)?")
HUB_MIX = re.compile(rf"(?:^|(?<=-))\d{{1,3}}(?:{'|'.join(sorted(HUB_QUANTS, key=len, reverse=True))})(?=$|[-.])")


def hub_label(name: str) -> str | None:
    """The label that the Hub shows and Ollama asks for."""
    assert len(HUB_MIX.findall(name.upper().removesuffix(".GGUF"))) < 2, "read as a mixture by percentages"
    found = HUB_LABEL.findall(name.upper())
    return found[-1] if found else None


def llama_file(names: list[str], tag: str = "") -> str | None:
    """The file that llama.cpp takes for `-hf repo:tag` (common/download.cpp)."""
    hidden = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
    models = [name for name in sorted(names) if name.endswith(".gguf") and not any(word in name for word in hidden)]
    for wanted in [tag] if tag else ["Q4_K_M", "Q8_0"]:
        for name in models:
            if re.search(wanted + "[.-]", name, re.IGNORECASE):
                return name
    return None if tag or not models else models[0]


def llama_cache_tag(name: str) -> str:
    """Under which tag llama.cpp lists a file that it has fetched."""
    match = re.search(r"[-.]([A-Z0-9_]+)$", name.removesuffix(".gguf"), re.IGNORECASE)
    return match[1].upper() if match else ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2GB", 1_200_000_000),
        ("1.2 gb", 1_200_000_000),
        ("900MB", 900_000_000),
        ("3.5GiB", 3_758_096_384),
        ("2G", 2_000_000_000),
        ("512Mi", 536_870_912),
        (" 1234567B ", 1_234_567),
        (".5GB", 500_000_000),
        ("0.29GB", 290_000_000),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "1.2", "1,2GB", "-1GB", "1.2XB", "1e9B", "nanGB", "1.2.3GB", "٣GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is no size: write a number and a unit"):
        parse_size(text, "--target-size")


@pytest.mark.parametrize("text", ["0GB", "0.1B", "99999999999TB"])
def test_sizes_out_of_range(text: str) -> None:
    with pytest.raises(UsageError, match="out of range"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "3,275", "nan", "inf", "-3", "4bpw", "1e1"])
def test_what_is_no_number_of_bits(text: str) -> None:
    with pytest.raises(UsageError, match="is no number: write bits per weight"):
        parse(bpw=text)


@pytest.mark.parametrize("text", ["0", "17", "0.0"])
def test_bits_out_of_range(text: str) -> None:
    with pytest.raises(UsageError, match="out of range"):
        parse(bpw=text)


def test_one_target_at_most() -> None:
    assert parse() is None
    with pytest.raises(UsageError, match="--target-size and --fit-memory exclude each other"):
        parse(size="1GB", memory="2GB")


def asked(**options: str) -> Target:
    made = parse(**options)
    assert made is not None
    return made


def test_budgets() -> None:
    size = asked(size="1.2GB")
    assert size.file_budget(weights=WEIGHTS, head=HEAD) == 1_200_000_000
    assert size.tensor_budget(weights=WEIGHTS, head=HEAD) == 1_200_000_000 - HEAD
    bits = asked(bpw="3.275")
    assert bits.tensor_budget(weights=WEIGHTS, head=HEAD) == int(3.275 * WEIGHTS / 8)
    assert bits.file_budget(weights=WEIGHTS, head=HEAD) == int(3.275 * WEIGHTS / 8) + HEAD
    memory = asked(memory="4GB")
    budget = memory.file_budget(weights=WEIGHTS, head=HEAD)
    assert memory_needed(budget) <= 4_000_000_000 < memory_needed(budget + 2)
    assert memory.tensor_budget(weights=WEIGHTS, head=HEAD) == budget - HEAD


@pytest.mark.parametrize("memory", [*range(249_999_990, 250_000_030), 1 << 30, 10**12 + 7])
def test_the_largest_file_that_fits(memory: int) -> None:
    size = file_that_fits(memory)
    assert size == 0 or memory_needed(size) <= memory
    assert memory_needed(size + 1) > memory


@pytest.mark.parametrize(
    ("options", "rest"),
    [({"size": "1MB"}, "1.5 MB"), ({"memory": "200MB"}, "252 MB"), ({"memory": "251MB"}, "252 MB")],
)
def test_no_room_for_weights(options: dict[str, str], rest: str) -> None:
    with pytest.raises(UsageError, match=rf"leaves no room for any weights \(the rest takes {rest}\): ask for more"):
        asked(**options).tensor_budget(weights=WEIGHTS, head=HEAD)


def test_the_ladder_is_of_quant_types_by_size() -> None:
    assert set(LADDER) <= set(BY_NAME)
    assert list(LADDER.values()) == sorted(LADDER.values())
    assert all(nearest(bpw) == name for name, bpw in LADDER.items())
    assert nearest(0.5) == "IQ1_S" and nearest(16) == "Q8_0"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bpw": "3.275"}, "3.275bpw-IQ3_XXS_FIT"),
        ({"bpw": "4.50"}, "4.5bpw-IQ4_XS_FIT"),
        ({"size": "1.2GB"}, "1.2GB-Q5_K_M_FIT"),
        ({"size": "900mib"}, "900MiB-Q4_K_S_FIT"),
        ({"size": "1200000 kb"}, "1200000kB-Q5_K_M_FIT"),
        ({"memory": "1 GB"}, "mem1GB-IQ3_XS_FIT"),
    ],
)
def test_labels(options: dict[str, str], expected: str) -> None:
    made = asked(**options)
    assert label(made, weights=WEIGHTS, head=HEAD) == expected
    assert file_name("Rwkv-1.6B", made, weights=WEIGHTS, head=HEAD) == f"Rwkv-1.6B-{expected}.gguf"


REPO = [
    "RWKV-v6-1.6B-imatrix.gguf",
    "RWKV-v6-1.6B-F16.gguf",
    *(f"RWKV-v6-1.6B-{name}.gguf" for name in BY_NAME),
]
TARGETS = [
    *(
        {"bpw": text}
        for text in ("1.7", "2.2", "2.6", "3.1", "3.275", "3.8", "4", "4.3", "4.9", "5.6", "6.5", "8", "12")
    ),
    *({"size": text} for text in ("500MB", "0.75GiB", "1.2GB", "16GB")),
    *({"memory": text} for text in ("1GB", "2.5GiB", "32GB")),
]


@pytest.mark.parametrize("options", TARGETS, ids=lambda options: "".join(options.values()))
def test_every_tool_resolves_the_name(options: dict[str, str]) -> None:
    made = asked(**options)
    name = file_name("RWKV-v6-1.6B", made, weights=WEIGHTS, head=HEAD)
    short = label(made, weights=WEIGHTS, head=HEAD).split("-")[-1]
    repo = [*REPO, name]
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    assert hub_label(name) == short not in [hub_label(other) for other in REPO]
    assert llama_cache_tag(name) == short
    assert llama_file(repo, short) == llama_file(repo, short.lower()) == llama_file(repo, made.text) == name
    assert llama_file([name]) == name
    # The plain quant types are still found as before.
    assert llama_file(repo) == "RWKV-v6-1.6B-Q4_K_M.gguf"
    for plain in BY_NAME:
        assert llama_file(repo, plain) == llama_file(REPO, plain)
        assert hub_label(f"RWKV-v6-1.6B-{plain}.gguf") == plain
    # A shard of it keeps its label.
    assert hub_label(name.replace(".gguf", "-00001-of-00002.gguf")) == short


@pytest.mark.parametrize("quant_type", BY_NAME)
def test_a_mix_like_a_stock_file_is_not_taken_for_it(quant_type: str) -> None:
    short = target.like_label(quant_type)
    name = f"RWKV-v6-1.6B-{short}.gguf"
    repo = [*REPO, name]
    assert hub_label(name) == short not in BY_NAME
    assert llama_file(repo, short) == name
    assert llama_file(repo, quant_type) == f"RWKV-v6-1.6B-{quant_type}.gguf"


def test_the_metadata_is_exact() -> None:
    assert target.metadata(asked(bpw="3.275"), bpw=3.2749871) == {
        "ggufy.target": "3.275bpw",
        "ggufy.bits_per_weight": "3.27499",
    }

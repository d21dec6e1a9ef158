"""The table of quant types against the installed tool, and how names are read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ggufy.core import catalog
from ggufy.core.errors import UsageError
from ggufy.llama import tools
from ggufy.models.convert import convert
from ggufy.quantize.recipe import quantizable
from tests import tiny

FOUNDING_LIST = (
    "Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 Q3_K_L Q3_K_M Q3_K_S Q2_K Q2_K_S IQ4_XS IQ4_NL IQ3_M "
    "IQ3_S IQ3_XS IQ3_XXS IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M IQ1_S TQ2_0 TQ1_0"
).split()


def test_the_table_is_the_founding_list() -> None:
    assert [row.name for row in catalog.QUANT_TYPES] == FOUNDING_LIST


@pytest.mark.parametrize("row", catalog.QUANT_TYPES, ids=lambda row: row.name)
def test_bits_follow_from_the_block_layout(row: catalog.QuantType) -> None:
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[row.tensor_type.upper()]]
    assert row.bits == size * 8 / block


@pytest.mark.tools
def test_numbers_are_the_tools_own(llama_bin: Path) -> None:
    done = subprocess.run([llama_bin / "llama-quantize", "--help"], capture_output=True, text=True)
    known = tools.parse_quantize_help(done.stdout + done.stderr)
    assert {row.name: row.ftype for row in catalog.QUANT_TYPES}.items() <= known.items()


@pytest.mark.tools
def test_tensor_types_and_imatrix_needs_are_the_tools_own(llama_bin: Path, tmp_path: Path) -> None:
    """Every type is dry-run on a small RWKV-7: llama-quantize says itself what it would use and what it demands."""
    checkpoint, vocab = tiny.checkpoint(tmp_path, "7", width=256)
    convert(checkpoint, tmp_path / "base.gguf", vocab=vocab)
    for row in catalog.QUANT_TYPES:
        command = tools.dry_run_command(llama_bin / "llama-quantize", base=tmp_path / "base.gguf", quant_type=row.name)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        text = done.stdout + done.stderr
        recipe = tools.parse_dry_run(text)
        assert {recipe[name] for name in quantizable(recipe)} == {row.tensor_type.upper()}, row.name
        assert ("will require an imatrix" in text) == row.needs_imatrix, row.name


def test_order_of_making() -> None:
    order = catalog.parse_types("all")
    assert len(order) == 29
    assert order[0] == "Q4_K_M"
    recommended = catalog.parse_types("recommended")
    assert 6 <= len(recommended) <= 8
    assert order[: len(recommended)] == recommended


def test_names_are_read_in_any_case_and_order() -> None:
    assert catalog.parse_types(" q6_k ,Q4_K_M,q6_K") == ("Q4_K_M", "Q6_K")


@pytest.mark.parametrize(("typed", "offered"), [("Q4_KM", "Q4_K_M"), ("IQ3XXS", "IQ3_XXS"), ("Q8", "Q8_0")])
def test_an_unknown_name_offers_near_ones(typed: str, offered: str) -> None:
    with pytest.raises(UsageError, match=offered):
        catalog.parse_types(typed)


def test_no_name_at_all() -> None:
    with pytest.raises(UsageError, match="--types"):
        catalog.parse_types(" , ")

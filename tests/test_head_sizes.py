"""The size of a quant as it is forecast is the size of the file that is laid out, whatever base and imatrix say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from ggufy.core.catalog import BY_NAME
from ggufy.formats.gguf import read_head
from ggufy.llama import ggml as kernels
from ggufy.llama.install import Llama
from ggufy.quantize.imatrix import facts_of, read_imatrix
from ggufy.quantize.layout import plan
from ggufy.quantize.recipe import core_seconds, forecast
from tests import small

SHAPES = {"token_embd": (64, 256), "output": (64, 256), "blk.0.attn_q": (32, 256), "blk.0.norm": (3,)}


def base(path: Path, *, alignment: int, extra: dict[str, int]) -> Path:
    writer = GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, value in extra.items():
        writer.add_uint32(key, value)
    writer.add_string("general.name", "é" * 50)
    for name, shape in SHAPES.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    return small._written(writer, path)


def imatrix(path: Path, *, datasets: list[str], chunks: int) -> Path:
    writer = GGUFWriter(path, "none")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", datasets)
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for end, shape in (("in_sum2", (1, 256)), ("counts", (1, 1))):
        writer.add_tensor(f"blk.0.attn_q.weight.{end}", np.ones(shape, dtype=np.float32))
    return small._written(writer, path)


@pytest.mark.tools
@pytest.mark.parametrize("alignment", [32, 64, 4096])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"split.count": 1, "split.no": 0, "split.tensors.count": 4},
        {"general.file_type": 1, "general.quantization_version": 2},
        {"quantize.imatrix.entries_count": 3, "quantize.imatrix.chunks_count": 3},
    ],
)
@pytest.mark.parametrize("datasets", [None, [""], ["text.txt"], ["é" * 100]])
@pytest.mark.parametrize("chunks", [0, 7])
def test_the_forecast_is_the_layout(
    llama: Llama,
    tmp_path: Path,
    alignment: int,
    extra: dict[str, int],
    datasets: list[str] | None,
    chunks: int,
) -> None:
    path = base(tmp_path / "b.gguf", alignment=alignment, extra=extra)
    head = read_head(path)
    recipe = {"blk.0.attn_q.weight": "Q4_K", "output.weight": "Q6_K", "token_embd.weight": "F32"}
    recipe["blk.0.norm.weight"] = "F32"
    given = None
    if datasets is not None:
        given = imatrix(tmp_path / "i.gguf", datasets=datasets, chunks=chunks)
    loaded = read_imatrix(given) if given else None
    laid = plan(path, head, recipe, ftype=15, imatrix=loaded, ggml=kernels.load(llama.bin))
    expected = forecast(head, recipe, facts_of(given, read_head(given)) if given else None)
    assert expected.size == laid.size


def test_a_table_is_made_once_for_the_types_that_share_it(tmp_path: Path) -> None:
    """Not: once for all tables that happen to cost the same."""
    head = read_head(base(tmp_path / "b.gguf", alignment=32, extra={}))

    def cost(*kinds: str) -> float:
        recipes = {kind: {"output.weight": kind} for kind in kinds}
        return sum(core_seconds(recipes, head).values())

    assert BY_NAME["IQ1_M"].bits > BY_NAME["IQ1_S"].bits
    assert cost("IQ1_S", "IQ1_M") < cost("IQ1_S") + 1
    assert cost("IQ1_M", "IQ1_S") == pytest.approx(cost("IQ1_S", "IQ1_M"))
    assert cost("IQ2_S", "IQ1_S") == pytest.approx(cost("IQ2_S") + cost("IQ1_S"))


def test_tables_of_the_same_cost_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = read_head(base(tmp_path / "b.gguf", alignment=32, extra={}))
    monkeypatch.setattr("ggufy.quantize.recipe.TABLE_COST", {"IQ2_S": 5.0, "IQ2_XS": 5.0})
    recipes = {kind: {"output.weight": kind} for kind in ("IQ2_S", "IQ2_XS")}
    assert min(core_seconds(recipes, head).values()) >= 5.0

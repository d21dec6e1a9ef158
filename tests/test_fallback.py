"""What quant types are on models whose widths they do not fit, against llama-quantize's own dry run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufy.core.catalog import BY_NAME, QUANT_TYPES
from ggufy.core.job import Making
from ggufy.formats.gguf import read_head
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.quantize.recipe import Forecast, forecast, stock_recipe
from ggufy.quantize.search.fallback import FALLBACK, Instead, fallen_back, fitting_type, instead, mostly
from ggufy.steps.making import of_recipe
from ggufy.ui import parts
from ggufy.ui.i18n import TEXTS
from tests import small
from tests.test_job import REQUEST

SHAPES = {
    "token_embd.weight": (96, 320), "output_norm.weight": (96,), "blk.0.attn_norm.weight": (96,),
    "blk.0.ffn_up.weight": (96, 1024), "blk.0.ffn_down.weight": (256, 96),
}  # fmt: skip


@pytest.mark.fast
def test_a_type_that_fits_stays() -> None:
    assert [fitting_type(kind, 512) for kind in ("Q2_K", "IQ3_XXS", "Q8_0")] == ["Q2_K", "IQ3_XXS", "Q8_0"]
    assert [fitting_type(kind, 96) for kind in ("Q2_K", "IQ3_XXS", "Q4_K", "Q8_0")] == [
        "Q4_0",
        "IQ4_NL",
        "Q5_0",
        "Q8_0",
    ]
    assert {fitting_type(kind, 172) for kind in (*FALLBACK, "Q8_0", "Q4_0")} == {"F16"}


@pytest.mark.fast
def test_most_weights_of_the_blocks_decide() -> None:
    assert fallen_back(SHAPES)["Q2_K"] == "Q4_0" and fallen_back(SHAPES)["IQ3_XXS"] == "IQ4_NL"
    assert fallen_back(SHAPES).keys() == {row.name for row in QUANT_TYPES if row.tensor_type.upper() in FALLBACK}
    assert fallen_back(SHAPES | {"blk.0.ffn_down.weight": (256, 960)}) == {}
    assert fallen_back({"token_embd.weight": (96, 320)}) == {}


@pytest.mark.tools
@pytest.mark.parametrize(("width", "ffn"), [(96, 160), (128, 256), (256, 512), (96, 172)])
def test_what_llama_quantize_makes_of_every_type(width: int, ffn: int, llama: Llama, tmp_path: Path) -> None:
    base = small.dense(tmp_path / "base.gguf", width=width, ffn=ffn)
    head = read_head(base)
    shapes = {name: tensor.shape for name, tensor in head.tensors.items()}
    run = ToolRun(environment={}, cwd=tmp_path)
    for row in QUANT_TYPES:
        made = stock_recipe(llama.tool("llama-quantize"), run, base, row.name)
        gate = "blk.0.ffn_gate.weight"  # most recipes give it the type that carries the file
        if row.name not in ("IQ3_XS", "IQ2_M", "IQ2_S", "Q3_K_S"):
            assert made[gate] == fitting_type(row.tensor_type.upper(), width), row.name
        assert mostly(head, row.name, made) == fallen_back(shapes).get(row.name, ""), row.name


@pytest.mark.tools
def test_a_type_that_another_one_makes_needless_is_told(llama: Llama, tmp_path: Path) -> None:
    base = small.dense(tmp_path / "base.gguf", width=96, ffn=160)
    head, run = read_head(base), ToolRun(environment={}, cwd=tmp_path)
    quants: dict[str, Forecast] = {}
    for name in ("Q2_K", "IQ3_XXS", "Q4_K_M", "Q8_0"):
        quants[name] = forecast(head, stock_recipe(llama.tool("llama-quantize"), run, base, name), None)
    found = instead(head, quants)
    assert quants["Q2_K"].size >= quants["IQ3_XXS"].size
    assert found["Q2_K"] == Instead(mostly="Q4_0", better="IQ3_XXS")
    assert found["IQ3_XXS"] == Instead(mostly="IQ4_NL") and "Q8_0" not in found
    made = of_recipe(quants["Q2_K"].recipe, head, REQUEST, "Q2_K", llama="")
    assert made.mostly == "Q4_0" and Making().mostly == ""
    for texts in TEXTS.values():
        table = str(parts.types(texts, "gguf", quants, {}, found))
        assert texts["mostly_worse"].format(type="Q4_0", other="IQ3_XXS") in table
        assert BY_NAME["Q2_K"].advice not in table
    assert table.count("data-small") == len(("Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS"))  # without Q2_K

"""RWKV's own recipes: real steps between their sizes, never above the twin's; and every one made, loaded and run."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from ggufy import demo
from ggufy.core.catalog import BY_NAME, QUANT_TYPES
from ggufy.core.job import STOCK_MIX
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.llama.ggml import Ggml
from ggufy.llama.tools import ToolRun
from ggufy.models.convert import write_skeleton
from ggufy.models.rwkv6 import RWKV6
from ggufy.models.rwkv7 import RWKV7
from ggufy.quantize.engine import quantize
from ggufy.quantize.imatrix import read_imatrix, with_embedding
from ggufy.quantize.recipe import Recipe, forecast, stock_recipe
from ggufy.quantize.search import roles
from ggufy.quantize.search.mixes import MIXES, mixed
from ggufy.quantize.task import QuantizeTask
from ggufy.system.control import Control
from tests import small, tiny
from tests.conftest import Ggufy

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
SHAPES = {  # version, blocks, width, width between a channel mix's two matrices
    "6-1.6B": ("6", 24, 2048, 7168),
    "7-0.1B": ("7", 12, 768, 3072),
    "7-1.5B": ("7", 24, 2048, 8192),
}
LADDERS = [
    ("Q3_K_S", "Q3_K_M", "Q3_K_L"),
    ("Q4_K_S", "Q4_K_M"),
    ("Q5_K_S", "Q5_K_M"),
    ("Q2_K_S", "Q2_K"),
    ("IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M"),
    ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"),
    ("IQ1_S", "IQ1_M"),
]


class Model:
    """A base (or only its skeleton) and both recipes for it."""

    def __init__(self, base: Path, tool: Path):
        self.base, self.tool, self.head = base, tool, read_head(base)

    @cache  # noqa: B019 - as short-lived as the test
    def stock(self, quant_type: str) -> Recipe:
        return stock_recipe(self.tool, ToolRun(environment=ENVIRONMENT, cwd=self.base.parent), self.base, quant_type)

    def recipe(self, quant_type: str) -> Recipe:
        return mixed(self.head, quant_type, stock=self.stock(quant_type))

    def size(self, recipe: Recipe) -> int:
        return forecast(self.head, recipe, None).size


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, llama_bin: Path) -> Model:
    version, layers, width, ffn = SHAPES[request.param]
    made = tiny.hyperparameters(version, layers=layers, C=width, F=ffn)
    shapes = {source: plan.source_shape for plan in made.tensors() for source in plan.sources}
    base = tmp_path_factory.mktemp("mixes") / f"{request.param}.gguf"
    write_skeleton(shapes, base, outtype="f16", vocab=None, name="skeleton")
    return Model(base, llama_bin / "llama-quantize")


def test_all_names_differ_and_none_is_larger_than_its_twin(model: Model) -> None:
    recipes = {name: model.recipe(name) for name in BY_NAME}
    assert len({tuple(sorted(recipe.items())) for recipe in recipes.values()}) == 29
    sizes = {name: model.size(recipe) for name, recipe in recipes.items()}
    for name, size in sizes.items():
        twin = model.size(model.stock(name))
        assert (0.93 if name.startswith("TQ") else MIXES[name].share * 0.998) * twin < size <= twin, name
    for ladder in LADDERS:
        for lesser, larger in zip(ladder, ladder[1:], strict=False):
            assert sizes[lesser] < 0.995 * sizes[larger], (lesser, larger)
    assert recipes == {name: model.recipe(name) for name in BY_NAME}  # nothing is left to chance


def test_a_name_keeps_its_character(model: Model) -> None:
    found = roles.roles(model.head.tensors)
    for name, row in BY_NAME.items():
        recipe = model.recipe(name)
        blocks: Counter[str] = Counter()
        for tensor, kind in recipe.items():
            if model.stock(name)[tensor] == kind == "F32" or found[tensor].low_rank:
                continue
            if found[tensor].depth:
                blocks[kind] += model.head.tensors[tensor].elements
        share = blocks[row.tensor_type.upper()] / blocks.total()
        if name.startswith("TQ"):
            assert share == 1
        elif name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"):
            assert share > 0.6, name
        assert all(kind.startswith(("Q", "F")) for kind in blocks) == name.startswith("Q")
        assert row.needs_imatrix or not {"IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"} & set(blocks)


def test_low_rank_matrices_shrink_and_vectors_stay(model: Model) -> None:
    found = roles.roles(model.head.tensors)
    for tensor, kind in model.recipe("Q4_K_M").items():
        name = tensor.split(".", 2)[-1]
        if found[tensor].low_rank:
            harmless = found[tensor].name in RWKV7.harmless and model.head.tensors[tensor].shape[0] % 32 == 0
            assert kind == ("Q8_0" if harmless else "F16")
        elif len(model.head.tensors[tensor].shape) == 1 or "lerp" in name or "first" in name:
            assert kind == "F32"
    assert all(model.recipe("Q8_0")[tensor] == "F16" for tensor, role in found.items() if role.low_rank)


def test_stock_and_other_models_are_left_alone(model: Model) -> None:
    stock = model.stock("Q4_K_M")
    assert mixed(model.head, "Q4_K_M", stock=stock, mix=STOCK_MIX) == stock
    other = GgufHead(
        metadata={"general.architecture": "llama"},
        tensors=model.head.tensors,
        metadata_end=0,
        data_start=0,
        file_size=0,
    )
    assert mixed(other, "Q4_K_M", stock=stock) == stock


def test_what_matters_in_a_small_model_matters_in_a_large_one() -> None:
    for architecture in (RWKV6, RWKV7):
        made = tiny.hyperparameters(architecture.version, layers=4, C=512, V=1024, F=2048)
        weights = {plan.name: math.prod(plan.shape) for plan in made.tensors()}
        c = roles.transferred(weights)
        table, reference = architecture.sensitivities, architecture.reference
        assert {key.split("@")[0] for key in table} == set(reference)
        for tensor, key in (("token_embd", "embedding"), ("blk.1.time_mix_key", "time_mix_key")):
            name = f"{tensor}.weight"
            assert c[name] * weights[name] == pytest.approx(table[key] * reference[key])


@pytest.mark.parametrize("version", "67")
def test_low_rank_matrices_follow_the_others_to_any_width(version: str) -> None:
    """The head's c falls by 16 from one width to the other, and so must that of a role without a measured one."""
    found = []
    for width, vocab in ((1024, 4096), (4096, 16384)):
        made = tiny.hyperparameters(version, layers=4, C=width, V=vocab, F=4 * width)
        c = roles.transferred({plan.name: math.prod(plan.shape) for plan in made.tensors()})
        found.append((c["output.weight"], c["blk.1.time_mix_w1.weight"]))
    (head, low_rank), (wide_head, wide_low_rank) = found
    assert head / wide_head == pytest.approx(16)
    assert low_rank / wide_low_rank == pytest.approx(16)


def test_all_tensors_of_a_role_of_a_transformer_matter_as_much_together_in_any_model() -> None:
    for width, blocks, experts in ((512, 2, 1), (4096, 2, 1), (512, 9, 1), (512, 2, 8)):
        matrices = [f"blk.{b}.{x}" for b in range(blocks) for x in ("attn_v", "ffn_down_exps")]
        weights = {f"{name}.weight": width * width * experts for name in ("token_embd", "output", *matrices)}
        c, table = roles.transferred(weights), roles.prior(weights)
        for stem in ("token_embd", "output", "attn_v", "ffn_down"):
            names = [name for name in weights if stem in name]
            together = math.fsum(c[name] * weights[name] for name in names)
            assert together == pytest.approx(table[names[0]]), (width, blocks, experts, stem)


@pytest.mark.parametrize("version", "67")
def test_every_recipe_is_made_loaded_and_run(version: str, tmp_path: Path, llama_bin: Path) -> None:
    base = tiny.converted(tmp_path, version, outtype="f16", width=256, ffn=256, layers=2)
    model, ggml = Model(base, llama_bin / "llama-quantize"), Ggml(llama_bin)
    imatrix = with_embedding(read_imatrix(small.imatrix(tmp_path / "imatrix.gguf", base)), model.head)
    text = tmp_path / "text.txt"
    text.write_text("it's the text of a test and nothing else\n" * 8)
    files = set()
    for row in QUANT_TYPES:
        recipe = model.recipe(row.name)
        order = QuantizeTask(
            base=base, target=tmp_path / f"{row.name}.gguf", recipe=recipe, ftype=row.ftype, imatrix=imatrix
        )
        quantize(order, Control(limit=lambda: 2), ggml=ggml)
        made = read_head(order.target)
        assert {name: tensor.type for name, tensor in made.tensors.items()} == recipe
        assert order.target.stat().st_size <= model.size(model.stock(row.name)) + 400  # what it says of the imatrix
        files.add(tuple(sorted(recipe.items())))
        command = [llama_bin / "llama-perplexity", "-m", order.target, "-f", text, "-c", "64", "-b", "64", "-t", "2"]
        done = subprocess.run([*map(str, command), "--chunks", "1"], env=ENVIRONMENT, capture_output=True, text=True)
        estimate = re.search(r"PPL = ([\d.]+)", done.stdout + done.stderr)
        assert done.returncode == 0 and estimate, (row.name, done.stderr[-2000:])
        assert math.isfinite(float(estimate[1]))
        order.target.unlink()
    assert len(files) == 29


def test_the_embedding_gets_ones_unless_it_has_data(tmp_path: Path) -> None:
    base = tiny.converted(tmp_path, width=256)
    head = read_head(base)
    imatrix = read_imatrix(small.imatrix(tmp_path / "imatrix.gguf", base))
    imatrix.weights.pop("token_embd.weight", None)
    more = with_embedding(imatrix, head)
    assert set(more.weights) - set(imatrix.weights) == {"token_embd.weight"}
    assert more.weights["token_embd.weight"].tolist() == [1.0] * 256
    assert with_embedding(more, head) is more


def test_an_embedding_that_is_the_head_gets_no_ones(tmp_path: Path) -> None:
    base = small.matrices(tmp_path / "tied.gguf", {"token_embd.weight": (64, 256), "blk.0.attn_q.weight": (256, 256)})
    imatrix = read_imatrix(small.imatrix(tmp_path / "imatrix.gguf", base))
    assert with_embedding(imatrix, read_head(base)) is imatrix


def test_a_job_makes_the_stock_files_when_asked_and_others_by_itself(
    ggufy: Ggufy, llama_bin: Path, tmp_path: Path
) -> None:
    common = ("quantize", "demo", "--types", "Q4_K_S,Q3_K_S", "--chunks", "2", "--no-evaluate")
    assert ggufy(*common, "--mix", "stock", "--out", tmp_path / "stock").code == 0
    done = ggufy(*common, "--json", "--out", tmp_path / "ours")
    assert done.code == 0, done.err
    assert not any(row.get("same_tensors_as") for row in json.loads(done.out)["files"])
    folders = [tmp_path / name / f"{demo.MODEL}-GGUF" for name in ("stock", "ours")]
    for name in ("Q4_K_S", "Q3_K_S"):
        base, imatrix, made = (f"{demo.MODEL}-{end}.gguf" for end in ("F16", "imatrix", name))
        command = [llama_bin / "llama-quantize", "--imatrix", imatrix, base, tmp_path / "oracle.gguf", name, "2"]
        subprocess.run([*map(str, command)], cwd=folders[0], env=ENVIRONMENT, check=True, capture_output=True)
        assert (folders[0] / made).read_bytes() == (tmp_path / "oracle.gguf").read_bytes()
        assert (folders[1] / made).stat().st_size < (folders[0] / made).stat().st_size

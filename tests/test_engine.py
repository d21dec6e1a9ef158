"""The engine against llama-quantize, byte by byte: 29 types of an RWKV-6, an RWKV-7, and a Llama with experts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ggufy.core.catalog import BY_NAME, QUANT_TYPES
from ggufy.core.errors import CalibrationError
from ggufy.formats.gguf import read_head
from ggufy.llama import tools
from ggufy.llama.ggml import Ggml
from ggufy.quantize.engine import quantize
from ggufy.quantize.imatrix import read_imatrix
from ggufy.quantize.layout import plan
from ggufy.quantize.recipe import Recipe, stock_recipe
from ggufy.quantize.task import Made, QuantizeTask
from ggufy.system.control import Control
from tests import small, tiny

TYPES = [row.name for row in QUANT_TYPES]
NO_IMATRIX = ("Q8_0", "Q5_1", "Q4_K_M", "Q3_K_L", "Q2_K", "IQ4_NL", "IQ3_S", "TQ1_0")
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@dataclass(frozen=True)
class Model:
    """A base, its imatrix, and what llama-quantize makes of them."""

    base: Path
    imatrix: Path
    tool: Path

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(self.tool), *map(str, arguments)]
        return subprocess.run(words, cwd=self.base.parent, env=ENVIRONMENT, capture_output=True, text=True)

    def oracle(self, quant_type: str, *, imatrix: bool = True) -> Path:
        out = self.base.parent / f"oracle-{quant_type}{'' if imatrix else '-plain'}.gguf"
        done = self.run(*(["--imatrix", self.imatrix.name] if imatrix else []), self.base, out, quant_type, 1)
        assert done.returncode == 0, done.stderr
        return out

    def recipe(self, quant_type: str, *, imatrix: bool = True) -> Recipe:
        run = tools.ToolRun(environment=ENVIRONMENT, cwd=self.base.parent)
        return stock_recipe(self.tool, run, self.base, quant_type, imatrix=self.imatrix.name if imatrix else "")

    def order(self, quant_type: str, *, imatrix: bool = True, siblings: tuple[Path, ...] = ()) -> QuantizeTask:
        return QuantizeTask(
            base=self.base,
            target=self.base.parent / f"{quant_type}.gguf",
            recipe=self.recipe(quant_type, imatrix=imatrix),
            ftype=BY_NAME[quant_type].ftype,
            imatrix=read_imatrix(self.imatrix) if imatrix else None,
            siblings=siblings,
        )


@pytest.fixture(scope="module")
def ggml(llama_bin: Path) -> Ggml:
    return Ggml(llama_bin)


@pytest.fixture(scope="module", params=["rwkv6", "rwkv7", "experts"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, llama_bin: Path) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "experts":
        base = small.mixture(folder / "base.gguf")
    else:
        outtype, layers = ("bf16", 1) if request.param == "rwkv6" else ("f16", 2)
        base = tiny.converted(folder, request.param[-1], outtype=outtype, width=256, ffn=256, layers=layers)
    return Model(base, small.imatrix(folder / "imatrix.gguf", base), llama_bin / "llama-quantize")


def make(
    order: QuantizeTask, ggml: Ggml, threads: int = 2, report: Callable[[float], None] = lambda fraction: None
) -> Made:
    return quantize(order, Control(limit=lambda: threads, report=report), ggml=ggml)


def test_every_type_is_the_same_file_as_llama_quantize_makes(model: Model, ggml: Ggml) -> None:
    with ThreadPoolExecutor(2) as pool:
        oracles = dict(zip(TYPES, pool.map(model.oracle, TYPES), strict=True))
    for quant_type, oracle in oracles.items():
        order = model.order(quant_type)
        made = make(order, ggml)
        assert order.target.read_bytes() == oracle.read_bytes(), quant_type
        assert sum(weights for weights, _ in made.speeds.values()) == sum(
            tensor.elements for name, tensor in read_head(order.base).tensors.items() if name in made.computed
        )


def test_without_an_imatrix_too(model: Model, ggml: Ggml) -> None:
    for quant_type in NO_IMATRIX:
        order = model.order(quant_type, imatrix=False)
        make(order, ggml, threads=1)
        assert order.target.read_bytes() == model.oracle(quant_type, imatrix=False).read_bytes(), quant_type


def test_an_imatrix_is_asked_for_in_the_same_cases(model: Model, ggml: Ggml, tmp_path: Path) -> None:
    refused = set()
    for quant_type in TYPES:
        dry = model.run("--dry-run", model.base, quant_type)
        if "will require an imatrix" not in dry.stderr:
            continue
        refused.add(quant_type)
        assert model.run(model.base, tmp_path / "oracle.gguf", quant_type).returncode == 1
        order = model.order(quant_type, imatrix=False)
        order.target.unlink(missing_ok=True)
        with pytest.raises(CalibrationError, match="needs an imatrix to become"):
            make(order, ggml)
        assert not list(model.base.parent.glob(f"{quant_type}.gguf*"))
    assert refused
    assert refused == {row.name for row in QUANT_TYPES if row.needs_imatrix} or "experts" in str(model.base)
    for quant_type in set(TYPES) - refused:
        plan(
            model.base,
            read_head(model.base),
            model.recipe(quant_type, imatrix=False),
            ftype=BY_NAME[quant_type].ftype,
            imatrix=None,
            ggml=ggml,
        )

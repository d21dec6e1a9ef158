"""What each step of compensated rounding gives, on the demo: python -m bench.compensation [SIZE]

Two tables of docs/quality.md. The first is of output errors: how much of the kernel's own codes' error is left, where
the inputs are those of the evaluation text, which nobody has calibrated with. It is the geometric mean over the
matrices of two blocks, and shows in seconds what a KL divergence shows in minutes. The second is of the KL divergence
of files in which only the matrices of one role are quantized.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.measure import run
from ggufy.core.catalog import BY_NAME
from ggufy.formats.covariance import WEIGHTING, CovarianceFacts, CovarianceFile
from ggufy.formats.gguf import UNQUANTIZED, read_head, read_tensor
from ggufy.llama.covariances import CovarianceTask, collect_covariances
from ggufy.llama.ggml import Ggml
from ggufy.llama.install import Llama, ensure
from ggufy.llama.tools import ToolRun
from ggufy.quantize import engine
from ggufy.quantize.compensated import TYPES, compensate, decoded, factors, kernel_of, output_error
from ggufy.quantize.imatrix import read_imatrix, with_embedding
from ggufy.quantize.recipe import Recipe, stock_recipe
from ggufy.quantize.search.mixes import mixed
from ggufy.quantize.search.roles import roles
from ggufy.quantize.task import QuantizeTask
from ggufy.steps.evaluate import EvaluationConfig, evaluate
from ggufy.system import resources
from ggufy.system.control import Control
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.texts.calibration import ensure_texts

BLOCKS = (1, 4)  # of the matrices of the first table
DAMPING = 0.05
DAMPINGS = (0.01, 0.2, 0.5)
SWEEPS = (1, 2, 4)
CHUNKS = 16  # of the evaluation text, for the second table
_SUMS = 4 << 30  # bytes


@dataclass(frozen=True, kw_only=True)
class Compensation:
    """One model."""

    base: Path
    imatrix: Path
    folder: Path
    llama: Llama

    def __post_init__(self) -> None:
        torch.set_num_threads(1)

    def collect(self, text: Path, name: str, weighting: str) -> CovarianceFile:
        """Covariances of all of a text."""
        facts = CovarianceFacts(
            base_sha256=sha256(self.base), text_sha256=sha256(text), text=text.name, chunks=0,
            commit=self.llama.commit, weighting=weighting,
        )  # fmt: skip
        out = self.folder / f"{name}.gguf"
        task = CovarianceTask(
            llama=self.llama.bin, base=self.base, text=text, out=out, imatrix=self.folder / f"{name}-imatrix.gguf",
            work=self.folder / f"{name}-work", wanted=tuple(self._matrices()), facts=facts, memory=_SUMS, threads=2,
        )  # fmt: skip
        collect_covariances(task, ToolRun(environment=self.environment(), cwd=self.folder), report=lambda done: None)
        return CovarianceFile.open(out)

    def environment(self) -> dict[str, str]:
        return resources.child_environment(threads=2, home=Path.home())

    def recipe(self, size: str) -> Recipe:
        """ggufy's own."""
        command = ToolRun(environment=self.environment(), cwd=self.folder)
        stock = stock_recipe(self.llama.tool("llama-quantize"), command, self.base, size, imatrix=str(self.imatrix))
        return mixed(read_head(self.base), size, stock=stock)

    def _matrices(self) -> list[str]:
        return [name for name, tensor in read_head(self.base).tensors.items() if len(tensor.shape) == 2]


def error_table(ours: Compensation, size: str, calibration: Path, test: Path) -> list[str]:
    """Lines: what is left of the plain codes' output error."""
    alike, weighted = (ours.collect(calibration, name, how) for name, how in (("alike", ""), ("weighted", WEIGHTING)))
    judge = ours.collect(test, "judge", "")
    head, importance, ggml = read_head(ours.base), read_imatrix(ours.imatrix).weights, Ggml(ours.llama.bin)
    recipe = ours.recipe(size)
    found = roles(head.tensors)
    names = [
        name
        for name in alike.names()
        if name.startswith(tuple(f"blk.{n}." for n in BLOCKS)) and recipe[name] in TYPES and not found[name].low_rank
    ]

    def left(covariances: CovarianceFile, damping: float, sweeps: int) -> float:
        shares = []
        for name in names:
            columns, rows = head.tensors[name].shape
            values = read_tensor(ours.base, head, name).astype(np.float32).reshape(rows, columns)
            known, seen = covariances.get(name), judge.get(name)
            assert known is not None and seen is not None
            kind, kernel = recipe[name], kernel_of(ggml, recipe[name], importance[name])
            made = compensate(
                values, kind, kernel, factors(known.calibration, damping, lambda: None), lambda: None, sweeps=sweeps
            )
            errors = [
                output_error(values - decoded(raw, kind).reshape(values.shape), seen.calibration)
                for raw in (made, kernel(values, slice(None)))
                if raw is not None
            ]
            shares.append(errors[0] / errors[1])
        return math.exp(sum(map(math.log, shares)) / len(shares))

    rows: list[tuple[str, CovarianceFile, float, int]] = [("all chunks alike, no sweep", alike, DAMPING, 0)]
    rows += [(f"the same, damping {damping}", alike, damping, 0) for damping in DAMPINGS]
    rows += [("chunks by 1/sqrt(perplexity), no sweep", weighted, DAMPING, 0)]
    rows += [(f"the same, and {count} sweeps", weighted, DAMPING, count) for count in SWEEPS]
    rows += [("the evaluation text's own inputs, no sweep", judge, DAMPING, 0)]
    return [f"| {size}: {label} | {left(sums, damping, sweeps):.3f} |" for label, sums, damping, sweeps in rows]


def role_table(ours: Compensation, size: str, covariances: CovarianceFile, test: Path) -> list[str]:
    """Lines: KL divergences of plain and compensated files, of each role alone and of all."""
    recipe, head = ours.recipe(size), read_head(ours.base)
    groups: dict[str, dict[str, str]] = {}
    for name, role in roles(head.tensors).items():
        kind = recipe.get(name, head.tensors[name].type)
        if kind not in UNQUANTIZED:
            groups.setdefault("low-rank" if role.low_rank else role.name, {})[name] = kind
    measure = _measure(ours, covariances, test)
    lines = []
    for label, part in {"all": recipe, **groups}.items():
        plain, made = measure(part, False), measure(part, True)
        lines.append(f"| {size}: {label} | {plain:.5f} | {made:.5f} | {made / plain:.3f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def _measure(
    ours: Compensation, covariances: CovarianceFile, test: Path
) -> Callable[[Mapping[str, str], bool], float]:
    imatrix, ggml = with_embedding(read_imatrix(ours.imatrix), read_head(ours.base)), Ggml(ours.llama.bin)
    config = EvaluationConfig(
        text=test, folder=ours.folder / "test", llama=ours.llama, environment=ours.environment(), threads=2,
        chunks=CHUNKS, speed=False, keep_logits=True,
    )  # fmt: skip
    config.folder.mkdir(exist_ok=True)

    def measure(recipe: Mapping[str, str], compensated: bool) -> float:
        target = ours.folder / "quant.gguf"
        order = QuantizeTask(
            base=ours.base, target=target, recipe=dict(recipe), ftype=0, imatrix=imatrix,
            covariances=covariances if compensated else None,
        )  # fmt: skip
        engine.quantize(order, Control(limit=lambda: 2), ggml=ggml)
        [found] = evaluate(ours.base, [target], config)
        target.unlink()
        return found.quality.kld

    return measure


def bench(folder: Path, llama: Llama, settings: Settings, sizes: Sequence[str]) -> list[str]:
    """Both tables, for the demo."""
    texts, out = ensure_texts(settings.cache), folder / "demo"
    run(sys.executable, "-m", "ggufy", "quantize", "demo", "--types", "Q8_0", "--no-evaluate", "--out", out,
        env=dict(os.environ))  # fmt: skip
    made = next(out.glob("*-GGUF"))
    ours = Compensation(
        base=next(made.glob("*-F16.gguf")), imatrix=next(made.glob("*-imatrix.gguf")), folder=folder, llama=llama
    )
    lines = [line for size in sizes for line in error_table(ours, size, texts.calibration, texts.evaluation)]
    print("\n".join(lines), file=sys.stderr, flush=True)
    weighted = CovarianceFile.open(folder / "weighted.gguf")
    return [*lines, "", *(line for size in sizes for line in role_table(ours, size, weighted, texts.evaluation))]


def main() -> None:
    settings = Settings.from_env()
    llama = ensure(
        settings.cache, override=settings.llama_dir, threads=2, pip_environment=settings.pip_environment, types=BY_NAME
    )
    with tempfile.TemporaryDirectory(prefix="ggufy-bench-") as name:
        print("\n".join(bench(Path(name), llama, settings, sys.argv[1:] or ["Q3_K_M", "Q4_K_M"])))


if __name__ == "__main__":
    main()

"""What activation-aware scales gain on two real transformers, at equal bytes.

    python -m bench.real                                              both models of real_base.py, among other things
    python -m bench.awq BASE.gguf IMATRIX.gguf COVARIANCES [TYPE…]    another model, with what `ggufy gram` left

The bases that real_base.py makes by scaling channels have what AWQ removes, so here they are made by noise. Stock
files and fast mixes of the same size are measured with and without scales, and compensated, over text that nothing
else reads.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.mixes import FACTS
from bench.real_base import MODELS, fetched, make_base
from ggufy.core.catalog import BY_NAME
from ggufy.formats.covariance import CovarianceFile
from ggufy.llama.ggml import load
from ggufy.llama.install import Llama, ensure
from ggufy.quantize import engine
from ggufy.quantize.awq.scales import find_scales, scaling_of
from ggufy.quantize.factors import scaled_imatrix
from ggufy.quantize.search.target import FAST
from ggufy.quantize.task import QuantizeTask
from ggufy.steps.evaluate import EvaluationConfig, evaluate
from ggufy.steps.recipe_search import RecipeSearch
from ggufy.system import resources
from ggufy.system.control import Control
from ggufy.system.files import partial
from ggufy.system.settings import Settings
from ggufy.texts.calibration import PinnedTexts, ensure_texts

TYPES = ("Q4_K_M", "Q4_0", "Q2_K")
CHUNKS = 32


def noisy_base(name: str, folder: Path, cache: Path) -> Path:
    """An F16 base of one of `MODELS`, taken off the grid of its old types by noise."""
    target = folder / f"{name}-noisy-F16.gguf"
    if not target.exists():
        with partial(target) as part:
            make_base(fetched(MODELS[name], cache / "bench"), part, noisy=True)
    return target


def stock_order(search: RecipeSearch, kind: str, folder: Path) -> QuantizeTask:
    """llama-quantize's own file, for the engine."""
    return QuantizeTask(
        base=search.base,
        target=folder / f"{kind}-stock.gguf",
        recipe=search.stock(kind),
        ftype=BY_NAME[kind].ftype,
        imatrix=search.stock_imatrix,
    )


def bench_model(
    base: Path, imatrix: Path, covariances: Path, folder: Path, config: EvaluationConfig, types: tuple[str, ...]
) -> list[str]:
    """Lines for the report, stock files first."""
    search = RecipeSearch(base=base, imatrix_path=imatrix, config=config)
    head = ["KLD", "with AWQ's scales", "compensated instead", "groups that have scales"]
    lines = [f"| {base.stem} | {' | '.join(head)} |", "|---|---:|---:|---:|---|"]
    with CovarianceFile.open(covariances) as file:
        for kind in types:
            order = stock_order(search, kind, folder)
            lines.append(_row(f"{kind}, stock", order, search, file, config))
        for kind in types:
            mix = search.mix(search.stock_size(kind) - search.head_size(FACTS), FAST)
            order = search.order(mix, folder / f"{kind}-mix.gguf", {}, kind)
            lines.append(_row(f"{kind}, fast mix of that size", order, search, file, config))
    search.close()
    for left in config.folder.glob("*.logits"):
        left.unlink()
    return lines


def _row(title: str, order: QuantizeTask, search: RecipeSearch, file: CovarianceFile, config: EvaluationConfig) -> str:
    line = f"| {' | '.join([title, *_figures(order, search, file, config)])} |"
    print(line, file=sys.stderr, flush=True)
    return line


def _figures(order: QuantizeTask, search: RecipeSearch, file: CovarianceFile, config: EvaluationConfig) -> list[str]:
    control = Control(limit=lambda: config.threads)
    found = find_scales(order, ggml=search.ggml, control=control)
    scaling = scaling_of(found)
    assert order.imatrix is not None
    scaled = replace(
        order,
        target=order.target.with_name(f"{order.target.stem}-awq.gguf"),
        scaling=scaling,
        imatrix=scaled_imatrix(order.imatrix, scaling),
    )
    target = order.target.with_name(f"{order.target.stem}-compensated.gguf")
    klds = []
    for one in (order, scaled, replace(order, target=target, covariances=file)):
        engine.quantize(one, control, ggml=search.ggml)
        [figures] = evaluate(order.base, [one.target], config)
        klds.append(figures.quality.kld)
        one.target.unlink()
    kept = sum(one.kept for one in found)
    shares = [f"{kld:.4f} (× {kld / klds[0]:.3f})" for kld in klds[1:]]
    return [f"{klds[0]:.4f}", *shares, f"{kept} of {len(found)}"]


def main() -> None:
    settings = Settings.from_env()
    threads = max(1, math.floor(resources.allowed_cpus()))
    pip = settings.pip_environment
    llama = ensure(settings.cache, override=settings.llama_dir, threads=threads, pip_environment=pip, types=BY_NAME)
    load(llama.bin)
    texts = ensure_texts(settings.cache)
    base, imatrix, covariances, *types = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="ggufy-bench-") as name:
        config = _config(Path(name), texts, llama, threads, settings)
        given = (Path(base), Path(imatrix), Path(covariances))
        print("\n".join(bench_model(*given, Path(name), config, tuple(types) or TYPES)), flush=True)


def _config(folder: Path, texts: PinnedTexts, llama: Llama, threads: int, settings: Settings) -> EvaluationConfig:
    return EvaluationConfig(
        text=texts.evaluation,
        folder=folder,
        llama=llama,
        environment=resources.child_environment(threads=threads, home=settings.home),
        threads=threads,
        chunks=CHUNKS,
        speed=False,
        keep_logits=True,
    )


if __name__ == "__main__":
    main()

"""What activation-aware scales gain on two real transformers, at equal bytes.

    python -m bench.awq                                    both models of real_base.py, their imatrix made now
    python -m bench.awq BASE.gguf IMATRIX.gguf [TYPE…]     another model

The bases that real_base.py makes by scaling channels have what AWQ removes, so here they are made by noise. Stock
files and fast mixes of the same size are measured with and without scales, over text that nothing else reads.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.real_base import MODELS, fetched, make_base
from ggufy.core.catalog import BY_NAME
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
from ggufy.system.settings import Settings
from ggufy.texts.calibration import PinnedTexts, ensure_texts

TYPES = ("Q4_K_M", "Q4_0", "Q2_K")
CHUNKS = 32
_FACTS = {"ggufy.target": "0.0000MB", "ggufy.bits_per_weight": "00.00000"}


def noisy_base(name: str, folder: Path, cache: Path) -> Path:
    """An F16 base of one of `MODELS`, taken off the grid of its old types by noise."""
    target = folder / f"{name}-F16.gguf"
    make_base(fetched(MODELS[name], cache / "bench"), target, noisy=True)
    return target


def imatrix_of(base: Path, text: Path, llama: Llama, threads: int) -> Path:
    """Made as a job does, over 40 chunks."""
    target = base.with_name(f"{base.stem}-imatrix.gguf")
    command = [llama.tool("llama-imatrix"), "-m", base, "-f", text, "-o", target, "-c", 512, "-b", 512]
    subprocess.run([*map(str, command), "-t", str(threads), "--chunks", "40"], check=True, capture_output=True)
    return target


def bench_model(
    base: Path, imatrix: Path, folder: Path, config: EvaluationConfig, types: tuple[str, ...]
) -> list[str]:
    """Lines for the report, stock files first."""
    search = RecipeSearch(base=base, imatrix_path=imatrix, config=config)
    lines = [f"| {base.stem} | without | with AWQ | groups that have scales |", "|---|---|---|---|"]
    for kind in types:
        order = QuantizeTask(
            base=base,
            target=folder / f"{kind}-stock.gguf",
            recipe=search.stock(kind),
            ftype=BY_NAME[kind].ftype,
            imatrix=search.stock_imatrix,
        )
        lines.append(_row(f"{kind}, stock", order, search, config))
    for kind in types:
        mix = search.mix(search.stock_size(kind) - search.head_size(_FACTS), FAST)
        order = search.order(mix, folder / f"{kind}-mix.gguf", {}, kind)
        lines.append(_row(f"{kind}, fast mix of that size", order, search, config))
    search.close()
    return lines


def _row(title: str, order: QuantizeTask, search: RecipeSearch, config: EvaluationConfig) -> str:
    line = f"| {' | '.join([title, *_with_and_without(order, search, config)])} |"
    print(line, file=sys.stderr, flush=True)
    return line


def _with_and_without(order: QuantizeTask, search: RecipeSearch, config: EvaluationConfig) -> list[str]:
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
    klds = []
    for one in (order, scaled):
        engine.quantize(one, control, ggml=search.ggml)
        [figures] = evaluate(order.base, [one.target], config)
        klds.append(figures.quality.kld)
        one.target.unlink()
    kept = sum(one.kept for one in found)
    return [f"{klds[0]:.4f}", f"{klds[1]:.4f} (x {klds[1] / klds[0]:.3f})", f"{kept} of {len(found)}"]


def main() -> None:
    settings = Settings.from_env()
    threads = max(1, math.floor(resources.allowed_cpus()))
    pip = settings.pip_environment
    llama = ensure(settings.cache, override=settings.llama_dir, threads=threads, pip_environment=pip, types=BY_NAME)
    load(llama.bin)
    texts = ensure_texts(settings.cache)
    with tempfile.TemporaryDirectory(prefix="ggufy-bench-") as name:
        folder = Path(name)
        if sys.argv[1:]:
            base, imatrix, *types = sys.argv[1:]
            given = {Path(base): Path(imatrix)}
        else:
            types = []
            bases = [noisy_base(model, folder, settings.cache) for model in MODELS]
            given = {base: imatrix_of(base, texts.calibration, llama, threads) for base in bases}
        for place, imatrix in given.items():
            work = folder / place.stem
            config = _config(work, texts, llama, threads, settings)
            print("\n".join(bench_model(place, imatrix, work, config, tuple(types) or TYPES)), flush=True)


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

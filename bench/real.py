"""How much better than stock files mixes, compensated rounding and AWQ make two real transformers, at equal bytes.

    python -m bench.real [NAME ...] [--chunks N] [--probe-chunks N]     smollm2, gemma3; both unless one is named

Prints tables in Markdown for each model, and whether no size is worse than llama-quantize's, whether more bytes are
never worse, and whether the bars are met. All files have the same imatrix. Recipes are found on the probe text as
`ggufy mix` finds them, and files are measured on the evaluation text; neither shares a paragraph with the other, or
with the calibration text. What is fetched, made and measured stays in the cache, so a run that was stopped goes on.

AWQ's scales are judged on another base of the same model (see awq.py), beside compensated rounding on that base.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import awq
from bench.real_base import MODELS, base_of
from ggufy.core.catalog import BY_NAME
from ggufy.core.metrics import PROBE_CHUNKS, Quality
from ggufy.formats.covariance import CovarianceFile
from ggufy.llama import tools
from ggufy.llama.install import Llama, ensure
from ggufy.quantize import engine
from ggufy.quantize.search.target import FAST, STANDARD
from ggufy.quantize.task import QuantizeTask, planned_facts
from ggufy.steps.covariance import make_covariances
from ggufy.steps.evaluate import EvaluationConfig, evaluate
from ggufy.steps.recipe_search import RecipeSearch
from ggufy.system import resources
from ggufy.system.control import Control
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.texts.calibration import ensure_texts
from ggufy.texts.overlap import check_disjoint

BARS = {"Q4_K_M": 0.65, "IQ4_XS": 0.58, "IQ3_XXS": 0.42, "Q2_K": 0.26}  # of the stock file's KLD, in standard mode
TEST_CHUNKS, IMATRIX_CHUNKS = 64, 40
COMPENSATED = {"stock": 0.85, STANDARD: 0.62}  # bars: of the KLD of the same recipe with the kernels' own codes
_STOCK = "stock"
_MODES = (_STOCK, FAST, STANDARD)
_NOISE = 0.01  # of a KLD: what the figures of one file over 64 chunks are known to
_DISK = 16_000_000_000  # bytes for the base's predictions: 64 chunks of 262,144 tokens are 8.6 GB


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured at the bytes of one stock file."""

    size: str  # quant type
    bytes: Mapping[str, int]  # of the files: stock, fast, standard, and those of `COMPENSATED` compensated
    quality: Mapping[str, Quality]

    def share(self, mode: str, of: str = _STOCK) -> float:
        """The KLD of a file as a part of another's."""
        return self.quality[mode].kld / self.quality[of].kld


@dataclass(frozen=True, kw_only=True)
class RealBench:
    """One model."""

    base: Path
    imatrix: Path
    covariances: CovarianceFile
    search: RecipeSearch
    test: EvaluationConfig

    def rows(self) -> list[Row]:
        """From the smallest stock file to the largest."""
        sizes = sorted(BARS, key=self.search.stock_size)
        return [self._row(size) for size in sizes]

    def _row(self, size: str) -> Row:
        made = {_STOCK: self.stock(size)}
        limit = made[_STOCK].stat().st_size
        for mode in (FAST, STANDARD):
            order = self.mixed(size, limit, mode)
            made[mode] = self._made(order)
            if mode in COMPENSATED:
                made[compensated(mode)] = self._compensated(order)
        made[compensated(_STOCK)] = self._compensated(awq.stock_order(self.search, size, self.test.folder))
        found = evaluate(self.base, list(made.values()), self.test)
        row = Row(
            size=size,
            bytes={mode: path.stat().st_size for mode, path in made.items()},
            quality={mode: one.quality for mode, one in zip(made, found, strict=True)},
        )
        for path in made.values():
            path.unlink()
        print(line(row), file=sys.stderr, flush=True)
        return row

    def mixed(self, size: str, limit: int, mode: str) -> QuantizeTask:
        """The best file of at most `limit` bytes, also if it is compensated, that a mode finds as `ggufy mix` does."""
        rival = "" if mode == FAST else self.search.rival(limit)
        mix = self.search.mix(limit - self.search.head_size(planned_facts(compensated=True)), mode, against=rival)
        return self.search.order(mix, self.test.folder / f"{size}-{mode}.gguf", {}, size)

    def _compensated(self, order: QuantizeTask) -> Path:
        target = order.target.with_name(f"{order.target.stem}-compensated.gguf")
        return self._made(replace(order, target=target, covariances=self.covariances))

    def _made(self, order: QuantizeTask) -> Path:
        engine.quantize(order, Control(limit=lambda: self.test.threads), ggml=self.search.ggml)
        return order.target

    def stock(self, size: str) -> Path:
        """As llama-quantize itself makes it."""
        target = self.test.folder / f"{size}-stock.gguf"
        self.test.folder.mkdir(parents=True, exist_ok=True)
        tool = self.test.llama.tool("llama-quantize")
        words = [tool, "--imatrix", self.imatrix, self.base, target, size, self.test.threads]
        subprocess.run(list(map(str, words)), env=dict(self.test.environment), check=True, capture_output=True)
        return target


def bench(name: str, settings: Settings, llama: Llama, *, chunks: int, probe_chunks: int) -> list[str]:
    """Lines for the report, about one of `MODELS`."""
    texts = ensure_texts(settings.cache)
    for text, other in ((texts.evaluation, texts.probe), (texts.evaluation, texts.calibration)):
        check_disjoint(text, other)
    check_disjoint(texts.probe, texts.calibration)
    base = base_of(name, settings.cache)
    folder = base.parent / name
    threads = max(1, math.floor(resources.allowed_cpus()))
    digests = {base.absolute(): sha256(base)}

    def config(text: Path, place: str, count: int) -> EvaluationConfig:
        return EvaluationConfig(
            text=text,
            folder=folder / place,
            llama=llama,
            environment=resources.child_environment(threads=threads, home=settings.home),
            threads=threads,
            chunks=count,
            budget=_DISK,
            speed=False,
            digests=digests,
            keep_logits=True,
            all_chunks=True,
        )

    imatrix, covariances = calibrated(base, config(texts.calibration, "imatrix", IMATRIX_CHUNKS))
    search = RecipeSearch(base=base, imatrix_path=imatrix, config=config(texts.probe, "probe", probe_chunks))
    test = config(texts.evaluation, "test", chunks)
    with CovarianceFile.open(covariances) as file:
        rows = RealBench(base=base, imatrix=imatrix, covariances=file, search=search, test=test).rows()
    search.close()
    for left in test.folder.glob("*.logits"):
        left.unlink()
    ppl = rows[0].quality[_STOCK].base_ppl
    title = f"**{MODELS[name].name}**, F16 base of {base.stat().st_size:,} bytes, perplexity {ppl:.2f}"
    said = f"{title} ({chunks} chunks of the evaluation text, probes of {probe_chunks})"
    noisy = awq.noisy_base(name, folder, settings.cache)
    kept = calibrated(noisy, config(texts.calibration, "imatrix", IMATRIX_CHUNKS))
    lines = awq.bench_model(noisy, *kept, folder / "awq", config(texts.evaluation, "awq", chunks), awq.TYPES)
    return [said, "", *table(rows), "", *lines]


def calibrated(base: Path, config: EvaluationConfig) -> tuple[Path, Path]:
    """(imatrix, covariances) of a base, made as a job makes them, unless they are there."""
    stem = base.stem.removesuffix("-F16")
    imatrix, covariances = (base.with_name(f"{stem}-{kind}.gguf") for kind in ("imatrix", "covariances"))
    if not (imatrix.exists() and covariances.exists()):
        config.folder.mkdir(parents=True, exist_ok=True)
        make_covariances(
            base,
            config.text,
            covariances,
            imatrix,
            work=config.folder,
            chunks=config.chunks,
            llama=config.llama,
            run=tools.ToolRun(environment=config.environment, cwd=config.folder),
            threads=config.threads,
            report=lambda fraction: None,
        )
    return imatrix, covariances


def compensated(mode: str) -> str:
    """How the compensated file of a recipe is called."""
    return f"{mode}, compensated"


def table(rows: Sequence[Row]) -> list[str]:
    """The rows in Markdown, and the verdicts. Shares of compensated files are of the same recipe's plain one."""
    mixes = ["at the bytes of", "bytes", "stock KLD", "fast", "standard", "bar"]
    head = [*mixes, *map(compensated, COMPENSATED), "of stock", "PPL ratio: stock, fast, standard, both compensated"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 2) + "|---|"]
    return [*lines, *map(line, rows), "", *verdicts(rows)]


def line(row: Row) -> str:
    """One row in Markdown."""
    mixes = [f"{row.quality[mode].kld:.4f} (× {row.share(mode):.3f})" for mode in (FAST, STANDARD)]
    codes = [
        f"{row.quality[compensated(mode)].kld:.4f} (× {row.share(compensated(mode), mode):.3f})"
        for mode in COMPENSATED
    ]
    ratios = ", ".join(f"{row.quality[mode].ppl_ratio:.3f}" for mode in (*_MODES, *map(compensated, COMPENSATED)))
    cells = [row.size, f"{row.bytes[_STOCK]:,}", f"{row.quality[_STOCK].kld:.4f}", *mixes, f"× {BARS[row.size]}"]
    return f"| {' | '.join([*cells, *codes, f'× {row.share(compensated(STANDARD)):.3f}', ratios])} |"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What was claimed, and whether it is so; `rows` from the smallest size to the largest."""
    modes = (FAST, STANDARD)
    larger = [f"{row.size} {mode}" for row in rows for mode in modes if row.bytes[mode] > row.bytes[_STOCK]]
    worse = [f"{row.size} {mode}" for row in rows for mode in modes if row.share(mode) > 1]
    falls = [
        f"{after.size} {mode}"
        for mode in modes
        for before, after in zip(rows, rows[1:], strict=False)
        if after.quality[mode].kld > before.quality[mode].kld * (1 + _NOISE)
    ]
    missed = [f"{row.size} × {row.share(STANDARD):.3f}" for row in rows if row.share(STANDARD) > BARS[row.size]]
    uncompensated = [
        f"{row.size} {mode} × {row.share(compensated(mode), mode):.3f}"
        for row in rows
        for mode, bar in COMPENSATED.items()
        if row.share(compensated(mode), mode) > bar
    ]
    claims = {
        "no file above the stock file's bytes": larger,
        "no size worse than stock": worse,
        "more bytes never worse": falls,
        "bars of standard": missed,
        "bars of compensated rounding": uncompensated,
    }
    return [f"- {claim}: {'MISSED: ' + ', '.join(found) if found else 'reached'}" for claim, found in claims.items()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.real", description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--chunks", type=int, default=TEST_CHUNKS, help="of 512 tokens to measure files on (64)")
    parser.add_argument("--probe-chunks", type=int, default=PROBE_CHUNKS, help="to find recipes on (16)")
    args = parser.parse_args()
    settings = Settings.from_env()
    threads = max(1, math.floor(resources.allowed_cpus()))
    llama = ensure(
        settings.cache,
        override=settings.llama_dir,
        threads=threads,
        pip_environment=settings.pip_environment,
        types=BY_NAME,
    )
    for name in args.names:
        print("\n".join(bench(name, settings, llama, chunks=args.chunks, probe_chunks=args.probe_chunks)), flush=True)
        print()


if __name__ == "__main__":
    main()

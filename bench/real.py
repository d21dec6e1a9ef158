"""How much better than stock files mixes of two real transformers are, at the bytes of the stock file.

    python -m bench.real [NAME ...] [--chunks N] [--probe-chunks N]     smollm2, gemma3; both unless one is named

Prints a table in Markdown for each model, and then whether no size is worse than llama-quantize's, whether more bytes
are never worse, and whether the bars are met. All files have the same imatrix. Recipes are found on the probe text as
`ggufy mix` finds them, and files are measured on the evaluation text; neither shares a paragraph with the other, or
with the calibration text. What is fetched, made and measured stays in the cache, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.real_base import MODELS, base_of
from ggufy.core.catalog import BY_NAME
from ggufy.core.metrics import PROBE_CHUNKS, Quality
from ggufy.llama import tools
from ggufy.llama.install import Llama, ensure
from ggufy.quantize.search.target import FAST, STANDARD
from ggufy.steps.evaluate import EvaluationConfig, evaluate
from ggufy.steps.recipe_search import RecipeSearch
from ggufy.system import resources
from ggufy.system.files import partial, sha256
from ggufy.system.settings import Settings
from ggufy.texts.calibration import PinnedTexts, ensure_texts
from ggufy.texts.overlap import check_disjoint

BARS = {"Q4_K_M": 0.65, "IQ4_XS": 0.58, "IQ3_XXS": 0.42, "Q2_K": 0.26}  # of the stock file's KLD, in standard mode
TEST_CHUNKS, IMATRIX_CHUNKS = 64, 40
_STOCK = "stock"
_NOISE = 0.01  # of a KLD: what the figures of one file over 64 chunks are known to
_DISK = 16_000_000_000  # bytes for the base's predictions: 64 chunks of 262,144 tokens are 8.6 GB


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured at the bytes of one stock file."""

    size: str  # quant type
    bytes: Mapping[str, int]  # of the files: stock, fast, standard
    quality: Mapping[str, Quality]

    def share(self, mode: str) -> float:
        """The KLD of a mode as a part of the stock file's."""
        return self.quality[mode].kld / self.quality[_STOCK].kld


@dataclass(frozen=True, kw_only=True)
class RealBench:
    """One model."""

    base: Path
    imatrix: Path
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
            made[mode] = self.mixed(size, limit, mode)
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

    def mixed(self, size: str, limit: int, mode: str) -> Path:
        """The best file of at most `limit` bytes that a mode finds, as `ggufy mix` does."""
        target = self.test.folder / f"{size}-{mode}.gguf"
        rival = "" if mode == FAST else self.search.rival(limit)
        mix = self.search.mix(limit - self.search.head_size({}), mode, against=rival)
        self.search.make(mix, target, {}, size)
        return target

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

    imatrix = _imatrix(base, texts, config(texts.calibration, "imatrix", IMATRIX_CHUNKS))
    search = RecipeSearch(base=base, imatrix_path=imatrix, config=config(texts.probe, "probe", probe_chunks))
    ours = RealBench(base=base, imatrix=imatrix, search=search, test=config(texts.evaluation, "test", chunks))
    rows = ours.rows()
    search.close()
    for left in ours.test.folder.glob("*.logits"):
        left.unlink()
    ppl = rows[0].quality[_STOCK].base_ppl
    title = f"**{MODELS[name].name}**, F16 base of {base.stat().st_size:,} bytes, perplexity {ppl:.2f}"
    return [f"{title} ({chunks} chunks of the evaluation text, probes of {probe_chunks})", "", *table(rows)]


def _imatrix(base: Path, texts: PinnedTexts, config: EvaluationConfig) -> Path:
    """Made as a job makes it, unless it is there."""
    target = base.with_name(f"{base.stem.removesuffix('-F16')}-imatrix.gguf")
    if not target.exists():
        with partial(target) as part:
            command = tools.imatrix_command(
                config.llama.tool("llama-imatrix"),
                model=base.absolute(),
                text=texts.calibration.name,
                out=part.absolute(),
                threads=config.threads,
                chunks=config.chunks,
            )
            tools.run_tool(command, tools.ToolRun(environment=config.environment, cwd=texts.calibration.parent))
    return target


def table(rows: Sequence[Row]) -> list[str]:
    """The rows in Markdown, and the verdicts."""
    head = ["at the bytes of", "bytes", "stock KLD", "fast", "standard", "bar", "PPL ratio: stock, fast, standard"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 2) + "|---|"]
    return [*lines, *map(line, rows), "", *verdicts(rows)]


def line(row: Row) -> str:
    """One row in Markdown."""
    mixes = [f"{row.quality[mode].kld:.4f} (× {row.share(mode):.3f})" for mode in (FAST, STANDARD)]
    ratios = ", ".join(f"{one.ppl_ratio:.3f}" for one in row.quality.values())
    cells = [row.size, f"{row.bytes[_STOCK]:,}", f"{row.quality[_STOCK].kld:.4f}", *mixes]
    return f"| {' | '.join([*cells, f'× {BARS[row.size]}', ratios])} |"


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
    claims = {
        "no file above the stock file's bytes": larger,
        "no size worse than stock": worse,
        "more bytes never worse": falls,
        "bars of standard": missed,
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

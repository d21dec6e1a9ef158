"""How much better compensated files of an RWKV are than stock ones and than plain ones, at equal bytes.

    python -m bench.rounding                                                the demo, on its own texts
    python -m bench.rounding MODEL.pth --vocab VOCAB.txt --out FOLDER       another checkpoint
    python -m bench.rounding MODEL.pth --texts FOLDER                       and other texts

A folder of texts holds calibration.txt, probe.txt and evaluation.txt, no two of which may share a paragraph; any
evaluation-NAME.txt beside them is one that plain and compensated files are measured on apart, such as a language.
All files of a row have the same imatrix. What was measured stays in --out, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import run
from bench.mixes import FACTS, LADDER
from bench.real import calibrated
from ggufy.core.catalog import BY_NAME
from ggufy.core.metrics import PROBE_CHUNKS
from ggufy.formats.covariance import CovarianceFile
from ggufy.llama.install import Llama, ensure
from ggufy.quantize.recipe import Recipe
from ggufy.quantize.search.mixes import mixed
from ggufy.quantize.search.target import STANDARD, THOROUGH
from ggufy.steps.evaluate import EvaluationConfig
from ggufy.steps.recipe_kld import Divergences
from ggufy.steps.recipe_search import RecipeSearch
from ggufy.system import resources
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.texts.calibration import PinnedTexts, ensure_texts
from ggufy.texts.overlap import check_disjoint

TEST_CHUNKS = 32
LANGUAGE_SIZES = ("Q3_K_M", "Q4_K_M")
_EMBEDDING, _PUBLISHED = "token_embd.weight", "Q6_K"  # how many RWKV GGUFs are published: stock but for this
_ROUNDED = {STANDARD: "standard, compensated", THOROUGH: "thorough, compensated"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """KL divergences in nats, at the bytes of one stock file."""

    size: str  # quant type
    bytes: int  # of the stock file
    stock: float
    plain: float  # ggufy's recipe of that name, the kernels' own codes
    compensated: float  # the same recipe
    ordered: dict[str, float]  # compensated sizes to order, by mode
    published_bytes: int  # of the stock file with a better embedding
    published: float
    beside: float  # a compensated size to order of as many bytes

    def line(self) -> str:
        """In Markdown."""
        shares = [f"× {self.plain / self.stock:.3f}", f"× {self.compensated / self.stock:.3f}"]
        shares += [f"× {self.compensated / self.plain:.3f}"]
        shares += [f"× {kld / self.stock:.3f}" for kld in self.ordered.values()]
        rival = [f"{self.published_bytes:,}", f"{self.published:.5f}", f"× {self.beside / self.published:.3f}"]
        return f"| {' | '.join([self.size, f'{self.bytes:,}', f'{self.stock:.5f}', *shares, *rival])} |"


@dataclass(frozen=True, kw_only=True)
class RoundingBench:
    """One model."""

    plain: RecipeSearch
    rounded: RecipeSearch
    tests: tuple[Divergences, Divergences]  # plain and compensated, on the evaluation text
    modes: Sequence[str]

    def row(self, size: str) -> Row:
        """All files at the bytes of one stock file."""
        plain, rounded = self.tests
        stock, default = self.plain.stock(size), self._default(size)
        published = {**stock, _EMBEDDING: _PUBLISHED}
        limit = self.plain.stock_size(size)
        wider = limit + self._tensors(published) - self._tensors(stock)
        found = Row(
            size=size,
            bytes=limit,
            stock=plain(stock, label=f"stock {size}", stock=True),
            plain=plain(default, label=size),
            compensated=rounded(default, label=f"{size}, compensated"),
            ordered={mode: rounded(self._ordered(limit, mode), label=f"{size}, {mode}") for mode in self.modes},
            published_bytes=wider,
            published=plain(published, label=f"{size} with {_PUBLISHED}", stock=True),
            beside=rounded(self._ordered(wider, STANDARD), label=f"{size}, as many bytes as with {_PUBLISHED}"),
        )
        print(found.line(), file=sys.stderr, flush=True)
        return found

    def languages(self, texts: Sequence[Path], configs: Sequence[EvaluationConfig]) -> list[str]:
        """Lines of a table: the same recipes, plain and compensated, on texts apart."""
        lines = []
        for text, config in zip(texts, configs, strict=True):
            for size in LANGUAGE_SIZES:
                recipe = self._default(size)
                plain, rounded = (one.divergences(config)(recipe, label=size) for one in (self.plain, self.rounded))
                name = text.stem.partition("-")[2]
                lines.append(f"| {name} | {size} | {plain:.5f} | {rounded:.5f} | × {rounded / plain:.3f} |")
                print(lines[-1], file=sys.stderr, flush=True)
        return lines

    def _default(self, size: str) -> Recipe:
        return mixed(self.plain.head, size, stock=self.plain.stock(size))

    def _ordered(self, limit: int, mode: str) -> Recipe:
        return self.rounded.mix(limit - self.rounded.head_size(FACTS), mode).recipe

    def _tensors(self, recipe: Recipe) -> int:
        return self.plain.analysis.tensor_bytes(recipe)


def bench(given: argparse.Namespace, settings: Settings, llama: Llama, folder: Path) -> list[str]:
    """Lines for the report."""
    texts, apart = _texts(given.texts, settings)
    threads = max(1, math.floor(resources.allowed_cpus()))
    base = _base(given.source, given.vocab, folder)
    digests = {base.absolute(): sha256(base)}

    def config(text: Path, place: str, chunks: int) -> EvaluationConfig:
        return EvaluationConfig(
            text=text, folder=folder / place, llama=llama, threads=threads, chunks=chunks, digests=digests,
            environment=resources.child_environment(threads=threads, home=settings.home), speed=False,
            keep_logits=True,
        )  # fmt: skip

    imatrix, covariances = calibrated(base, config(texts.calibration, "calibration", 0))
    probe, test = config(texts.probe, "probe", given.probe_chunks), config(texts.evaluation, "test", given.chunks)
    with CovarianceFile.open(covariances) as file:
        plain = RecipeSearch(base=base, imatrix_path=imatrix, config=probe)
        rounded = RecipeSearch(base=base, imatrix_path=imatrix, config=probe, covariances=file)
        tests = (plain.divergences(test), rounded.divergences(test))
        ours = RoundingBench(plain=plain, rounded=rounded, tests=tests, modes=given.modes)
        rows = [ours.row(size) for size in given.sizes]
        languages = ours.languages(apart, [config(text, text.stem, given.chunks) for text in apart])
        for one in (plain, rounded, *tests):
            one.close()
    said = (
        f"**{base.stem}**, F16 base of {base.stat().st_size:,} bytes ({given.chunks} chunks of the evaluation text, "
    )
    return [f"{said}probes of {given.probe_chunks})", "", *table(rows), *([""] if languages else []), *languages]


def table(rows: Sequence[Row]) -> list[str]:
    """The rows in Markdown, and what the bars are about. Shares of stock, where nothing else is said."""
    head = ["at the bytes of", "bytes", "stock KLD", "default", "default, compensated", "of default"]
    head += [_ROUNDED[mode] for mode in rows[0].ordered]
    head += [f"stock with {_PUBLISHED} embedding: bytes", "its KLD", "standard, compensated, at those bytes"]
    means = [("default, compensated", [row.compensated / row.stock for row in rows])]
    means += [(_ROUNDED[mode], [row.ordered[mode] / row.stock for row in rows]) for mode in rows[0].ordered]
    said = ", ".join(f"{name} × {statistics.mean(shares):.3f}" for name, shares in means)
    worst = max(row.compensated / row.plain for row in rows)
    body = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|", *(row.line() for row in rows)]
    return [*body, "", f"Mean of stock's: {said}; compensated, of the same recipe's plain codes at most × {worst:.3f}"]


def _texts(folder: Path | None, settings: Settings) -> tuple[PinnedTexts, list[Path]]:
    """The three texts, and those to be measured apart."""
    texts, apart = ensure_texts(settings.cache), []
    if folder:
        places = {kind: folder / f"{kind}.txt" for kind in ("calibration", "probe", "evaluation")}
        texts, apart = PinnedTexts(**places), sorted(folder.glob("evaluation-*.txt"))
    for one, other in itertools.combinations((texts.calibration, texts.probe, texts.evaluation), 2):
        check_disjoint(one, other)
    for text in apart:
        check_disjoint(text, texts.calibration)
        check_disjoint(text, texts.probe)
    return texts, apart


def _base(source: str, vocab: Path | None, folder: Path) -> Path:
    base = folder / f"{Path(source).stem}-F16.gguf"
    if not base.exists():
        run(sys.executable, "-m", "ggufy", "convert", source, base, *(["--vocab", vocab] if vocab else []))
    return base


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rounding", description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", nargs="?", default="demo")
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sizes", nargs="+", default=LADDER)
    parser.add_argument("--modes", nargs="+", default=list(_ROUNDED))
    parser.add_argument("--chunks", type=int, default=TEST_CHUNKS)
    parser.add_argument("--probe-chunks", type=int, default=PROBE_CHUNKS)
    given = parser.parse_args()
    settings = Settings.from_env()
    threads, pip = max(1, math.floor(resources.allowed_cpus())), settings.pip_environment
    llama = ensure(settings.cache, override=settings.llama_dir, threads=threads, pip_environment=pip, types=BY_NAME)
    with tempfile.TemporaryDirectory(prefix="ggufy-bench-") as name:
        folder = given.out or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        print("\n".join(bench(given, settings, llama, folder)))


if __name__ == "__main__":
    main()

"""How much better than stock files mixes of the same size are, and what each part of the method adds.

    python -m bench.mixes                                                           the demo
    python -m bench.mixes BASE.gguf IMATRIX.gguf PROBE.txt TEST.txt [CALIBRATION.txt]   another model and its texts

All files of one row have the same imatrix and at most the stock file's bytes. Recipes are found with the probe text
and measured on the test text, which nothing else reads. That neither shares paragraphs with the other, nor with the
calibration text, is checked; where the latter is not given, it is looked for in the cache by the name that the imatrix
has for it, and if it is not there either, the report says that it was not checked.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import run
from ggufy.core.catalog import BY_NAME
from ggufy.core.metrics import PROBE_CHUNKS
from ggufy.formats.gguf import UNQUANTIZED, padded, read_head
from ggufy.llama.install import Llama, ensure
from ggufy.quantize.recipe import Recipe
from ggufy.quantize.search.allocate import Option, allocate
from ggufy.quantize.search.mixes import mixed
from ggufy.quantize.search.proxy import KURTOSIS, PAPER, RULES
from ggufy.quantize.search.target import FAST, MODES, THOROUGH
from ggufy.steps.evaluate import EvaluationConfig
from ggufy.steps.recipe_kld import Divergences
from ggufy.steps.recipe_search import PROBES, RecipeSearch
from ggufy.system import resources
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.texts.calibration import PinnedTexts, ensure_texts, texts_named
from ggufy.texts.overlap import check_disjoint

LADDER = ("Q2_K", "IQ3_XXS", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M")
ABLATED = ("Q2_K", "Q4_K_M")
BARS = {size: 0.45 if size == "IQ3_XXS" else 0.35 for size in LADDER}
DEFAULT_BAR = 0.7
SIZE_BAR = 0.005  # what a mix may leave unused of the size that was asked for
TEST_CHUNKS = 64
FACTS = {"ggufy.target": "0.0000MB", "ggufy.bits_per_weight": "00.00000"}
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_OVERRIDES = ("Q2_K", "Q3_K", "IQ3_S", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
_TRIED = 8  # overrides that are measured on the probe text, of those that the sensitivities like best


class Given(NamedTuple):
    """A model, and the texts: to find recipes with, to try them on, and the one that its imatrix was made from."""

    base: Path
    imatrix: Path
    probe: Path
    test: Path
    calibration: Path | None = None


@dataclass(kw_only=True)
class Bench:
    """One model."""

    recipe_search: RecipeSearch
    test: Divergences

    @property
    def head_size(self) -> int:
        return self.recipe_search.head_size(FACTS)

    def budget(self, size: str) -> int:
        """Bytes for the tensors of a mix that is no larger than the stock file."""
        return self.recipe_search.stock_size(size) - self.head_size

    def stock(self, size: str) -> float:
        """KLD of the stock file on the test text."""
        return self.test(self.recipe_search.stock(size), label=f"stock {size}", stock=True)

    def measured(self, recipe: Recipe, size: str) -> float:
        """KLD on the test text of a recipe that is no larger than the stock file."""
        assert self.recipe_search.analysis.tensor_bytes(recipe) <= self.recipe_search.analysis.tensor_bytes(
            self.recipe_search.stock(size)
        ), size
        return self.test(recipe, label=f"mix {size}")


def bench(folder: Path, llama: Llama, settings: Settings, texts: PinnedTexts) -> list[str]:
    """Lines for the report, about the demo."""
    out = folder / "mixes"
    run(sys.executable, "-m", "ggufy", "quantize", "demo", "--types", "Q8_0", "--no-evaluate", "--out", out)
    made = next(out.glob("*-GGUF"))
    base, imatrix = next(made.glob("*-F16.gguf")), next(made.glob("*-imatrix.gguf"))
    given = Given(base, imatrix, texts.probe, texts.evaluation, texts.calibration)
    return bench_model(given, folder / "mixes-work", llama, settings)


def bench_model(given: Given, folder: Path, llama: Llama, settings: Settings) -> list[str]:
    """Lines for the report: the ladder (`default` are the recipes that quantize uses), then what each part adds."""
    base, imatrix, probe, test, _ = given
    checked = check_texts(given, settings.cache)
    threads = max(1, math.floor(resources.allowed_cpus()))
    digests = {base.absolute(): sha256(base)}

    def config(text: Path, place: str, chunks: int) -> EvaluationConfig:
        environment = resources.child_environment(threads=threads, home=settings.home)
        where = folder / place
        return EvaluationConfig(
            text=text,
            folder=where,
            llama=llama,
            environment=environment,
            threads=threads,
            chunks=chunks,
            digests=digests,
            speed=False,
            keep_logits=True,
        )

    recipe_search = RecipeSearch(base=base, imatrix_path=imatrix, config=config(probe, "probe", PROBE_CHUNKS))
    tested = recipe_search.divergences(config(test, "test", TEST_CHUNKS))
    ours = Bench(recipe_search=recipe_search, test=tested)
    title = f"mixes of {base.stem}: mean KLD as a part of the stock file's, same imatrix, never more bytes"
    lines = [f"{title} (probe text {PROBE_CHUNKS} chunks, test text {TEST_CHUNKS}; {checked})", *_ladder(ours)]
    for size in ABLATED:
        lines += ["", *_ablation(ours, size)]
    recipe_search.close()
    tested.close()
    return lines


def check_texts(given: Given, cache: Path) -> str:
    """What was found of the calibration text. Raises CalibrationError for texts that share paragraphs."""
    datasets = read_head(given.imatrix).metadata.get("imatrix.datasets")
    names = datasets if isinstance(datasets, list) else []
    found = [path for name in names for path in texts_named(cache, str(name))]
    calibrations = [given.calibration] if given.calibration else found
    check_disjoint(given.test, given.probe)
    for calibration in calibrations:
        check_disjoint(given.probe, calibration)
        check_disjoint(given.test, calibration)
    return "calibration text disjoint from both" if calibrations else "calibration text NOT CHECKED: not at hand"


def reached(shares: Sequence[float], size: str) -> bool:
    """Whether a row of the ladder (shares of the stock file's KLD: default, fast, standard, thorough) is good enough:
    none is worse than stock, and its bars are met."""
    return max(shares) <= 1 and shares[-1] <= BARS[size] and max(shares[:2]) <= DEFAULT_BAR


def shortfall(limits_and_sizes: Iterable[tuple[int, int]]) -> str:
    """How far below the asked size files ended, at most; above it is never good enough."""
    shorts = [1 - size / limit for limit, size in limits_and_sizes]
    most = max(map(abs, shorts))
    verdict = "reached" if min(shorts) >= 0 and most <= SIZE_BAR else "MISSED"
    return f"  sizes hit within {most:.2%}{', never above' * (min(shorts) >= 0)}  bar {SIZE_BAR:.1%} {verdict}"


def _ladder(ours: Bench) -> list[str]:
    lines = [
        f"  {'size':<8} {'bytes':>9} {'stock KLD':>10} "
        + "".join(f"{mode:>10}" for mode in ("default", *MODES))
        + "  bar",
    ]
    sizes = []
    for size in LADDER:
        stock = ours.stock(size)
        default = mixed(ours.recipe_search.head, size, stock=ours.recipe_search.stock(size))
        parts = [ours.measured(default, size)]
        began = time.monotonic()
        for mode in MODES:
            against = "" if mode == FAST else size
            mix = ours.recipe_search.mix(ours.budget(size), mode, against=against)
            parts.append(stock if mix.stock else ours.measured(mix.recipe, size))
            asked, made = (
                ours.recipe_search.stock_size(size),
                ours.recipe_search.analysis.tensor_bytes(mix.recipe) + ours.head_size,
            )
            sizes.append((asked, asked if mix.stock else made))
        took = time.monotonic() - began
        shares = [part / stock for part in parts]
        verdict = "reached" if reached(shares, size) else "MISSED"
        cells = "".join(f"{share:>9.3f}x" for share in shares)
        row = f"  {size:<8} {ours.recipe_search.stock_size(size):>9} {stock:>10.5f} {cells}"
        lines.append(f"{row}  {BARS[size]} {verdict} ({took:.0f} s)")
        print(lines[-1], file=sys.stderr, flush=True)
    return [*lines, shortfall(sizes)]


def _ablation(ours: Bench, size: str) -> list[str]:
    """One line a part of the method, all at the stock file's bytes."""
    recipe_search, budget, stock = ours.recipe_search, ours.budget(size), ours.stock(size)
    analysis = recipe_search.analysis
    groups, values, _ = recipe_search.probed(PROBES[THOROUGH])
    probed = {name: values[group] for group, names in groups.items() for name in names}
    prior, flat = recipe_search.prior(), dict.fromkeys(analysis.losses, 1.0)
    kept = {name: recipe_search.head.tensors[name].type for name in analysis.low_rank}

    def solved(table: Mapping[str, float], **named: bool) -> Recipe:
        full = {name: table.get(name, 1.0) for name in analysis.losses}
        return recipe_search.solve(full, budget, **named).recipe

    def without_low_rank() -> Recipe:
        options = analysis.options({name: probed.get(name, 1.0) for name in analysis.losses})
        free = {name: choices for name, choices in options.items() if name not in kept}
        spent = sum(padded(recipe_search.head.tensors[name].size, recipe_search.head.alignment) for name in kept)
        found = allocate(free, budget - analysis.fixed - spent)
        return {**found.recipe, **kept}

    def options(**named: Any) -> dict[str, list[Option]]:
        return analysis.options({name: probed.get(name, 1.0) for name in analysis.losses}, probed=True, **named)

    def choices(**named: Any) -> int:
        return sum(map(len, options(**named).values()))

    def pruned(rule: str) -> Recipe:
        return allocate(options(prune=True, rule=rule), budget - analysis.fixed).recipe

    every = choices()
    out = {rule: every - choices(prune=True, rule=rule) for rule in RULES}
    rows: dict[str, Callable[[], Recipe]] = {
        "stock with the best embedding and head types": lambda: _override(ours, size, probed),
        "low-rank tensors alone (Q8_0), and the stock types that then fit": lambda: _low_rank_alone(ours, size),
        "mix alone, low-rank tensors as stock has them, probed": without_low_rank,
        "mix and low-rank tensors, flat sensitivities": lambda: solved(flat),
        "mix and low-rank tensors, shipped sensitivities (fast)": lambda: solved(prior),
        "mix and low-rank tensors, where harmless in Q8_0, 26 probes": lambda: solved(probed),
        "mix and low-rank tensors below Q8_0 too, 26 probes": lambda: solved(probed, probed=True),
        f"the same, less {out[KURTOSIS]} of {every} choices, by block kurtosis (--prune)": lambda: pruned(KURTOSIS),
        f"the same, less {out[PAPER]} of {every}, by RWKVQuant's coarse-to-fine rule": lambda: pruned(PAPER),
        "below Q8_0 too, unpruned, and a refit near the size (thorough)": lambda: (
            recipe_search.mix(budget, THOROUGH).recipe
        ),
    }
    lines = [f"what each part adds at the bytes of {size} (stock KLD {stock:.5f})"]
    for name, make in rows.items():
        recipe = make()
        share = ours.measured(recipe, size) / stock
        lines.append(f"  {name:<66} {share:.3f}x")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def _stock_types(ours: Bench) -> list[str]:
    """Quant types with different stock recipes."""
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    for row in BY_NAME.values():
        if not row.name.startswith(("TQ", "IQ1")):
            seen.setdefault(tuple(sorted(ours.recipe_search.stock(row.name).items())), row.name)
    return list(seen.values())


def _override(ours: Bench, size: str, sensitivities: Mapping[str, float]) -> Recipe:
    """Stock types for all but embedding and head, which get whatever is best: what --token-embedding-type and
    --output-tensor-type of llama-quantize can reach. Of those that the sensitivities like, the best on the probe text.
    """
    recipe_search, analysis, budget = ours.recipe_search, ours.recipe_search.analysis, ours.budget(size)
    ends = [
        name for name in (_EMBEDDING, _HEAD) if name in recipe_search.head.tensors
    ]  # a tied model has no head of its own
    found: list[tuple[float, Recipe]] = []
    for name in _stock_types(ours):
        for kinds in itertools.product(_OVERRIDES, repeat=len(ends)):
            recipe = {**recipe_search.stock(name), **dict(zip(ends, kinds, strict=True))}
            if analysis.tensor_bytes(recipe) <= budget:
                found.append((_cost(ours, recipe, sensitivities), recipe))
    found.sort(key=lambda one: one[0])
    return min(
        (recipe for _, recipe in found[:_TRIED]), key=lambda recipe: recipe_search.divergence(recipe, label="override")
    )


def _cost(ours: Bench, recipe: Recipe, sensitivities: Mapping[str, float]) -> float:
    analysis = ours.recipe_search.analysis
    total = 0.0
    for name, losses in analysis.losses.items():
        kind = recipe[name]
        if kind in UNQUANTIZED:
            continue
        if kind not in losses:  # a type that mixes do not use
            return math.inf
        total += sensitivities.get(name, 0.0) * analysis.weights[name] * losses[kind]
    return total


def _low_rank_alone(ours: Bench, size: str) -> Recipe:
    """The best stock recipe that fits when the low-rank tensors are Q8_0, on the probe text."""
    recipe_search, analysis = ours.recipe_search, ours.recipe_search.analysis
    small = {name: "Q8_0" for name in analysis.low_rank if "Q8_0" in analysis.losses[name]}
    recipes = [{**recipe_search.stock(name), **small} for name in _stock_types(ours)]
    fitting = sorted(
        (recipe for recipe in recipes if analysis.tensor_bytes(recipe) <= ours.budget(size)),
        key=analysis.tensor_bytes,
    )
    return min(fitting[-3:], key=lambda recipe: recipe_search.divergence(recipe, label="low-rank"))


def main() -> None:
    settings = Settings.from_env()
    llama = ensure(
        settings.cache,
        override=settings.llama_dir,
        threads=max(1, math.floor(resources.allowed_cpus())),
        pip_environment=settings.pip_environment,
        types=BY_NAME,
    )
    with tempfile.TemporaryDirectory(prefix="ggufy-bench-") as name:
        if len(sys.argv) in (5, 6):
            lines = bench_model(Given(*map(Path, sys.argv[1:])), Path(name), llama, settings)
        else:
            lines = bench(Path(name), llama, settings, ensure_texts(settings.cache))
    print("\n".join(lines))


if __name__ == "__main__":
    main()

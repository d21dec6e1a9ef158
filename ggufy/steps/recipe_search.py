"""Size to order: the best recipe for a number of bytes, and the file.

    fast       errors by tensor and type, and the shipped sensitivities; no model is run
    standard   sensitivities of this model from 10 probes; what `fast` finds, or the stock file, wins if better there
    thorough   26 probes; then recipes around the solution are made and measured, and the sensitivities refitted, twice

Everything that is measured is kept in `<folder>`, under digests of what it follows from: another size needs the
solver and, in thorough mode, some measurements near that size; a run that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy.core.catalog import BY_NAME, QUANT_TYPES
from ggufy.core.errors import CalibrationError, Cancelled
from ggufy.formats.gguf import read_head, tensor_bytes
from ggufy.llama import ggml as kernels
from ggufy.llama import tools
from ggufy.quantize import engine
from ggufy.quantize.imatrix import Imatrix, read_imatrix, with_embedding
from ggufy.quantize.layout import plan
from ggufy.quantize.recipe import Recipe, stock_recipe
from ggufy.quantize.search import probing, roles
from ggufy.quantize.search.allocate import Allocation, allocate, frontier
from ggufy.quantize.search.analysis import Analysis, analyse
from ggufy.quantize.search.mixes import rescaling
from ggufy.quantize.search.probing import Measured
from ggufy.quantize.search.target import FAST, STANDARD, THOROUGH
from ggufy.quantize.task import QuantizeTask, planned_facts
from ggufy.steps.evaluate import EvaluationConfig
from ggufy.steps.recipe_kld import Divergences
from ggufy.system.control import Control
from ggufy.system.files import sha256

if TYPE_CHECKING:
    from ggufy.quantize.rounding import Covariances

PROBES = {STANDARD: 10, THOROUGH: roles.MOST_GROUPS}
ROUNDS = 2
_TILTS = (0.0, -0.25, 0.25)  # candidates: sensitivities raised to 1 + tilt, flatter and steeper


@dataclass(frozen=True, kw_only=True)
class FoundRecipe:
    """A recipe for a size, and how it was found."""

    recipe: Recipe
    stock: str = ""  # the quant type whose stock recipe it is, where that won
    mode: str
    predicted: float | None  # KL divergence that this model's sensitivities expect, nats; None for a stock recipe
    kld: float | None = None  # measured over the probe text
    stock_kld: float | None = None  # of the stock file that it was compared with
    compared: str = ""  # that quant type
    sensitivities: Mapping[str, float]  # by group


@dataclass(kw_only=True)
class RecipeSearch:
    """One base GGUF and one imatrix; serves every size. What is expensive is computed when it is first needed."""

    base: Path
    imatrix_path: Path | None
    config: EvaluationConfig  # its text is the probe text, its folder keeps what is measured
    covariances: Covariances | None = None  # all that is made and measured has compensated codes then, stock files too
    _analysis: Analysis | None = None
    _stock: dict[str, Recipe] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.head = read_head(self.base)
        self.ggml = kernels.load(self.config.llama.bin)
        self.stock_imatrix = read_imatrix(self.imatrix_path) if self.imatrix_path else None
        self.scales = rescaling(self.head)
        self.imatrix: Imatrix | None = with_embedding(self.stock_imatrix, self.head) if self.stock_imatrix else None
        digest = self.config.digests.get(self.base.absolute()) or sha256(self.base, stopped=self.config.stopped)
        self.config = dataclasses.replace(
            self.config, speed=False, keep_logits=True, digests={**self.config.digests, self.base.absolute(): digest}
        )
        self.divergence = self.divergences(self.config)

    def divergences(self, config: EvaluationConfig) -> Divergences:
        """Of this base's recipes, over any text."""
        return Divergences(
            base=self.base,
            base_sha256=self.config.digests[self.base.absolute()],
            imatrix=self.imatrix,
            stock_imatrix=self.stock_imatrix,
            scales=self.scales,
            covariances=self.covariances,
            ggml=self.ggml,
            config=config,
        )

    # ---- what is known

    @property
    def analysis(self) -> Analysis:
        """Errors by tensor and type."""
        if self._analysis is None:
            stock = self.stock("Q4_K_M")
            self._analysis = analyse(
                self.base,
                self.head,
                [t.name for t in self.head.tensors.values() if tensor_bytes(t.shape, stock[t.name]) < t.size],
                imatrix=self.imatrix,
                scales=self.scales,
                covariances=self.covariances,
                ggml=self.ggml,
                table=self.config.folder / "losses.jsonl",
                threads=self.config.threads,
                check=self._check,
                report=lambda fraction: self.config.report("analysis", fraction),
            )
        return self._analysis

    def stock(self, quant_type: str) -> Recipe:
        """llama-quantize's own recipe."""
        if quant_type not in self._stock:
            self.config.folder.mkdir(parents=True, exist_ok=True)
            run = tools.ToolRun(
                environment=self.config.environment, cwd=self.config.folder, stopped=self.config.stopped
            )
            imatrix = str(self.imatrix_path.absolute()) if self.imatrix_path else ""
            tool = self.config.llama.tool("llama-quantize")
            self._stock[quant_type] = stock_recipe(tool, run, self.base, quant_type, imatrix=imatrix)
        return self._stock[quant_type]

    def stock_size(self, quant_type: str) -> int:
        """Bytes of the stock file."""
        ftype = BY_NAME[quant_type].ftype
        recipe = self.stock(quant_type)
        imatrix, facts = self.stock_imatrix, self._planned
        return plan(self.base, self.head, recipe, ftype=ftype, imatrix=imatrix, ggml=self.ggml, facts=facts).size

    @property
    def _planned(self) -> dict[str, str]:
        """Metadata of every file, whatever its recipe."""
        return planned_facts(compensated=self.covariances is not None)

    def head_size(self, facts: Mapping[str, str]) -> int:
        """Bytes before the tensors of a mix."""
        layout = plan(
            self.base,
            self.head,
            {},
            ftype=0,
            imatrix=self.imatrix,
            scales=self.scales,
            ggml=self.ggml,
            facts={**facts, **self._planned},
        )
        return len(layout.head)

    # ---- recipes

    def solve(
        self, sensitivities: Mapping[str, float], budget: int, *, probed: bool = False, prune: bool = False
    ) -> Allocation:
        """The best recipe whose tensors take at most `budget` bytes, those that stay as they are included."""
        options = self.analysis.options(sensitivities, probed=probed, prune=prune)
        return allocate(options, budget - self.analysis.fixed)

    def least(self, mode: str) -> int:
        """Bytes of the tensors of the smallest mix."""
        options = self.analysis.options(self._complete({}), probed=mode != FAST)
        return self.analysis.fixed + sum(min(one.size for one in choices) for choices in options.values())

    def groups(self, most: int) -> dict[str, list[str]]:
        """The tensors that share a sensitivity."""
        kept = {name: n for name, n in self.analysis.weights.items() if len(self.analysis.losses[name]) > 1}
        return roles.groups(kept, all_names=self.head.tensors, most=most)

    def probed(self, most: int) -> tuple[dict[str, list[str]], dict[str, float], Measured]:
        """(groups, their sensitivities, the anchor) from at most `most` probes."""
        groups = self.groups(most)
        recipe, lower = probing.anchor(self.analysis)
        at = self._measured(recipe, "anchor")
        probes = {}
        for number, (group, names) in enumerate(groups.items(), start=1):
            one = probing.probe(recipe, lower, names)
            label = f"probe {number} of {len(groups)}: {group}"
            probes[group] = self._measured(one, label)
        return groups, probing.sensitivities(self.analysis, groups, at, probes, self.prior()), at

    def frontier(self, mode: str, *, most: int = 64) -> list[tuple[int, float]]:
        """(bytes of all tensors, KL divergence that is expected, nats) of the best recipes, from the smallest size to
        the largest. `mode` is one that probes: its sensitivities are what was measured."""
        groups, values, _ = self.probed(PROBES[mode])
        options = self.analysis.options(self._complete(probing.by_tensor(groups, values)), probed=True)
        return [(self.analysis.fixed + point.size, point.cost) for point in frontier(options, most=most)]

    def prior(self) -> dict[str, float]:
        """The shipped sensitivity of every tensor, as it is in a model of this size."""
        return roles.transferred({name: tensor.elements for name, tensor in self.head.tensors.items()})

    def mix(self, budget: int, mode: str, *, against: str = "", prune: bool = False) -> FoundRecipe:
        """The recipe for `budget` bytes of tensors. `against` is a stock quant type that wins if it is better.

        Raises UsageError when the budget is too small; what the engine and the measuring raise; Cancelled.
        """
        if mode == FAST:
            return FoundRecipe(recipe=self._fast(budget, prune), mode=mode, predicted=None, sensitivities={})
        groups, values, _ = self.probed(PROBES[mode])
        best = Measured(recipe=self._solved(groups, values, budget, prune=prune), kld=math.inf)
        if mode == THOROUGH:
            best, values = self._refined(groups, values, budget, prune=prune)
        elif against:
            found = [self._measured(best.recipe, "result"), *self._measured_fast(budget, prune)]
            best = min(found, key=lambda one: one.kld)
        stock_kld = self._stock_kld(against) if against else None
        wins = stock_kld is not None and stock_kld < best.kld
        return FoundRecipe(
            recipe=self.stock(against) if wins else best.recipe,
            stock=against if wins else "",
            mode=mode,
            predicted=None if wins else probing.predicted(self.analysis, groups, values, best.recipe),
            kld=stock_kld if wins else best.kld if math.isfinite(best.kld) else None,
            stock_kld=stock_kld,
            compared=against,
            sensitivities=values,
        )

    def _refined(
        self, groups: dict[str, list[str]], values: dict[str, float], budget: int, *, prune: bool
    ) -> tuple[Measured, dict[str, float]]:
        """Measures recipes around the solution and the fast one, and lets what they showed change it."""
        measured = {tuple(sorted(one.recipe.items())): one for one in self._measured_fast(budget, prune)}
        current = values
        for number in range(ROUNDS + 1):
            new = False
            for tilt in _TILTS if number < ROUNDS else (0.0,):
                tilted = {group: value ** (1 + tilt) for group, value in current.items()}
                recipe = self._solved(groups, tilted, budget, prune=prune)
                key = tuple(sorted(recipe.items()))
                if key not in measured:
                    measured[key] = self._measured(recipe, f"candidate {len(measured) + 1}")
                    new = True
            current = probing.refit(self.analysis, groups, values, list(measured.values()))
            if not new:
                break
        return min(measured.values(), key=lambda one: one.kld), current

    def _fast(self, budget: int, prune: bool) -> Recipe:
        return self.solve(self._complete(self.prior()), budget, prune=prune).recipe

    def _measured_fast(self, budget: int, prune: bool) -> list[Measured]:
        """What fast finds; nothing where its choices, which are fewer, do not come down to these bytes."""
        return [self._measured(self._fast(budget, prune), "fast")] if budget >= self.least(FAST) else []

    def _measured(self, recipe: Recipe, label: str) -> Measured:
        return Measured(recipe=recipe, kld=self.divergence(recipe, label=label))

    def _solved(self, groups: dict[str, list[str]], values: dict[str, float], budget: int, *, prune: bool) -> Recipe:
        return self.solve(self._complete(probing.by_tensor(groups, values)), budget, probed=True, prune=prune).recipe

    def _complete(self, values: Mapping[str, float]) -> dict[str, float]:
        """With something for the tensors that have no choice."""
        return {name: values.get(name, 1.0) for name in self.analysis.losses}

    def _stock_kld(self, quant_type: str) -> float:
        return self.divergence(self.stock(quant_type), label=f"stock {quant_type}", stock=True)

    def rival(self, size: int) -> str:
        """The stock quant type that a mix of `size` bytes has to beat: of the largest stock file that fits, and of the
        one that the shipped sensitivities like best, the better one on the probe text. Empty if no file fits."""
        fitting = self.stock_that_fits(size)
        if not fitting:
            return ""
        values = self._complete(self.prior())
        liked = min(fitting, key=lambda name: self._expected(self.stock(name), values))
        return min({max(fitting, key=lambda name: fitting[name]), liked}, key=self._stock_kld)

    def stock_that_fits(self, size: int) -> dict[str, int]:
        """Bytes of each stock file that can be made and has at most `size`, by quant type."""
        sizes = {}
        for row in QUANT_TYPES:
            if row.name.startswith("TQ") or (row.needs_imatrix and self.imatrix is None):
                continue
            with contextlib.suppress(CalibrationError):  # the imatrix lacks a tensor that this type needs
                sizes[row.name] = self.stock_size(row.name)
        return {name: total for name, total in sizes.items() if total <= size}

    def _expected(self, recipe: Recipe, values: Mapping[str, float]) -> float:
        """What sensitivities expect of a recipe; infinite where it has types that mixes do not use."""
        try:
            return math.fsum(values[name] * self.analysis.noise(recipe, [name]) for name in self.analysis.losses)
        except KeyError:
            return math.inf

    # ---- the file

    def order(self, mix: FoundRecipe, out: Path, facts: Mapping[str, str], label: str) -> QuantizeTask:
        """The file, for the engine; `label` is the quant type whose number it carries."""
        return QuantizeTask(
            base=self.base,
            target=out,
            recipe=mix.recipe,
            ftype=BY_NAME[mix.stock or label].ftype,
            imatrix=self.stock_imatrix if mix.stock else self.imatrix,
            scales={} if mix.stock else self.scales,
            facts=facts,
            identity=self.config.digests[self.base.absolute()],
            covariances=self.covariances,
        )

    def make(self, mix: FoundRecipe, out: Path, facts: Mapping[str, str], label: str) -> None:
        """Writes the file; `label` is the quant type whose number it carries."""
        order = self.order(mix, out, facts, label)
        threads = self.config.threads
        control = Control(
            limit=self.config.limit or (lambda: threads),
            duty=self.config.share,
            stopped=self.config.stopped,
            report=lambda fraction: self.config.report(out.name, fraction),
        )
        engine.quantize(order, control, ggml=self.ggml)

    def close(self) -> None:
        """Removes what only this run needed; what was measured stays."""
        self.divergence.close()

    def _check(self) -> None:
        if self.config.stopped():
            raise Cancelled("the job was stopped.")

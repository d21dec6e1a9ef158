"""The KL divergence of a recipe from its base, over a text: makes the quant, measures it, and keeps the figure.

    <folder>/divergences.jsonl     a line of JSON each, under a digest of base, imatrix, kernels, text, tool and recipe
    <folder>/*.gguf                quants while they are measured; the first one stays until the end as a sibling
    <folder>/*.logits, *.json      see evaluate.py

A line is on the disk before the next measurement begins, so a run that is killed goes on at the one it was at.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy.llama.ggml import Ggml
from ggufy.quantize import engine
from ggufy.quantize.imatrix import Imatrix
from ggufy.quantize.recipe import Recipe
from ggufy.quantize.task import QuantizeTask, rounding_digest
from ggufy.steps.evaluate import EvaluationConfig, evaluate
from ggufy.system.control import Control
from ggufy.system.files import disk_errors, sync

if TYPE_CHECKING:
    from ggufy.quantize.rounding import Covariances

_VERSION = "ggufy divergence 1"


@dataclass(kw_only=True)
class Divergences:
    """Measures recipes of one base. Not for several threads."""

    base: Path
    base_sha256: str
    imatrix: Imatrix | None
    stock_imatrix: Imatrix | None  # for stock files: without anything that llama-quantize does not do
    ggml: Ggml
    config: EvaluationConfig
    scales: Mapping[str, float] = field(default_factory=dict)  # see layout.plan; not for stock files
    covariances: Covariances | None = None  # all codes are compensated then
    measured: int = 0  # that were not known before
    _sibling: list[Path] = field(default_factory=list)

    @property
    def table(self) -> Path:
        return self.config.folder / "divergences.jsonl"

    def __post_init__(self) -> None:
        self._text = self.config.digest(self.config.text)
        self._known = read_lines(self.table)

    def key(self, recipe: Recipe, *, stock: bool = False) -> str:
        """What the figure follows from."""
        imatrix, scales = self._made_with(stock)
        words = [_VERSION, self.base_sha256, f"{imatrix.sha256} {len(imatrix.weights)}" if imatrix else ""]
        words += [json.dumps(sorted(scales.items())), self.ggml.sha256, self._text]
        words += [self.config.llama.commit, str(self.config.chunks), json.dumps(sorted(recipe.items()))]
        if self.covariances is not None:
            words.append(rounding_digest(self.covariances, imatrix, self.ggml.sha256))
        return hashlib.sha256("\n".join(words).encode()).hexdigest()

    def _made_with(self, stock: bool) -> tuple[Imatrix | None, Mapping[str, float]]:
        return (self.stock_imatrix, {}) if stock else (self.imatrix, self.scales)

    def __call__(self, recipe: Recipe, *, label: str, stock: bool = False) -> float:
        """Mean KL divergence in nats; of a stock recipe as llama-quantize makes it.

        Figures are compared with each other, so each is over all the chunks that were asked for, or none is kept.
        Raises what the engine and `evaluate` raise, DiskError where the disk has no room for all chunks; Cancelled.
        """
        key = self.key(recipe, stock=stock)
        if key not in self._known:
            target = self.config.folder / f"{key[:16]}.gguf"
            self._make(recipe, target, label, stock=stock)
            try:
                self._keep(key, self._measured(target, label), label)
                if not self._sibling and not stock:
                    self._sibling.append(target)
            finally:
                if target not in self._sibling:
                    target.unlink(missing_ok=True)
        return self._known[key]

    def _measured(self, target: Path, label: str) -> float:
        # The base's predictions stay for the next recipe; `close` removes them.
        config = replace(
            self.config, all_chunks=True, report=lambda what, fraction: self.config.report(label, fraction)
        )
        [found] = evaluate(self.base, [target], config)
        for left in self.config.folder.glob(f"{target.stem}-*.json"):
            left.unlink()
        return found.quality.kld

    def _make(self, recipe: Recipe, target: Path, label: str, *, stock: bool) -> None:
        imatrix, scales = self._made_with(stock)
        order = QuantizeTask(
            base=self.base,
            target=target,
            recipe=recipe,
            ftype=0,
            imatrix=imatrix,
            scales=scales,
            siblings=() if stock else self._sibling,
            identity=self.base_sha256,
            covariances=self.covariances,
        )
        threads = self.config.threads
        control = Control(
            limit=self.config.limit or (lambda: threads),
            duty=self.config.share,
            stopped=self.config.stopped,
            report=lambda fraction: self.config.report(label, 0.0),
        )
        engine.quantize(order, control, ggml=self.ggml)

    def _keep(self, key: str, kld: float, label: str) -> None:
        append_line(self.table, {"key": key, "kld": kld, "what": label})
        self._known[key] = kld
        self.measured += 1

    def close(self) -> None:
        """Removes what only this run needed."""
        for pattern in ("*.logits", "*.gguf", "*.part"):
            for left in self.config.folder.glob(pattern):
                left.unlink()
        known = {key[:16] for key in self._known}
        for left in self.config.folder.glob(
            "*-*.json"
        ):  # from a run that was killed when it had just noted the figure
            if left.stem.partition("-")[0] in known:
                left.unlink()
        self._sibling.clear()


def read_lines(path: Path) -> dict[str, float]:
    """key -> figure; what a kill has cut is left out."""
    known = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            record = json.loads(line)
            known[str(record["key"])] = float(record["kld"])
        except (ValueError, TypeError, KeyError):
            continue
    return known


def append_line(path: Path, record: dict[str, object]) -> None:
    """Adds a line of JSON, on the disk when this returns; begins with a new line, as the last one may be cut."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, b"\n" + json.dumps(record).encode() + b"\n")
            sync(descriptor)
        finally:
            os.close(descriptor)

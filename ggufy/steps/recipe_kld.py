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
from dataclasses import dataclass, field, replace
from pathlib import Path

from ggufy.files import disk_errors
from ggufy.llama.ggml import Ggml
from ggufy.quantize import engine
from ggufy.quantize.imatrix import Imatrix
from ggufy.quantize.recipe import Recipe
from ggufy.steps.evaluate import How, evaluate

_VERSION = "ggufy divergence 1"


@dataclass(kw_only=True)
class Divergences:
    """Measures recipes of one base. Not for several threads."""

    base: Path
    base_sha256: str
    imatrix: Imatrix | None
    ggml: Ggml
    how: How
    ftype: int = 0
    measured: int = 0  # that were not known before
    _sibling: list[Path] = field(default_factory=list)

    @property
    def table(self) -> Path:
        return self.how.folder / "divergences.jsonl"

    def __post_init__(self) -> None:
        self._text = self.how.digest(self.how.text)
        self._known = read_lines(self.table)

    def key(self, recipe: Recipe, imatrix: Imatrix | None) -> str:
        """What the figure follows from."""
        words = [_VERSION, self.base_sha256, imatrix.sha256 if imatrix else "", self.ggml.sha256, self._text]
        words += [self.how.llama.commit, str(self.how.chunks), json.dumps(sorted(recipe.items()))]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()

    def known(self, recipe: Recipe) -> float | None:
        """The figure, if it was measured before."""
        return self._known.get(self.key(recipe, self.imatrix))

    def __call__(self, recipe: Recipe, *, label: str, imatrix: Imatrix | None = None) -> float:
        """Mean KL divergence in nats. `imatrix` is another one than usual, for the stock file.

        Raises what the engine and `evaluate` raise; Cancelled.
        """
        used = imatrix or self.imatrix
        key = self.key(recipe, used)
        if key not in self._known:
            target = self.how.folder / f"{key[:16]}.gguf"
            self._make(recipe, target, used, label)
            # The base's predictions stay for the next recipe; `close` removes them.
            how = replace(self.how, report=lambda what, fraction: self.how.report(label, fraction))
            [found] = evaluate(self.base, [target], how)
            self._keep(key, found.quality.kld, label)
            for left in self.how.folder.glob(f"{target.stem}-*.json"):
                left.unlink()
            if self._sibling or used is not self.imatrix:
                target.unlink()
            else:
                self._sibling.append(target)
        return self._known[key]

    def _make(self, recipe: Recipe, target: Path, imatrix: Imatrix | None, label: str) -> None:
        order = engine.Order(
            base=self.base,
            target=target,
            recipe=recipe,
            ftype=self.ftype,
            imatrix=imatrix,
            siblings=self._sibling if imatrix is self.imatrix else (),
            identity=self.base_sha256,
        )
        threads = self.how.threads
        control = engine.Control(
            limit=self.how.limit or (lambda: threads),
            stopped=self.how.stopped,
            report=lambda fraction: self.how.report(label, 0.0),
        )
        engine.quantize(order, control, ggml=self.ggml)

    def _keep(self, key: str, kld: float, label: str) -> None:
        append_line(self.table, {"key": key, "kld": kld, "what": label})
        self._known[key] = kld
        self.measured += 1

    def close(self) -> None:
        """Removes what only this run needed."""
        for pattern in ("*.logits", "*.gguf", "*.part"):
            for left in self.how.folder.glob(pattern):
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
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

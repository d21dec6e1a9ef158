"""`python -m ggufy verify QUANT…`: whether quants, here or in a repo, are what their base and imatrix make of them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufy.cli.terminal import Line, stoppable
from ggufy.core.errors import UsageError
from ggufy.formats.covariance import CovarianceFile
from ggufy.llama import ggml
from ggufy.llama.install import Llama
from ggufy.quantize.verify import Evidence, Verdict, verify
from ggufy.sources.hub import is_on_hub
from ggufy.sources.published import PublishedRepo
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

_BASE = re.compile(r"-(?:F16|BF16|F32)\.gguf$", re.IGNORECASE)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("quants", metavar="QUANT", nargs="+", help="a .gguf, or owner/repo[@revision][:file.gguf]")
    parser.add_argument("--base", type=user_path, metavar="FILE", help="the unquantized .gguf (the one beside it)")
    parser.add_argument("--imatrix", type=user_path, metavar="FILE", help="the imatrix (the one beside it)")
    parser.add_argument("--covariances", type=user_path, metavar="FILE", help="of compensated quants; see gram")
    parser.add_argument("--whole", action="store_true", help="compare every row, not some of each tensor")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no progress")


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> int:
    """Prints a line or an object for each quant; 1 if one of them is not what it says."""
    files = [user_path(quant) for quant in args.quants if not published(quant)]
    for path in (*files, *filter(None, (args.base, args.imatrix, args.covariances))):
        if not path.is_file():
            raise UsageError("{path} is no file: give files of this machine.", path=path)
    kernels = ggml.load(get_llama(settings).bin)
    line = Line(shown=not args.json, verb="comparing ")
    found: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(stoppable())
        covariances = stack.enter_context(CovarianceFile.open(args.covariances)) if args.covariances else None
        fetcher = _Fetcher(settings, args, stopped.is_set)
        for quant, evidence in itertools.chain.from_iterable(map(fetcher.each, args.quants)):
            report = functools.partial(line, quant.name)
            order = replace(evidence, covariances=covariances)
            try:
                verdict = verify(quant, order, ggml=kernels, whole=args.whole, stopped=stopped.is_set, report=report)
            finally:
                line.clear()
            found.append(facts(quant, verdict))
            if not args.json:
                print(f"{quant.name}: {said(verdict)}", flush=True)
    if args.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0 if all(one["holds"] for one in found) else 1


def published(text: str) -> bool:
    """Whether it names a repo: what ends as a file, and no repo's, is one of this machine."""
    return is_on_hub(text) and not user_path(text).exists() and (":" in text or not text.endswith(".gguf"))


class _Fetcher:
    """Gives quants with what they are made again from; those of a repo come one after the other, and go again."""

    def __init__(self, settings: Settings, args: argparse.Namespace, stopped: Callable[[], bool]):
        self._settings, self._stopped, self._shown = settings, stopped, not args.json
        self._base: Path | None = args.base
        self._imatrix: Path | None = args.imatrix

    def each(self, quant: str) -> Iterator[tuple[Path, Evidence]]:
        """Of a file: itself. Raises UsageError if there is no base, and what fetching does."""
        if published(quant):
            yield from self._of_repo(quant)
            return
        path = user_path(quant)
        yield path, self._evidence(path.name, [near.name for near in path.parent.glob("*.gguf")], path.with_name)

    def _of_repo(self, text: str) -> Iterator[tuple[Path, Evidence]]:
        token = self._settings.hf_token
        repo = PublishedRepo.of(text, token=token, stopped=self._stopped)
        line = Line(shown=self._shown, verb="fetching ")
        folder = self._settings.cache / "verify" / hashlib.sha256(repr(repo.files).encode()).hexdigest()[:16]

        def fetch(name: str) -> Path:
            try:
                report = functools.partial(line, name)
                return repo.fetch(name, folder, token=token, stopped=self._stopped, report=report)
            finally:
                line.clear()

        for name in [repo.chosen] if repo.chosen else quants_among(repo.files):
            evidence = self._evidence(name, repo.files, fetch)
            quant = fetch(name)
            yield quant, evidence
            quant.unlink()
        shutil.rmtree(folder, ignore_errors=True)

    def _evidence(self, quant: str, names: Collection[str], at: Callable[[str], Path]) -> Evidence:
        base, imatrix = beside(quant, names)
        if self._base is None and base is None:
            raise UsageError("{quant} has no base beside it: give the unquantized file with --base.", quant=quant)
        return Evidence(base=self._base or at(base or ""), imatrix=self._imatrix or (at(imatrix) if imatrix else None))


def beside(quant: str, names: Collection[str]) -> tuple[str | None, str | None]:
    """Which of the names are a quant's base and imatrix, by its own: of the longest common name."""
    stems = {name: _BASE.sub("", name) for name in names if _BASE.search(name) and name != quant}
    fitting = [name for name, stem in stems.items() if quant.startswith(f"{stem}-")]
    base = max(fitting, key=lambda name: len(stems[name]), default=None)
    imatrix = f"{stems[base]}-imatrix.gguf" if base else ""
    return base, imatrix if imatrix in names else None


def quants_among(names: Collection[str]) -> list[str]:
    """Those that have a base among the names, and are neither a base nor an imatrix. Raises UsageError for none."""
    made = [name for name in sorted(names) if not _BASE.search(name) and not name.endswith("-imatrix.gguf")]
    if not (found := [name for name in made if beside(name, names)[0]]):
        raise UsageError(
            "{quant} has no base beside it: give the unquantized file with --base.", quant=", ".join(made)
        )
    return found


def said(verdict: Verdict) -> str:
    """One sentence."""
    count = len(verdict.same) + len(verdict.different) + len(verdict.compensated)
    if not verdict.holds:
        wrong = [*verdict.metadata, *verdict.different]
        more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        return f"NOT what its base and imatrix make: {', '.join(wrong[:6])}{more} of {count} tensors differ"
    rows = "every row" if verdict.whole else "samples of all rows"
    if verdict.compensated:
        return (
            f"{len(verdict.same)} of {count} tensors are the same ({rows}); {len(verdict.compensated)} are "
            "compensated: give --covariances to compare them, too"
        )
    return f"the same in all {count} tensors ({rows})"


def facts(quant: Path, verdict: Verdict) -> dict[str, Any]:
    """The same for programs."""
    return {
        "file": str(quant.absolute()),
        "sha256": sha256(quant),
        "holds": verdict.holds,
        "whole": verdict.whole,
        "metadata": list(verdict.metadata),
        "same": len(verdict.same),
        "different": list(verdict.different),
        "compensated": list(verdict.compensated),
    }

"""`python -m ggufy verify QUANT.gguf…`: whether quants are what their base and imatrix make of them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufy.cli.terminal import Line, stoppable
from ggufy.core.errors import UsageError
from ggufy.formats.covariance import CovarianceFile
from ggufy.llama import ggml
from ggufy.llama.install import Llama
from ggufy.quantize.verify import Evidence, Verdict, verify
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

_BASE = re.compile(r"-(?:F16|BF16|F32)\.gguf$", re.IGNORECASE)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to those of the program."""
    parser = commands.add_parser("verify", help="make quants again from their base, and compare tensor by tensor")
    parser.add_argument("quants", metavar="QUANT.gguf", nargs="+", type=user_path, help="what to compare")
    parser.add_argument("--base", type=user_path, metavar="FILE", help="the unquantized .gguf (the one beside it)")
    parser.add_argument("--imatrix", type=user_path, metavar="FILE", help="the imatrix (the one beside it)")
    parser.add_argument("--covariances", type=user_path, metavar="FILE", help="of compensated quants; see gram")
    parser.add_argument("--whole", action="store_true", help="compare every row, not some of each tensor")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no progress")


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> int:
    """Prints a line or an object for each quant; 1 if one of them is not what it says."""
    for path in (*args.quants, *filter(None, (args.base, args.imatrix, args.covariances))):
        if not path.is_file():
            raise UsageError("{path} is no file: give files of this machine.", path=path)
    kernels = ggml.load(get_llama(settings).bin)
    line = Line(shown=not args.json, verb="comparing ")
    found: list[tuple[Path, Verdict]] = []
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(stoppable())
        covariances = stack.enter_context(CovarianceFile.open(args.covariances)) if args.covariances else None
        for quant in args.quants:
            evidence = replace(evidence_of(quant, args.base, args.imatrix), covariances=covariances)
            report = functools.partial(line, quant.name)
            try:
                verdict = verify(
                    quant, evidence, ggml=kernels, whole=args.whole, stopped=stopped.is_set, report=report
                )
            finally:
                line.clear()
            found.append((quant, verdict))
            if not args.json:
                print(f"{quant.name}: {said(verdict)}", flush=True)
    if args.json:
        print(json.dumps([facts(*one) for one in found], indent=2, ensure_ascii=False))
    return 0 if all(verdict.holds for _, verdict in found) else 1


def evidence_of(quant: Path, base: Path | None, imatrix: Path | None) -> Evidence:
    """What is given, or lies beside the quant under the same name. Raises UsageError if there is no base."""
    beside = [path for path in quant.parent.glob("*.gguf") if _BASE.search(path.name)]
    stems = {path: _BASE.sub("", path.name) for path in beside}
    fitting = [path for path in beside if quant.name.startswith(f"{stems[path]}-") and path != quant]
    if base is None:
        if not fitting:
            raise UsageError("{quant} has no base beside it: give the unquantized file with --base.", quant=quant.name)
        base = max(fitting, key=lambda path: len(stems[path]))
    guess = base.with_name(f"{_BASE.sub('', base.name)}-imatrix.gguf")
    return Evidence(base=base, imatrix=imatrix or (guess if guess.exists() else None))


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

"""`python -m ggufy mix SOURCE`: one file of the size that was asked for, as good as can be.

A base GGUF with an imatrix is used as it is; from any other source both are made first, as `quantize` makes them, and
stay beside the file. What is measured is kept in the cache, so another size of the same model is found in seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufy.cli.terminal import Line, stoppable
from ggufy.core.catalog import BY_NAME
from ggufy.core.errors import CalibrationError, SourceError, UsageError
from ggufy.core.job import COMPENSATED, PLAIN
from ggufy.core.messages import Message
from ggufy.core.metrics import PROBE_CHUNKS
from ggufy.core.words import human_size
from ggufy.formats.covariance import CovarianceFile
from ggufy.formats.gguf import UNQUANTIZED, read_head
from ggufy.llama.install import Llama
from ggufy.quantize.search import target as targets
from ggufy.quantize.search.proxy import is_codebook
from ggufy.system import resources
from ggufy.system.files import sha256
from ggufy.system.locks import lock
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

if TYPE_CHECKING:
    from ggufy.steps.recipe_search import FoundRecipe, RecipeSearch

Prepare = Callable[[argparse.Namespace, Settings, Llama], tuple[Path, Path | None]]
_CLOSE = 0.005  # a file that is smaller than asked for by more than this part gets a note
_EMBEDDING_AND_HEAD = ("token_embd.weight", "output.weight")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("source", metavar="SOURCE", help="an unquantized .gguf, or whatever quantize takes")
    parser.add_argument("--target-size", metavar="SIZE", help="of the file: 1.2GB, 900MiB")
    parser.add_argument("--target-bpw", metavar="BITS", help="bits per weight of all tensors: 3.275")
    parser.add_argument("--fit-memory", metavar="SIZE", help="memory that the model may take when it runs: 4GB")
    parser.add_argument(
        "--like", metavar="TYPE", help="no larger than the stock file of this quant type, and compared"
    )
    how_much = "how much is measured (%(default)s)"
    parser.add_argument("--mode", choices=targets.MODES, default=targets.STANDARD, help=how_much)
    parser.add_argument("--imatrix", default="auto", metavar="auto|none|FILE", help="importance matrix (%(default)s)")
    parser.add_argument("--covariances", type=user_path, metavar="FILE", help="of gram: codes are compensated then")
    parser.add_argument("--text", type=user_path, help="text to measure on, disjoint from all others (made at set-up)")
    parser.add_argument(
        "--chunks", type=int, default=PROBE_CHUNKS, help="chunks of 512 tokens to read of it (%(default)s)"
    )
    parser.add_argument("--prune", action="store_true", help="leave out types that block kurtosis rules out")
    parser.add_argument("--vocab", metavar="FILE", help="vocabulary of a checkpoint that is not a World model")
    parser.add_argument("--name", help="name of the model in the file's name (the source's file name)")
    parser.add_argument("--threads", type=int, help="threads for the tools (one less than allowed)")
    parser.add_argument(
        "--out", type=user_path, metavar="FILE|FOLDER", help="the .gguf, or where it goes (beside the base)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no progress")


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama], prepare: Prepare) -> str:
    """Makes the file; what goes to stdout. `prepare` makes base GGUF and imatrix of a source that is neither."""
    from ggufy.steps.recipe_search import RecipeSearch  # noqa: PLC0415 - loads the Hub's client, which other commands do without
    from ggufy.steps.target_size import LOCK_NAME  # noqa: PLC0415

    began = time.monotonic()
    target = targets.parse(size=args.target_size, bpw=args.target_bpw, memory=args.fit_memory)
    like = _like(args, target)
    llama = get_llama(settings)
    with stoppable() as stopped:
        base, imatrix = prepare(args, settings, llama)
        config = _evaluation_config(args, settings, llama, imatrix, stopped, base)
        message = Message("another run works on {name}: wait for it to end.", name=base.name)
        with lock(config.folder / LOCK_NAME, 2.0, message):
            covariances = _covariances(args.covariances, base, config.digests[base.absolute()])
            recipe_search = RecipeSearch(base=base, imatrix_path=imatrix, config=config, covariances=covariances)
            try:
                record = _made(args, recipe_search, target, like)
            finally:
                recipe_search.close()
                config.report.clear()
    record["seconds"] = round(time.monotonic() - began, 1)
    return json.dumps(record, indent=2, ensure_ascii=False) if args.json else shown(record)


def _covariances(path: Path | None, base: Path, digest: str) -> CovarianceFile | None:
    """Raises CalibrationError for those of another base."""
    if path is None:
        return None
    found = CovarianceFile.open(path)
    if found.base_sha256 != digest:
        raise CalibrationError(
            "{name} has covariances of another base than {base}: collect them with `ggufy gram`.",
            name=path.name,
            base=base.name,
        )
    return found


def _like(args: argparse.Namespace, target: targets.Target | None) -> str:
    like = (args.like or "").upper()
    if like and like not in BY_NAME:
        raise UsageError(
            "--like {type} is no quant type: known types are {types}.", type=args.like, types=", ".join(BY_NAME)
        )
    if bool(like) == bool(target):
        options = ", ".join(targets.OPTIONS.values())
        raise UsageError("give one size: {options}, or --like with a quant type.", options=options)
    if args.chunks < 2:
        raise UsageError("--chunks must be at least 2.")
    return like


def _made(
    args: argparse.Namespace, recipe_search: RecipeSearch, target: targets.Target | None, like: str
) -> dict[str, Any]:
    from ggufy.steps import target_size as to_order  # noqa: PLC0415

    if target is None:
        size = recipe_search.stock_size(like)
        target = targets.Target(kind=targets.SIZE, amount=size, text=like)
    if args.out and args.out.suffix == ".gguf":
        _check_free(args.out, recipe_search)
    found = to_order.sized(recipe_search, target, args.mode, like=like, prune=args.prune)
    label = targets.like_label(like) if like else f"{target.text}-{found.label}{targets.SUFFIX}"
    out: Path = args.out or recipe_search.base.parent
    out = out if out.suffix == ".gguf" else out / f"{_stem(args.name or recipe_search.base.stem)}-{label}.gguf"
    recipe_search.make(found.mix, out, found.facts, found.label)
    return _record(recipe_search, found.mix, out, target, found.limit)


def _record(
    recipe_search: RecipeSearch, mix: FoundRecipe, out: Path, target: targets.Target, limit: int
) -> dict[str, Any]:
    head = read_head(out)
    blocks = [t for name, t in head.tensors.items() if name not in _EMBEDDING_AND_HEAD]
    chosen = {name: head.tensors[name].type for name in recipe_search.analysis.losses}
    proxies = {
        name: {"type": chosen[name], "coarse": p.coarse, "fine": p.fine, "kurtosis": p.kurtosis}
        for name, p in recipe_search.analysis.proxies.items()
    }
    quantized = {name: kind for name, kind in chosen.items() if kind not in UNQUANTIZED}
    codebook = [name for name, kind in quantized.items() if is_codebook(kind)]
    return {
        "file": str(out.absolute()),
        "size": head.file_size,
        "limit": limit,
        "target": target.text,
        "bpw": head.bpw,
        "block_bpw": sum(t.size for t in blocks) * 8 / sum(t.elements for t in blocks),
        "mode": mix.mode,
        "stock": mix.stock,
        "predicted_kld": mix.predicted,
        "kld": mix.kld,
        "compared_with": mix.compared,
        "compared_kld": mix.stock_kld,
        "measured": recipe_search.divergence.measured,
        "rounding": PLAIN if recipe_search.covariances is None else COMPENSATED,
        "types": dict(Counter(t.type for t in head.tensors.values()).most_common()),
        "scalar": len(quantized) - len(codebook),
        "codebook": len(codebook),
        "frontier": [] if mix.mode == targets.FAST else recipe_search.frontier(mix.mode),
        "sensitivities": dict(mix.sensitivities),
        "proxies": proxies,
        "recipe": dict(sorted(chosen.items())),
    }


def shown(record: dict[str, Any]) -> str:
    """The result for people."""
    short = 1 - record["size"] / record["limit"]
    why = "it is better than any larger file found" if record["stock"] else "all that fits is in it"
    note = f", {short:.1%} smaller than asked for: {why}" if short > _CLOSE else ""
    lines = [
        record["file"],
        f"{human_size(record['size'])} ({record['size']} bytes; at most {record['limit']}){note}",
        f"{record['bpw']:.3f} bits per weight; {record['block_bpw']:.3f} without embedding and head",
        f"{record['scalar']} tensors went to scalar types, {record['codebook']} to codebooks (IQ)",
        ", ".join(f"{kind} {count}" for kind, count in record["types"].items()),
    ]
    if record["kld"] is not None:
        against = ""
        if record["compared_with"]:
            against = f"; stock {record['compared_with']}: {record['compared_kld']:.5f}"
        lines.append(f"KLD on the probe text: {record['kld']:.5f}{against}")
    if record["stock"]:
        lines.append(f"the stock recipe of {record['stock']} was better than any mix that was found, so it is used")
    return "\n".join(lines)


def _evaluation_config(
    args: argparse.Namespace,
    settings: Settings,
    llama: Llama,
    imatrix: Path | None,
    stopped: threading.Event,
    base: Path,
) -> Any:
    from ggufy.steps.evaluate import EvaluationConfig  # noqa: PLC0415
    from ggufy.steps.evaluation_text import check_text  # noqa: PLC0415
    from ggufy.steps.target_size import calibrations_of, folder_of  # noqa: PLC0415
    from ggufy.texts.calibration import ensure_texts  # noqa: PLC0415

    threads = resources.tool_threads(args.threads, settings.threads)
    line = Line(shown=not args.json)
    what = f"reading {base.name}"
    digest = sha256(base, lambda done: line(what, done / base.stat().st_size), stopped=stopped.is_set)
    config = EvaluationConfig(
        text=args.text or ensure_texts(settings.cache, stopped=stopped.is_set).probe,
        folder=folder_of(settings, digest),
        environment=resources.child_environment(threads=threads, home=settings.home),
        llama=llama,
        threads=threads,
        chunks=args.chunks,
        calibrations=calibrations_of(imatrix, settings),
        digests={base.absolute(): digest},
        report=line,
        stopped=stopped.is_set,
    )
    check_text(config.text, config.calibrations)
    return config


def _stem(name: str) -> str:
    from ggufy.core.names import model_name  # noqa: PLC0415

    return model_name(name)


def _check_free(out: Path, recipe_search: RecipeSearch) -> None:
    """Only what this command has made before is replaced."""
    if not out.exists():
        return
    mine = (recipe_search.base, recipe_search.imatrix_path)
    if not any(path and path.exists() and path.samefile(out) for path in mine):
        with contextlib.suppress(SourceError):
            if out.stem.endswith(targets.SUFFIX) or "ggufy.target" in read_head(out).metadata:
                return
    raise UsageError("{path} is there already, and is no mix: remove it, or give another --out.", path=out)

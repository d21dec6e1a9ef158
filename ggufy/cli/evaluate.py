"""`python -m ggufy evaluate BASE.gguf QUANT.gguf…`: what it does and shows. Its options are in parser.py."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from ggufy.cli.terminal import Line, stoppable, table
from ggufy.core.metrics import Evaluation
from ggufy.core.words import human_size
from ggufy.formats.gguf import read_head
from ggufy.llama.install import Llama
from ggufy.records.store import EVALUATIONS, STATE_REPO
from ggufy.steps.evaluate import EvaluationConfig, evaluate
from ggufy.steps.evaluation_text import check_text
from ggufy.steps.same_model import check_models
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_file
from ggufy.texts.calibration import ensure_texts, pin_text, texts_named
from ggufy.texts.dataset import is_dataset

_HEAD = ["file", "size", "bpw", "PPL", "KLD", "99.9 % KLD", "same top p"]
_SPEED_HEAD = ["prompt t/s", "generation t/s"]


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> str:
    """Measures what is not measured yet; what goes to stdout."""
    check_models(args.base, args.quants)
    text = evaluation_text(args.text, settings) if args.text else ensure_texts(settings.cache).evaluation
    threads = resources.tool_threads(args.threads, settings.threads)
    line = Line(shown=not args.json, verb="measuring ")
    config = EvaluationConfig(
        text=text,
        folder=settings.out / STATE_REPO / EVALUATIONS,
        environment=resources.child_environment(threads=threads, home=settings.home),
        llama=Llama(bin=Path(), source=None, version="", commit=""),
        threads=threads,
        chunks=args.chunks,
        speed=args.speed,
        calibrations=_calibrations(args.quants, settings.cache),
        report=line,
    )
    check_text(config.text, config.calibrations)
    config = dataclasses.replace(config, llama=get_llama(settings))
    with stoppable() as stopped:
        try:
            found = evaluate(args.base, args.quants, dataclasses.replace(config, stopped=stopped.is_set))
        finally:
            line.clear()
    if args.json:
        records = [dataclasses.asdict(evaluation) for evaluation in found]
        return json.dumps({"evaluations": records}, indent=2, ensure_ascii=False)
    return evaluation_table(found)


def evaluation_text(choice: str, settings: Settings) -> Path:
    """The text that was named: a file here as it is, whatever else pin_text takes from the cache."""
    if not is_dataset(choice) and (file := user_file(choice)):
        return file
    return pin_text(choice, settings.cache, token=settings.hf_token, use="evaluation").path


def evaluation_table(found: list[Evaluation]) -> str:
    """One line a quant, the base's perplexity, and what was read."""
    first = found[0]
    head = _HEAD + (_SPEED_HEAD if first.speed else [])
    lines = [
        table(head, [_row(evaluation)[: len(head)] for evaluation in found], right=tuple(range(1, len(head)))),
        "",
    ]
    quality = first.quality
    lines.append(f"{first.base}: PPL {quality.base_ppl:.3f} ± {quality.base_ppl_error:.3f}")
    threads = f", of speed (--threads {first.speed.threads}) the deviation between runs" if first.speed else ""
    lines.append(f"{first.tokens} tokens of {first.text} ({first.chunks} chunks); ± is one standard error{threads}")
    return "\n".join(lines)


def _row(evaluation: Evaluation) -> list[str]:
    quality, speed = evaluation.quality, evaluation.shown_speed
    return [
        evaluation.quant,
        human_size(evaluation.size),
        f"{evaluation.bpw:.2f}",
        f"{quality.ppl:.3f} ± {quality.ppl_error:.3f}",
        f"{quality.kld:.5f} ± {quality.kld_error:.5f}",
        f"{quality.kld_999:.4f}",
        f"{quality.same_top:.2f} ± {quality.same_top_error:.2f} %",
        speed.reading if speed else "",
        speed.writing if speed else "",
    ]


def _calibrations(quants: list[Path], cache: Path) -> list[Path]:
    """Texts in the cache that have the name of one that a quant's imatrix was made from."""
    names = {str(read_head(path).metadata.get("quantize.imatrix.dataset", "")) for path in quants}
    return [path for name in sorted(names - {""}) for path in texts_named(cache, name)]

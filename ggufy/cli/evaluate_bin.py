"""`python -m ggufy evaluate BASE.bin QUANT.bin…`: types, size, perplexity, latency and KLD of rwkv.cpp's files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

from ggufy.cli import bin_files
from ggufy.cli.evaluate import evaluation_text
from ggufy.cli.terminal import Line, stoppable, table
from ggufy.core.errors import UsageError
from ggufy.core.metrics import Evaluation
from ggufy.core.words import human_size
from ggufy.formats.rwkvcpp import read_head
from ggufy.llama.tools import CONTEXT, ToolRun
from ggufy.records.store import EVALUATIONS, STATE_REPO
from ggufy.rwkvcpp.measure import MeasureConfig, measure
from ggufy.steps.evaluation_text import check_text
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.texts.calibration import ensure_texts

_HEAD = ["file", "type", "size", "bpw", "loss", "PPL", "KLD", "99.9 % KLD", "same top p"]
_DISTURBED = "*"  # behind a latency
_SPEED_HEAD = ["ms/token", "prompt t/s", "generation t/s"]


def run(args: argparse.Namespace, settings: Settings) -> str:
    """Measures the base and its quants, as far as they are not measured yet; what goes to stdout."""
    config = _config(args, settings)
    line = Line(shown=not args.json, verb="measuring ")
    files = [args.base, *args.quants]
    config.folder.mkdir(parents=True, exist_ok=True)
    with stoppable() as stopped:
        tool_run = dataclasses.replace(config.run, stopped=stopped.is_set)
        try:
            found = measure(args.base, files, dataclasses.replace(config, run=tool_run, report=line))
        finally:
            line.clear()
    if args.json:
        records = [_record(path, one) for path, one in zip(files, found, strict=True)]
        return json.dumps({"evaluations": records}, indent=2, ensure_ascii=False)
    return _table(files, found, config)


def latency(found: Evaluation) -> int | None:
    """Whole milliseconds a token, as rwkv.cpp's measure_pexplexity.py prints them."""
    return int(1000 / found.speed.generation_tps) if found.speed else None


def _config(args: argparse.Namespace, settings: Settings) -> MeasureConfig:
    for name in ("limit", "ignore_first"):
        if (getattr(args, name) or 0) < 0:
            raise UsageError("{name} is negative: give a number of tokens.", name="--" + name.replace("_", "-"))
    text = evaluation_text(args.text, settings) if args.text else ensure_texts(settings.cache).evaluation
    check_text(text, ())
    threads = resources.tool_threads(args.threads, settings.threads)
    folder, llama = settings.out / STATE_REPO / EVALUATIONS, bin_files.llama_of(settings)
    environment = resources.child_environment(threads=threads, home=settings.home)
    return MeasureConfig(
        text=text,
        folder=folder,
        run=ToolRun(environment=environment, cwd=folder),
        threads=threads,
        tokenizer=bin_files.tokenizer(args),
        ignore_first=args.ignore_first or 0,
        limit=args.chunks * CONTEXT if args.limit is None else args.limit,
        speed=args.speed,
        ggml_folder=llama.bin if llama else None,
        library=args.library,
        llama=llama.commit if llama else "",
    )


def _record(path: Path, found: Evaluation) -> dict[str, object]:
    more = {"type": read_head(path).type, "loss": math.log(found.quality.ppl), "ms_per_token": latency(found)}
    return dataclasses.asdict(found) | more


def _table(files: list[Path], found: list[Evaluation], config: MeasureConfig) -> str:
    head = _HEAD + (_SPEED_HEAD if config.speed else [])
    rows = [_row(path, one)[: len(head)] for path, one in zip(files, found, strict=True)]
    first = found[0]
    ignored = f", the first {config.ignore_first} ignored" if config.ignore_first else ""
    lines = [
        table(head, rows, right=tuple(range(2, len(head)))),
        "",
        f"{first.tokens} tokens of {first.text}{ignored}, with --threads {config.threads}; KLD from {first.base}; "
        "± is one standard error, of speed the deviation between runs",
    ]
    if any(one.speed and not one.shown_speed for one in found):
        lines.append(f"{_DISTURBED} while other programs used the CPUs")
    return "\n".join(lines)


def _row(path: Path, found: Evaluation) -> list[str]:
    quality, speed, ms = found.quality, found.shown_speed, latency(found)
    return [
        found.quant,
        read_head(path).type,
        human_size(found.size),
        f"{found.bpw:.2f}",
        f"{math.log(quality.ppl):.4f}",
        f"{quality.ppl:.3f} ± {quality.ppl_error:.3f}",
        f"{quality.kld:.5f} ± {quality.kld_error:.5f}",
        f"{quality.kld_999:.4f}",
        f"{quality.same_top:.2f} ± {quality.same_top_error:.2f} %",
        "" if ms is None else f"{ms}{'' if speed else _DISTURBED}",
        speed.reading if speed else "",
        speed.writing if speed else "",
    ]

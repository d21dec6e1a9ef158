"""`python -m ggufy inspect SOURCE`: what a source is, without downloading it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ggufy.core.outputs import GGUF, OUTPUT_NAMES
from ggufy.core.words import human_size
from ggufy.system.settings import Settings

if TYPE_CHECKING:
    from ggufy.sources.format import Report


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="demo, a .pth, .safetensors or .gguf here or at an address, a folder, owner/repo",
    )
    parser.add_argument("--vocab", metavar="FILE", help="vocabulary of a checkpoint that is not a World model")
    what = "of what is to be made of it (gguf)"
    parser.add_argument("--format", choices=tuple(OUTPUT_NAMES), default=GGUF, help=what)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.sources.inspect import inspect  # loads the Hub's client

    report = inspect(args.source, settings, vocab=args.vocab, output=args.format)
    print(json.dumps(report.facts(), indent=2, ensure_ascii=False) if args.json else report_table(report))
    if report.problem:
        print(f"ggufy: {report.problem}", file=sys.stderr)
    return 1 if report.problem else 0


def report_table(report: Report) -> str:
    """What is known, one aligned line each; a repo of which no file was chosen lists its files."""
    shape = [
        f"{report.layers} layers" if report.layers else "",
        f"width {report.width}" if report.width else "",
        f"{report.heads} heads" + (f" of {report.head_size}" if report.head_size else "") if report.heads else "",
    ]
    rows = [
        ("source", report.source),
        ("kind", report.title + (f", converted as {report.becomes}" if report.becomes else "")),
        ("layout", report.layout),
        ("file", f"{report.path} ({human_size(report.size)})" if report.path else ""),
        ("shape", ", ".join(part for part in shape if part)),
        ("vocabulary", f"{report.vocab_size:,} tokens" if report.vocab_size else ""),
        ("parameters", f"{report.parameters:,}, most in {report.dtype}" if report.parameters else ""),
        ("context", f"{report.context:,} tokens" if report.context else ""),
        ("tokenizer", _pre_tokenizer(report)),
        *(("note", note) for note in report.notes),
        ("repo", report.model_id),
        ("revision", report.revision),
        ("licence", report.license),
        ("gated", "yes" if report.gated else ""),
    ]
    if not report.path:
        rows += [("holds", f"{variant.name} ({human_size(variant.size)})") for variant in report.variants]
    return "\n".join(f"{name:<11}{value}" for name, value in rows if value)


def _pre_tokenizer(report: Report) -> str:
    if report.pre_tokenizer is None:
        return ""
    unknown = "its pre-tokenizer is not known to llama.cpp's converter, which will probably refuse it"
    return report.pre_tokenizer or unknown

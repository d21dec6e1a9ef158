"""The words of the command line: commands and their options. What they do is in main.py."""

from __future__ import annotations

import argparse

from ggufy.cli import chat, complete, inspect, mix, state
from ggufy.core.catalog import OUTTYPES
from ggufy.core.job import DEFAULT_CHUNKS, EVALUATION_CHUNKS
from ggufy.core.metrics import DEFAULT_CHUNKS as COMMAND_CHUNKS
from ggufy.quantize.search.mixes import KINDS, RWKV
from ggufy.quantize.search.target import MODES
from ggufy.system.user_paths import user_path


def build_parser() -> argparse.ArgumentParser:
    """What it parses has the command's name as `command`."""
    parser = argparse.ArgumentParser(prog="python -m ggufy", description="Turns RWKV checkpoints into GGUF quants.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    quantize = commands.add_parser("quantize", help="make GGUF quants of a model")
    quantize.add_argument("source", metavar="SOURCE", help="demo, a .pth, an unquantized .gguf, owner/repo[:file.pth]")
    _add_what_to_make(quantize)
    _add_model_options(quantize)
    _add_how_to_make(quantize)
    _add_publishing(quantize)
    _add_run_options(quantize)
    convert = commands.add_parser("convert", help="convert one .pth to an unquantized GGUF")
    convert.add_argument("source", metavar="SRC.pth", type=user_path)
    convert.add_argument("target", metavar="OUT.gguf", type=user_path)
    _add_model_options(convert)
    evaluate = commands.add_parser("evaluate", help="measure quants against their base: perplexity, KLD, speed")
    _add_evaluate(evaluate)
    mix.add_parser(commands)
    inspect.add_parser(commands)
    state.add_parser(commands)
    chat.add_parser(commands)
    complete.add_parser(commands)
    status = commands.add_parser("status", help="list the jobs")
    resume = commands.add_parser("resume", help="continue every job that was interrupted")
    _add_run_options(resume)
    doctor = commands.add_parser("doctor", help="what is installed, threads, memory, disk")
    commands.add_parser("setup", help="build llama.cpp and make the texts, once")
    for one in (evaluate, status, doctor):
        one.add_argument("--json", action="store_true", help="one JSON object on stdout")
        one.add_argument("--out", type=user_path, help="folder for results (ggufy-out)")
    return parser


def _add_what_to_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--types", help="all, recommended, none, or Q4_K_M,Q6_K,… (recommended; with --target: none)")
    parser.add_argument(
        "--target", action="append", metavar="SIZE", help="a size to order: 1.2GB, 900MiB, 3.275bpw or mem4GB; several"
    )
    parser.add_argument(
        "--mode", choices=MODES, help="how much is measured for these (standard); without any: which sizes there are"
    )


def _add_how_to_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mix",
        choices=KINDS,
        default=RWKV,
        help="recipes: made for RWKV, or stock as of llama-quantize (%(default)s)",
    )
    parser.add_argument("--imatrix", default="auto", metavar="auto|none|FILE", help="importance matrix (%(default)s)")
    parser.add_argument(
        "--calibration",
        default="bundled",
        metavar="TEXT",
        help="text for the imatrix: a file, URL, Hub dataset, calibration_datav3 or bundled (%(default)s)",
    )
    parser.add_argument(
        "--chunks", type=int, default=DEFAULT_CHUNKS, help="chunks of 512 tokens to read of it, 0 = all (%(default)s)"
    )
    parser.add_argument(
        "--evaluate",
        action=argparse.BooleanOptionalAction,
        help="measure every quant against the base (the demo: yes, others: no)",
    )
    parser.add_argument(
        "--evaluation", default="bundled", metavar="TEXT", help="text for that, named as --calibration (%(default)s)"
    )
    parser.add_argument(
        "--evaluation-chunks", type=int, default=EVALUATION_CHUNKS, help="chunks of 512 tokens of it (%(default)s)"
    )


def _add_publishing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repo", metavar="OWNER/NAME", help="output repo on the Hub (your account, <Model>-GGUF)")
    parser.add_argument("--private", action="store_true", help="make that repo private, if it has to be made")
    parser.add_argument(
        "--keep-card", action="store_true", help="publish the model files only, beside a README.md of the repo's own"
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE.gguf", type=user_path, help="the unquantized model")
    parser.add_argument(
        "quants", metavar="QUANT.gguf", type=user_path, nargs="+", help="quants that were made from it"
    )
    parser.add_argument("--text", type=user_path, help="held-out text to measure on (made at set-up)")
    parser.add_argument(
        "--chunks", type=int, default=COMMAND_CHUNKS, help="chunks of 512 tokens to read, 0 = all (%(default)s)"
    )
    parser.add_argument("--speed", action=argparse.BooleanOptionalAction, default=True, help="measure speed (yes)")
    parser.add_argument("--threads", type=int, help="threads for the tools (one less than allowed)")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--outtype", choices=OUTTYPES, help="type of the base GGUF (f16)")
    parser.add_argument("--vocab", metavar="FILE", help="vocabulary of a checkpoint that is not a World model")
    parser.add_argument("--name", help="name of the model in file names and metadata (the source's file name)")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="threads for the tools (one less than allowed)")
    parser.add_argument("--out", type=user_path, help="folder for results (ggufy-out)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no progress")
    parser.add_argument(
        "--hub", choices=("local", "hf"), help="results in folders here, or in repos on the Hub (local)"
    )

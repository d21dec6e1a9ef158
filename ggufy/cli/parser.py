"""The words of the command line: commands and their options. What they do is in main.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ggufy import __version__
from ggufy.cli import (
    bin_files,
    chat,
    compare,
    complete,
    completion,
    gram,
    inspect,
    lint,
    mix,
    ollama,
    serve,
    state,
    verify,
)
from ggufy.cli.submit_options import add_submit_options
from ggufy.core.metrics import DEFAULT_CHUNKS as COMMAND_CHUNKS
from ggufy.jobs.options import BY_NAME, CONVERTING, OPTIONS, Kind, Option
from ggufy.system.settings import HUBS
from ggufy.system.user_paths import user_path


def build_parser() -> argparse.ArgumentParser:
    """What it parses has the command's name as `command`."""
    name = "ggufy" if Path(sys.argv[0]).stem == "ggufy" else "python -m ggufy"
    parser = argparse.ArgumentParser(prog=name, description="Turns language models into GGUF quants.")
    parser.add_argument("--version", action="version", version=f"ggufy {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    quantize = commands.add_parser("quantize", help="make quants of a model: GGUF, or files of rwkv.cpp")
    quantize.add_argument(
        "source",
        metavar="SOURCE",
        help="demo, a .pth, .safetensors or unquantized .gguf, a folder, [ms:]owner/repo[:file], or a pattern of some",
    )
    quantize.add_argument("--all", action="store_true", help="all models of the repo, one job each")
    _add_options(quantize, OPTIONS)
    _add_run_options(quantize)
    convert = commands.add_parser(
        "convert", help="convert one .pth, .safetensors or folder to an unquantized GGUF or file of rwkv.cpp"
    )
    convert.add_argument("source", metavar="SRC", type=user_path)
    convert.add_argument("target", metavar="OUT", type=user_path)
    _add_options(convert, (BY_NAME[name] for name in CONVERTING))
    upgrade = commands.add_parser("upgrade", help="write an RWKV-5 with a gate as an RWKV-6 checkpoint")
    upgrade.add_argument("source", metavar="IN.pth", type=user_path)
    upgrade.add_argument("target", metavar="OUT.pth", type=user_path)
    evaluate = commands.add_parser("evaluate", help="measure quants against their base: perplexity, KLD, speed")
    _add_evaluate(evaluate)
    compare.add_parser(commands)
    verify.add_parser(commands)
    mix.add_parser(commands)
    gram.add_parser(commands)
    inspect.add_parser(commands)
    watch = commands.add_parser("watch", help="wait for new models of a repo, and make GGUF quants of each")
    _add_watch(watch)
    submit = commands.add_parser(
        "submit", help="quantize on a machine of the Hub, as a Job that is paid by the minute"
    )
    submit.add_argument("source", metavar="SOURCE", help="demo, or [ms:]owner/repo[:file]")
    _add_options(submit, OPTIONS)
    add_submit_options(submit)
    state.add_parser(commands)
    chat.add_parser(commands)
    complete.add_parser(commands)
    serve.add_parser(commands)
    ollama.add_parser(commands)
    lint.add_parser(commands)
    status = commands.add_parser("status", help="list the jobs")
    resume = commands.add_parser("resume", help="continue every job that was interrupted")
    _add_run_options(resume)
    doctor = commands.add_parser("doctor", help="what is installed, threads, memory, disk")
    commands.add_parser("page", help="open the page, with the settings of the environment")
    completion.add_parser(commands)
    commands.add_parser("setup", help="build llama.cpp and make the texts, once")
    for one in (evaluate, status, doctor):
        one.add_argument("--json", action="store_true", help="one JSON object on stdout")
        one.add_argument("--out", type=user_path, help="folder for results (ggufy-out)")
    return parser


def _add_options(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Options of a job, by the names that `read_options` knows them by."""
    for option in options:
        more: dict[str, Any] = {"dest": option.name, "help": option.help, "default": option.default}
        match option.kind:
            case Kind.FLAG if option.default is None:
                more |= {"action": argparse.BooleanOptionalAction}
            case Kind.FLAG:
                more |= {"action": "store_true"}
            case Kind.NUMBER:
                more |= {"type": int}
            case Kind.REAL:
                more |= {"type": float, "metavar": option.metavar}
            case _ if option.repeats:
                more |= {"action": "append", "metavar": option.metavar, "default": []}
            case _:
                more |= {"choices": option.choices, "metavar": option.metavar}
        parser.add_argument(option.flag, **more)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", nargs="?", default="", help="owner/repo, owner/repo:*.pth (all that are followed)"
    )
    parser.add_argument("--every", default="6h", metavar="TIME", help="between looks: 30m, 6h, 1d (%(default)s)")
    parser.add_argument("--once", action="store_true", help="look once, make what is new, and end: for a scheduler")
    parser.add_argument("--existing", action="store_true", help="at first, also what is in the repo already")
    parser.add_argument("--remove", action="store_true", help="follow it no longer")
    _add_options(parser, (option for option in OPTIONS if option.name not in ("name", "repo_id")))
    _add_run_options(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    what = "the unquantized model: a .gguf, or a .bin of rwkv.cpp"
    parser.add_argument("base", metavar="BASE", type=user_path, help=what)
    parser.add_argument("quants", metavar="QUANT", type=user_path, nargs="+", help="quants that were made from it")
    parser.add_argument(
        "--text", help="held-out text to measure on, named as for quantize --evaluation (made at set-up)"
    )
    parser.add_argument(
        "--chunks", type=int, default=COMMAND_CHUNKS, help="chunks of 512 tokens to read, 0 = all (%(default)s)"
    )
    parser.add_argument("--speed", action=argparse.BooleanOptionalAction, default=True, help="measure speed (yes)")
    parser.add_argument("--threads", type=int, help="threads for the tools (one less than allowed)")
    what = "of a .bin: tokens to read (as many as in --chunks)"
    parser.add_argument("--limit", type=int, metavar="N", help=what)
    what = "of a .bin: first tokens whose loss does not count (0)"
    parser.add_argument("--ignore-first", type=int, metavar="N", help=what)
    bin_files.add_options(parser)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="threads for the tools (one less than allowed)")
    parser.add_argument("--out", type=user_path, help="folder for results (ggufy-out)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no progress")
    parser.add_argument(
        "--hub", choices=HUBS, help="results in folders here, in repos on the Hub, on ModelScope, or on both (local)"
    )

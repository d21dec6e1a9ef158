"""The words of the command line: commands and their options. What they do is in main.py."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ggufy import __version__
from ggufy.cli.submit_options import add_submit_options
from ggufy.core.metrics import DEFAULT_CHUNKS as COMMAND_CHUNKS
from ggufy.jobs.options import BY_NAME, CONVERTING, OPTIONS, Kind, Option
from ggufy.system.settings import HUBS
from ggufy.system.user_paths import user_path

HELP = {
    "quantize": "make quants of a model: GGUF, or files of rwkv.cpp",
    "convert": "convert one .pth, .safetensors or folder to an unquantized GGUF or file of rwkv.cpp",
    "upgrade": "write an RWKV-5 with a gate as an RWKV-6 checkpoint",
    "evaluate": "measure quants against their base: perplexity, KLD, speed",
    "compare": "set files of any models side by side, by what was measured of them",
    "verify": "make quants again from their base, and compare tensor by tensor",
    "mix": "make one GGUF of the size that you ask for, as good as can be",
    "gram": "collect covariances of a base's inputs, and its imatrix, from a text",
    "inspect": "what a source is, without downloading it",
    "watch": "wait for new models of a repo, and make GGUF quants of each",
    "submit": "quantize on a machine of the Hub, as a Job that is paid by the minute",
    "state": "make a tuned state a session file that llama.cpp begins with",
    "chat": "talk with a model in the terminal",
    "complete": "continue a text with a model",
    "serve": "answer requests of the OpenAI API with a model",
    "ollama": "write a Modelfile beside a GGUF, for Ollama",
    "lint": "compare what transformers and llama.cpp make of a chat template",
    "status": "list the jobs",
    "resume": "continue every job that was interrupted",
    "doctor": "what is installed, threads, memory, disk",
    "page": "open the page, with the settings of the environment",
    "completion": "print what a shell needs to complete commands and options",
    "setup": "build llama.cpp and make the texts, once",
}


def build_parser(arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """What it parses has the command's name as `command`. With `arguments`, only the command that they name has its
    options: what those need takes most of the time that a short command has."""
    name = "ggufy" if Path(sys.argv[0]).stem == "ggufy" else "python -m ggufy"
    parser = argparse.ArgumentParser(prog=name, description="Turns language models into GGUF quants.")
    parser.add_argument("--version", action="version", version=f"ggufy {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    named = None if arguments is None else next((word for word in arguments if not word.startswith("-")), "")
    for command, what in HELP.items():
        added = commands.add_parser(command, help=what)
        if named in (None, command):
            _ADD.get(command, _add_own)(added)
    return parser


def module_of(command: str) -> Any:
    """The module of this package with the command's name."""
    return importlib.import_module(f"ggufy.cli.{command}")


def _add_own(parser: argparse.ArgumentParser) -> None:
    module_of(parser.prog.rpartition(" ")[2]).add_options(parser)


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="demo, a .pth, .safetensors or unquantized .gguf, a folder, [ms:]owner/repo[:file], or a pattern of some",
    )
    parser.add_argument("--all", action="store_true", help="all models of the repo, one job each")
    _add_options(parser, OPTIONS)
    _add_run_options(parser)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", type=user_path)
    parser.add_argument("target", metavar="OUT", type=user_path)
    _add_options(parser, (BY_NAME[name] for name in CONVERTING))


def _add_upgrade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN.pth", type=user_path)
    parser.add_argument("target", metavar="OUT.pth", type=user_path)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="demo, or [ms:]owner/repo[:file]")
    _add_options(parser, OPTIONS)
    add_submit_options(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--out", type=user_path, help="folder for results (ggufy-out)")


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    """The command has no options."""


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
    module_of("bin_files").add_options(parser)
    _add_report(parser)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="threads for the tools (one less than allowed)")
    parser.add_argument("--out", type=user_path, help="folder for results (ggufy-out)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no progress")
    parser.add_argument(
        "--hub", choices=HUBS, help="results in folders here, in repos on the Hub, on ModelScope, or on both (local)"
    )


_ADD: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "quantize": _add_quantize,
    "convert": _add_convert,
    "upgrade": _add_upgrade,
    "evaluate": _add_evaluate,
    "watch": _add_watch,
    "submit": _add_submit,
    "status": _add_report,
    "resume": _add_run_options,
    "doctor": _add_report,
    "page": _add_nothing,
    "setup": _add_nothing,
}

"""`python -m ggufy complete MODEL -p TEXT`: continues a text, and shows what comes as it comes. The model is a
GGUF, or a file of rwkv.cpp."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ggufy.cli import bin_files
from ggufy.cli import state as state_command
from ggufy.cli.terminal import stoppable
from ggufy.core.errors import UsageError
from ggufy.llama.chat.messages import clean
from ggufy.llama.chat.options import ChatOptions, Model
from ggufy.llama.chat.process import CompletionProcess
from ggufy.llama.install import Llama
from ggufy.rwkvcpp.backend import RwkvcppCompletion, read_model
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

_ESCAPED = re.compile(r"\\([nrt\\])")
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
_LIMITS = {  # both ends included
    "length": (1, 1 << 20),
    "temp": (0.0, 10.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1 << 20),
    "presence": (-2.0, 2.0),
    "frequency": (-2.0, 2.0),
    "repeat_penalty": (0.1, 10.0),
    "seed": (0, (1 << 32) - 2),  # the last one stands for a random seed
    "threads": (1, 4096),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("model", metavar="MODEL", type=user_path, help="a .gguf, or a .bin of rwkv.cpp")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("-p", "--prompt", metavar="TEXT", help=r"the text to continue; \n in it is a new line")
    text.add_argument("--file", type=user_path, metavar="FILE", help="a file with the text to continue, as it is")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help=r"end before this text, with \n as in -p; several"
    )
    add_sampling(parser, presence=0.0, frequency=0.0)
    state_command.add_option(parser)
    bin_files.add_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, when all has come")


def add_sampling(parser: argparse.ArgumentParser, *, presence: float, frequency: float) -> None:
    """Adds the options of how tokens are chosen."""
    known = ChatOptions()

    def add(*names: str, kind: type, default: float | None, what: str) -> None:
        parser.add_argument(*names, type=kind, default=default, metavar="N", help=f"{what} (%(default)s)")

    add("-n", "--length", kind=int, default=known.length, what="most tokens that come")
    add("--temp", kind=float, default=known.temperature, what="temperature; 0: always the likeliest token")
    add("--top-p", kind=float, default=known.top_p, what="the likeliest tokens that together have this probability")
    add("--top-k", kind=int, default=known.top_k, what="the likeliest tokens, 0 = all")
    add("--presence", kind=float, default=presence, what="penalty for a token that the last 64 have")
    add("--frequency", kind=float, default=frequency, what="penalty for each time that they have it")
    add("--repeat-penalty", kind=float, default=known.repeat, what="what the logits of the last 64 are divided by")
    parser.add_argument("--seed", type=int, metavar="N", help="the same text again (another one each time)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (one less than allowed)")


def sampling(args: argparse.Namespace) -> ChatOptions:
    """What was asked for. Raises UsageError for a number that makes no sense."""
    for name, (low, high) in _LIMITS.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise UsageError("{name} must be a number from {low} to {high}.", name=option, low=low, high=high)
    return ChatOptions(
        length=args.length,
        temperature=args.temp,
        top_p=args.top_p,
        top_k=args.top_k,
        presence=args.presence,
        frequency=args.frequency,
        repeat=args.repeat_penalty,
        seed=args.seed,
    )


def show(piece: str) -> None:
    """Writes a piece of a model's text at once; a terminal gets no control characters from it."""
    sys.stdout.write(clean(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> int:
    """Continues the text; gives the exit code."""
    options = sampling(args)
    text = _unescaped(args.prompt) if args.file is None else _content(args.file)
    if not clean(text):
        raise UsageError("there is no text to continue: give one with -p or --file.")
    options = replace(options, stops=tuple(map(_unescaped, args.stop)))
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(stoppable())
        process = _process(args, options, settings, get_llama, stack)
        come = ""
        for piece in stack.enter_context(contextlib.closing(process.say(text, stopped=stopped.is_set))):
            come += piece
            if not args.json:
                show(piece)
    if args.json:
        speeds = dict(zip(("prompt_tps", "generation_tps"), process.speeds or (None, None), strict=True))
        print(json.dumps({"text": come, "end": process.end or "interrupted"} | speeds, ensure_ascii=False))
    elif not come.endswith("\n"):
        show("\n")
    if stopped.is_set() and not process.end:
        print("ggufy: stopped.", file=sys.stderr)
        return 1
    return 0


def _process(
    args: argparse.Namespace,
    options: ChatOptions,
    settings: Settings,
    get_llama: Callable[[Settings], Llama],
    stack: contextlib.ExitStack,
) -> CompletionProcess | RwkvcppCompletion:
    """What continues the text, until the stack is closed."""
    threads = resources.tool_threads(args.threads, settings.threads)
    starter = stack.enter_context(ThreadPoolExecutor(1))
    process: CompletionProcess | RwkvcppCompletion
    if bin_files.given(args):
        extra = bin_files.words(args, settings)
        model = read_model(args.model)
        process = RwkvcppCompletion(model, options, threads=threads, starter=starter, extra=extra)
    else:
        model = Model.read(args.model)
        state = stack.enter_context(state_command.opened_state(args.state, args.model, settings, get_llama))
        options = replace(options, state=state)
        process = CompletionProcess(get_llama(settings), model, options, threads=threads, starter=starter)
    stack.callback(process.close)
    return process


def _unescaped(text: str) -> str:
    """With new lines and tabs where they were written with a backslash, as llama.cpp reads them."""
    return _ESCAPED.sub(lambda match: _LETTERS[match[1]], text)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("{path} is not UTF-8: save it as UTF-8.", path=path) from error
    except OSError as error:
        raise UsageError(
            "{path} cannot be read ({reason}): check the path.", path=path, reason=error.strerror
        ) from error

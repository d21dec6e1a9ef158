"""`python -m ggufy chat MODEL`: a conversation in the terminal, by the programs that the page's chat uses."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from ggufy.cli import bin_files
from ggufy.cli import state as state_command
from ggufy.cli.complete import add_sampling, sampling, show
from ggufy.cli.talk import CommandTalk, Talk
from ggufy.cli.terminal import stoppable
from ggufy.core.errors import UsageError
from ggufy.llama.chat.messages import clean
from ggufy.llama.chat.options import ChatOptions, Model
from ggufy.llama.chat.process import ChatProcess, LlamaProcess, StateChatProcess
from ggufy.llama.install import Llama
from ggufy.models.chat_format import FORMATS, OFF
from ggufy.rwkvcpp.backend import RwkvcppChat, read_model
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

_HINT = "Ctrl-C ends a reply, Ctrl-D the conversation; a line that ends in a backslash goes on in the next."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("model", metavar="MODEL", type=user_path, help="a .gguf, or a .bin of rwkv.cpp")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt (none)")
    modes = max((chat.modes for chat in FORMATS.values()), key=len)
    parser.add_argument("--think", choices=modes, default=OFF, help="how much to think, if it can (%(default)s)")
    add_sampling(parser, presence=0.4, frequency=0.4)
    state_command.add_option(parser)
    bin_files.add_options(parser)


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> int:
    """Talks until the input ends; gives the exit code."""
    options = dataclasses.replace(sampling(args), system=clean(args.system).strip())
    with contextlib.ExitStack() as stack:
        talk = _talk(args, options, settings, get_llama, stack)
        with contextlib.suppress(KeyboardInterrupt):  # not while a reply comes, which it ends
            for message in _messages():
                with stoppable() as stopped, contextlib.closing(talk.answer(message, stopped.is_set)) as pieces:
                    _show(pieces)
        if _asks():
            print(file=sys.stderr)
    return 0


def _talk(
    args: argparse.Namespace,
    options: ChatOptions,
    settings: Settings,
    get_llama: Callable[[Settings], Llama],
    stack: contextlib.ExitStack,
) -> Talk:
    """A conversation with the model, whose processes end with the stack."""
    starter = stack.enter_context(ThreadPoolExecutor(1))
    threads = resources.tool_threads(args.threads, settings.threads)
    if bin_files.given(args):
        extra, read = bin_files.words(args, settings), read_model(args.model)

        def served() -> RwkvcppChat:
            process = RwkvcppChat(read, options, threads=threads, starter=starter, extra=extra)
            stack.callback(process.close)
            return process

        return CommandTalk(served, args.think)
    model = Model.read(args.model)
    session = stack.enter_context(state_command.opened_state(args.state, args.model, settings, get_llama))
    options = dataclasses.replace(options, state=session)
    kind: type[LlamaProcess] = StateChatProcess if session else ChatProcess
    llama = get_llama(settings)

    def start() -> LlamaProcess:
        process = kind(llama, model, options, threads=threads, starter=starter)
        stack.callback(process.close)
        return process

    return Talk(start, args.think)


def _show(pieces: Iterable[str]) -> None:
    """Shows a reply as it comes. A command that cannot be done does not end the conversation."""
    try:
        for piece in pieces:
            show(piece)
    except UsageError as error:
        if not _asks():
            raise
        print(f"ggufy: {error}", file=sys.stderr)
    show("\n")


def _asks() -> bool:
    """True for a person at a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def _messages() -> Iterator[str]:
    """What is typed, one message after the other, until the end of the input."""
    if asks := _asks():
        print(_HINT, file=sys.stderr)
    message = ""
    while True:
        if asks:
            print("… " if message else "> ", end="", flush=True, file=sys.stderr)
        line = sys.stdin.readline() if sys.stdin is not None else ""
        message += line.removesuffix("\n")
        if line and message.endswith("\\"):
            message = message[:-1] + "\n"
            continue
        if clean(message).strip():
            yield message
        if not line:
            return
        message = ""

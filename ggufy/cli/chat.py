"""`python -m ggufy chat MODEL.gguf`: a conversation in the terminal, by the programs that the page's chat uses."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from ggufy.cli import state as state_command
from ggufy.cli.complete import add_sampling, sampling, show
from ggufy.cli.terminal import stoppable
from ggufy.llama.chat.backend import ChatBackend
from ggufy.llama.chat.messages import clean
from ggufy.llama.chat.options import Model
from ggufy.llama.chat.process import ChatProcess, StateChatProcess
from ggufy.llama.install import Llama
from ggufy.models.chat_format import FORMATS, OFF
from ggufy.system import resources
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

_HINT = "Ctrl-C ends a reply, Ctrl-D the conversation; a line that ends in a backslash goes on in the next."


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to those of the program."""
    parser = commands.add_parser("chat", help="talk with a model in the terminal")
    parser.add_argument("model", metavar="MODEL.gguf", type=user_path)
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt (none)")
    modes = max((chat.modes for chat in FORMATS.values()), key=len)
    parser.add_argument("--think", choices=modes, default=OFF, help="how much to think, if it can (%(default)s)")
    add_sampling(parser, presence=0.4, frequency=0.4)
    state_command.add_option(parser)


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> int:
    """Talks until the input ends; gives the exit code."""
    options, model = sampling(args), Model.read(args.model)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(state_command.opened_state(args.state, args.model, settings, get_llama))
        options = dataclasses.replace(options, system=clean(args.system).strip(), state=session)
        kind: type[ChatBackend] = StateChatProcess if session else ChatProcess
        llama, starter = get_llama(settings), stack.enter_context(ThreadPoolExecutor(1))
        threads = resources.tool_threads(args.threads, settings.threads)

        def start() -> ChatBackend:
            process = kind(llama, model, options, threads=threads, starter=starter)
            stack.callback(process.close)
            return process

        with contextlib.suppress(KeyboardInterrupt):  # not while a reply comes, which it ends
            _talk(start, args.think)
        if _asks():
            print(file=sys.stderr)
    return 0


def _asks() -> bool:
    """True for a person at a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def _talk(start: Callable[[], ChatBackend], think: str) -> None:
    """Answers one message after the other; what is interrupted stays in the conversation as far as it came, what was
    thought before an answer does not."""
    said: list[str] = []
    process = start()
    for message in _messages():
        if not process.alive:
            process = start()
        reply = ""
        with stoppable() as stopped:
            pieces = process.say(message, said, think=think, stopped=stopped.is_set)
            with contextlib.closing(pieces):
                for piece in pieces:
                    reply += piece
                    show(piece)
        show("\n")
        answer = process.model.chat.split(reply, think, ended=True)[1] if process.model.chat else reply
        if answer.strip():
            said += [message, answer]


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

"""`ggufy completion SHELL`: what a shell loads to complete commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import shtab

from ggufy.system.user_paths import user_path

SHELLS = ("bash", "zsh", "tcsh")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to those of the program."""
    parser = commands.add_parser("completion", help="print what a shell needs to complete commands and options")
    parser.add_argument("shell", choices=SHELLS, help='bash: eval "$(ggufy completion bash)"')


def run(args: argparse.Namespace, build_parser: Callable[[], argparse.ArgumentParser]) -> int:
    """Prints the script, for the installed program."""
    parser = build_parser()
    parser.prog = "ggufy"
    for action in _actions(parser):
        if action.type is user_path or action.dest == "source":
            setattr(action, "complete", shtab.FILE)  # noqa: B010 - an attribute that argparse does not know
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _actions(one)

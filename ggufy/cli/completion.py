"""`ggufy completion SHELL`: what a shell loads to complete commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import shtab

from ggufy.cli.parser import build_parser
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

SHELLS = ("bash", "zsh", "tcsh")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("shell", choices=SHELLS, help='bash: eval "$(ggufy completion bash)"')


def run(args: argparse.Namespace, settings: Settings) -> int:
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

"""What the README says is what the program does."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

from ggufy import demo
from ggufy.cli.main import build_parser
from ggufy.system.settings import VARIABLES
from tools import readme

TEXT = readme.README.read_text(encoding="utf-8")
ROOT = Path(__file__).parent.parent


def test_tables_are_up_to_date() -> None:
    assert readme.rendered(TEXT) == TEXT, "run python -m tools.readme"


def test_every_setting_is_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)` \|", readme.settings_table(), re.MULTILINE) == list(VARIABLES)


def test_every_command_shown_is_accepted() -> None:
    commands = re.findall(r"^python -m ggufy ([^\n]+)", TEXT, re.MULTILINE)
    assert len(commands) >= 8
    for command in commands:
        build_parser().parse_args(shlex.split(command, comments=True))  # exits with 2 if it is not


def test_every_command_there_is_is_shown() -> None:
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for command in set(subparsers.choices) - {"setup"}:
        assert f"python -m ggufy {command}" in TEXT, command


def test_make_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)`|^make (\w+)$", TEXT, re.MULTILINE)):
        name = target[0] or target[1]
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_files_named_exist() -> None:
    for name in re.findall(r"`((?:ggufy|tools|tests)/[\w./]*)`|\]\((docs/[\w.]+)\)", TEXT):
        assert (ROOT / (name[0] or name[1])).exists(), name


def test_the_demo_is_described_truly() -> None:
    facts = json.loads(demo.FACTS.read_text(encoding="utf-8"))
    flat = " ".join(TEXT.split())
    assert f"{facts['parameters'] / 1e6:.1f} million parameters" in flat
    assert f"is {facts['heldout_loss']:.2f} nats" in flat


def test_no_output_is_missing() -> None:
    assert not re.search(r"^(DEMO|TEST|BENCH) |DEMO [A-Z]+", TEXT, re.MULTILINE)

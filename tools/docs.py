"""Writes into the documents what the code says: `python -m tools.docs`. A test compares them.

Made anew is what stands between `<!-- name -->` and `<!-- end -->` (see BLOCKS); the job record that is an example, in
today's form; and in a Chinese twin whatever the programs print, which it has from the English document.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks import ATTACKS, adapters, checkpoints, ggufs, rwkvcpp, safetensors
from ggufy.cli.parser import build_parser
from ggufy.core import errors
from ggufy.core.catalog import QUANT_TYPES
from ggufy.core.job import Status
from ggufy.core.job_record import from_json, to_json
from ggufy.jobs.options import OPTIONS
from ggufy.records.patience import Verdict, verdict
from ggufy.system import settings
from ggufy.ui.i18n import TEXTS

assert adapters and checkpoints and ggufs and rwkvcpp and safetensors  # they register what they have
ROOT = Path(__file__).parent.parent
DOCUMENTS = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
TWIN = ".zh.md"  # in place of `.md`: the same in Chinese
STATUS_WORDS = {
    Status.QUEUED: "waits its turn",
    Status.RUNNING: "being worked on; or interrupted: the page goes on by itself, the command line with `resume`",
    Status.DONE: "every file is there",
    Status.FAILED: "an error ended it; run it again when the cause is gone, finished files are kept",
    Status.CANCELLED: "its user ended it; finished files are kept",
    Status.PAUSED: "its user stopped it for now; it goes on when it is resumed, not by itself",
}
# What the rule of patience.py does not say: these are caught before it is asked.
_CAUGHT = {
    errors.BusyError: "queued again on the page; in a terminal the command ends",
    errors.Cancelled: "cancelled or paused, as its user said; at a shutdown it stays running",
    errors.CannotStream: "goes on: the source is downloaded first",
    errors.StaleParent: "goes on: what has changed is read, and the write is made again",
}
_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
_RECORD = re.compile(r'^```json\n(\{\n  "version".*?)^```$', re.DOTALL | re.MULTILINE)
_OUTPUT = re.compile(r"^```text\n.*?^```$", re.DOTALL | re.MULTILINE)


def quant_types() -> str:
    """The table of the 29 quant types."""
    lines = ["| quant type | bits per weight¹ | needs an imatrix | recommended | advice |", "|---|---|---|---|---|"]
    for row in QUANT_TYPES:
        needs, recommended = ("yes" if flag else "" for flag in (row.needs_imatrix, row.recommended))
        lines.append(f"| {row.name} | {row.bits:g} | {needs} | {recommended} | {row.advice} |")
    return "\n".join(lines)


def settings_table() -> str:
    """The table in settings.py's docstring, with code marks."""
    rows = [line for line in (settings.__doc__ or "").splitlines() if line.startswith("|")]
    lines = []
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if set(cells[0]) == {"-"}:
            lines.append("|---" * len(cells) + "|")
        else:
            first = cells[0] if cells[0] == "variable" else f"`{cells[0]}`"
            lines.append(f"| {first} | {' | '.join(cells[1:])} |")
    return "\n".join(lines)


def statuses() -> str:
    """What each status of a job means."""
    return "\n".join(f"- **{status.value}**: {STATUS_WORDS[status]}" for status in Status)


def error_table() -> str:
    """Every error with what it makes of a job, and the word that its record has for it."""
    lines = ["| error | what happened | the job | `cause` |", "|---|---|---|---|"]
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.GgufyError) and kind is not errors.GgufyError:
            error = kind.__new__(kind)
            becomes = _CAUGHT.get(kind) or verdict(error).value
            lasts = kind not in _CAUGHT and verdict(error) in (Verdict.PAUSES, Verdict.FAILS)
            word = errors.cause_of(error) if lasts else ""
            what = (kind.__doc__ or "").partition(";")[0].rstrip(".")
            lines.append(f"| `{kind.__name__}` | {what} | {becomes} | {word} |")
    return "\n".join(lines)


def attack_table() -> str:
    """The hostile files that the tests hand to the readers."""
    rows = [f"| `{attack.name}` | {_in_a_cell(attack.tries)} |" for attack in ATTACKS.values()]
    return "\n".join(["| file | what it tries |", "|---|---|", *rows])


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    found = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def options(command: str) -> str:
    """What a command takes: its arguments, then its options."""
    parser = commands()[command]
    formatter = parser._get_formatter()
    rows = [
        f"| {_in_a_cell(_taken(action))} | {_in_a_cell(formatter._expand_help(action) if action.help else '')} |"
        for action in parser._actions[1:]  # the first is --help
    ]
    return "\n".join(["| takes | meaning |", "|---|---|", *rows]) if rows else "It takes nothing."


def _taken(action: argparse.Action) -> str:
    """An argument or option as one types it."""
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return ", ".join(f"`{name}`" for name in action.option_strings)
    value = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.rpartition("_")[2].upper()
    return f"`{' '.join([*action.option_strings, str(value)])}`"


def fields(name: str) -> str:
    """The fields of a dataclass, given as `module.Class`, with the comments that stand beside or above them."""
    module, _, cls = name.rpartition(".")
    record = getattr(importlib.import_module(module), cls)
    notes = _comments(inspect.getsource(record))
    lines = ["| field | type | if left out | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(record):
        default = (
            ""
            if field.default is dataclasses.MISSING
            else f"`{json.dumps(field.default, default=dataclasses.asdict)}`"
        )
        cells = (f"`{field.name}`", _json_type(str(field.type)), default, _in_a_cell(notes.get(field.name, "")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _comments(source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    above: list[str] = []
    for line in source.splitlines():
        if alone := re.fullmatch(r" {4}# (.*)", line):
            above.append(alone[1])
        elif field := re.fullmatch(r" {4}(\w+): [^#]*(?:# (.*))?", line):
            found[field[1]] = " ".join([*above, *filter(None, [field[2]])])
            above = []
    return found


def _in_a_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _json_type(annotation: str) -> str:
    """A field's type as JSON has it."""
    inner = annotation.removesuffix(" | None")
    if items := re.fullmatch(r"tuple\[(\w+), \.\.\.\]", inner):
        shown = f"list of {_TYPES.get(items[1], items[1])}"
    else:
        shown = "object" if inner.startswith("Mapping[") else _TYPES.get(inner, inner)
    return f"{shown} or null" if inner != annotation else shown


def job_options() -> str:
    """The options of a job, and what each place calls them."""
    lines = ["| command line | page | API | | visitors | decides bytes |", "|---|---|---|---|---|---|"]
    texts = TEXTS["en"]
    for option in OPTIONS:
        page = texts.get(f"{option.page}_kind") or texts[option.page] if option.page else ""
        meaning = option.help.replace("%(default)s", str(option.default)).replace("|", "\\|")
        marks = ("yes" if mark else "" for mark in (option.visitors, option.bytes))
        lines.append(f"| `{option.flag}` | {page} | `{option.name}` | {meaning} | {' | '.join(marks)} |")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[..., Any]] = {
    "quant types": quant_types,
    "settings": settings_table,
    "statuses": statuses,
    "errors": error_table,
    "attacks": attack_table,
    "job options": job_options,
    "options": options,  # <!-- options: command -->
    "fields": fields,  # <!-- fields: module.Class -->
}
_BLOCK = re.compile(rf"(<!-- ((?:{'|'.join(BLOCKS)})(?:: [\w.]+)?) -->\n).*?(<!-- end -->)", re.DOTALL)


def block(name: str) -> str:
    """What belongs into the block of this name. Raises KeyError if there is no such block."""
    kind, _, argument = name.partition(": ")
    return str(BLOCKS[kind](*filter(None, [argument])))


def english_of(path: Path) -> Path | None:
    """The document that this one is the Chinese twin of; None if it is none."""
    return path.with_name(path.name.removesuffix(TWIN) + ".md") if path.name.endswith(TWIN) else None


def rendered(path: Path) -> str:
    """A document as it should be."""
    text = _BLOCK.sub(lambda found: f"{found[1]}{block(found[2])}\n{found[3]}", path.read_text(encoding="utf-8"))
    text = _RECORD.sub(lambda found: f"```json\n{to_json(from_json(found[1]))}```", text)
    if english := english_of(path):
        outputs = iter(_OUTPUT.findall(english.read_text(encoding="utf-8")))
        text = _OUTPUT.sub(lambda found: next(outputs, found[0]), text)
    return text


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(rendered(document), encoding="utf-8")

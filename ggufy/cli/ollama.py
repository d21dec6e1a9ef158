"""`python -m ggufy ollama MODEL.gguf`: a Modelfile beside a GGUF, and the commands that make a model of it."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

from ggufy.core.errors import UsageError
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.models.chat_format import format_of_gguf, ollama_files
from ggufy.models.ollama import family_files, family_in, modelfile
from ggufy.system.files import write_text
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("model", metavar="MODEL.gguf", type=user_path)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Writes it; gives the exit code."""
    path: Path = args.model
    if not path.name.isprintable():  # a line of its name would be a line of the Modelfile
        raise UsageError(
            "the name {name} has characters that cannot be printed: rename the file.", name=repr(path.name)
        )
    files, form = files_for(path, read_head(path))
    target, text = path.with_suffix(".Modelfile"), modelfile(path.name, files)
    if target.exists() and target.read_text(encoding="utf-8") != text:
        raise UsageError("{path} is there already, and says something else: move it away first.", path=target)
    write_text(target, text)
    if not form:
        print(f"ggufy: no template of {path.name} is known here: Ollama looks for one itself.", file=sys.stderr)
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "model"
    print(f"{target}  {form or 'without a template'}")
    print(f"ollama create {name} -f {shlex.quote(str(target))}")
    print(f"ollama run {name}")
    return 0


def files_for(path: Path, head: GgufHead) -> tuple[dict[str, str], str]:
    """What Ollama is to know, and the name of the form that it was found to be; none where nothing fits."""
    if chat := format_of_gguf(head.metadata, path.name):
        return ollama_files(chat), chat.name
    family = family_in(path, head)
    return (family_files(family), family.name) if family else ({}, "")

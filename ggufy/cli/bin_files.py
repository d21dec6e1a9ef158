"""What the commands that run models have in common for files of rwkv.cpp: their options, and which files they are."""

from __future__ import annotations

import argparse
from pathlib import Path

from ggufy.core.errors import UsageError
from ggufy.formats.rwkvcpp import is_rwkvcpp
from ggufy.llama.install import Llama, find
from ggufy.rwkvcpp.backend import serve_words
from ggufy.rwkvcpp.tokenizer import AUTO, PILE, WORLD
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

_ONLY_HERE = ("tokenizer", "library", "limit", "ignore_first")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those that only these files need."""
    what = "of a .bin: auto, 20B (the Pile's), world, or a tokenizers JSON or RWKV vocabulary (auto)"
    parser.add_argument("--tokenizer", metavar="WHICH", help=what)
    what = "run a .bin with this library of rwkv.cpp, instead of ggufy's own engine"
    parser.add_argument("--library", metavar="FILE", type=user_path, help=what)


def given(args: argparse.Namespace) -> bool:
    """Whether the model (or base) is such a file. Raises UsageError for an option that does not go with what it is."""
    path: Path = args.model if "model" in args else args.base
    found = path.is_file() and is_rwkvcpp(path)
    if found and getattr(args, "state", None):
        raise UsageError("--state is for GGUF files: rwkv.cpp's have no file for a state.")
    for name in () if found else _ONLY_HERE:
        if getattr(args, name, None) is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                "{option} is for files of rwkv.cpp, and {path} is none: leave it out.", option=option, path=path
            )
    if args.library is not None and not args.library.is_file():
        raise UsageError("the library {path} does not exist: check the path of --library.", path=args.library)
    return found


def tokenizer(args: argparse.Namespace) -> str:
    """The wish, with an absolute path: it is read by a process in another folder."""
    wish = args.tokenizer or AUTO
    return wish if wish in (AUTO, PILE, WORLD) else str(user_path(wish).absolute())


def llama_of(settings: Settings) -> Llama | None:
    """The llama.cpp whose kernels are used, if it was built: these files do not need it."""
    return find(settings.cache, settings.llama_dir)


def words(args: argparse.Namespace, settings: Settings) -> list[str]:
    """What a process that runs the model is told."""
    llama = llama_of(settings)
    return serve_words(tokenizer=tokenizer(args), ggml_folder=llama.bin if llama else None, library=args.library)

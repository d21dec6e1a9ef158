"""`python -m ggufy state IN MODEL.gguf [OUT.bin]`: a tuned state becomes a session file that llama.cpp begins with."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ggufy.core.errors import UsageError
from ggufy.core.words import human_size
from ggufy.formats.session import SUFFIX
from ggufy.llama.install import Llama
from ggufy.llama.states import check_state, save_state, shape_of
from ggufy.system.files import chosen_with
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("source", metavar="IN", type=user_path, help="a .pth or .st with att.time_state of each block")
    parser.add_argument(
        "model", metavar="MODEL.gguf", type=user_path, help="a GGUF of the model that it was tuned for"
    )
    where = f"what it becomes (beside the model, under IN's name with {SUFFIX})"
    parser.add_argument("target", metavar="OUT.bin", type=user_path, nargs="?", help=where)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names a state to begin with."""
    what = "begin from this tuned state: a .pth, a .st, or what the command state has made; it is never written to"
    parser.add_argument("--state", metavar="FILE", type=user_path, help=what)


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> str:
    """Makes the file; what goes to stdout."""
    target: Path = args.target or args.model.with_name(args.source.stem + SUFFIX)
    chosen_with(target.parent, "OUT.bin")
    if any(target.exists() and path.exists() and target.samefile(path) for path in (args.source, args.model)):
        raise UsageError("{path} would be written over: give another OUT.bin.", path=target)
    _save(args.source, args.model, target, settings, get_llama)
    return f"{target}  {human_size(target.stat().st_size)}"


@contextlib.contextmanager
def opened_state(
    source: Path | None, model: Path, settings: Settings, get_llama: Callable[[Settings], Llama]
) -> Iterator[Path | None]:
    """The session file of what `--state` names, made for as long as the block lasts if it is a tuned state."""
    if source is None:
        yield None
    elif source.suffix == ".bin":
        check_state(source, model)
        yield source
    else:
        with tempfile.TemporaryDirectory(prefix="ggufy-state-") as folder:
            session = Path(folder) / f"made{SUFFIX}"
            _save(source, model, session, settings, get_llama)
            yield session


def _save(source: Path, model: Path, target: Path, settings: Settings, get_llama: Callable[[Settings], Llama]) -> None:
    from ggufy.models.tuned_state import read_tuned_state  # noqa: PLC0415 - loads torch, which other commands do without

    shape_of(model)
    save_state(read_tuned_state(source), source.name, model, target, get_llama(settings))

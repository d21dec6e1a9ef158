"""`python -m ggufy compare PLACE…`: files of any models side by side, by what was measured of them."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_uppercase

from ggufy.cli.terminal import stoppable, table
from ggufy.cli.verify import beside, published
from ggufy.core.comparison import COLUMNS, ComparedFile, Group, apart, grouped, thread_counts, to_csv
from ggufy.core.errors import UsageError
from ggufy.core.metrics import memory_needed
from ggufy.jobs.compared import in_folder, in_repo, picture, said
from ggufy.llama.perplexity import SCORED
from ggufy.system.files import partial
from ggufy.system.settings import Settings
from ggufy.system.user_paths import is_there, user_path

_HEADS = {"kld": "KLD", "ppl": "PPL", "ppl_ratio": "PPL ratio", "same_top": "same top p"}
_HEADS |= {"prompt": "prompt t/s", "speed": "generation t/s"}
_APART = {"base": "against other bases", "text": "over other texts", "tokens": "over other numbers of tokens"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    what = "a folder of quants, a .gguf or .bin in one, or [ms:]owner/repo[:file.gguf]"
    parser.add_argument("places", metavar="PLACE", nargs="+", help=what)
    parser.add_argument("--csv", type=user_path, metavar="FILE", help="write the table there, with all digits")
    parser.add_argument("--png", type=user_path, metavar="FILE", help="write the plot there, size against KLD")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--out", type=user_path, help="folder of results, with what was measured (ggufy-out)")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Prints a table for each group of files that can be compared, and what to run for what is missing."""
    files: list[ComparedFile] = []
    folders: dict[ComparedFile, Path] = {}
    with stoppable() as stopped:
        for place in args.places:
            for file, folder in _found(place, settings, stopped.is_set):
                folders |= {file: folder} if folder else {}
                files += [file] if file not in files else []
    groups = grouped(files)
    if args.json:
        print(json.dumps({"groups": [_record(group) for group in groups]}, indent=2, ensure_ascii=False))
    else:
        print("\n".join([*report(groups), *missing(files, folders)]))
    if args.csv:
        with partial(args.csv) as part:
            part.write_text(to_csv(groups), encoding="utf-8")
    if args.png:
        drawn = picture(groups)
        with partial(args.png) as part:
            part.write_bytes(drawn)
    return 0


def _found(text: str, settings: Settings, stopped: Callable[[], bool]) -> Iterator[tuple[ComparedFile, Path | None]]:
    """The files of a place, with the folder that they lie in here."""
    path = user_path(text)
    if is_there(path):
        folder, only = (path, "") if path.is_dir() else (path.parent, path.name)
        files = in_folder(folder, out=settings.out, only=only)
        if not files:
            raise UsageError("{place} holds no model to compare: give a folder with quants, or a .gguf.", place=path)
        yield from ((file, folder) for file in files)
    elif published(text):
        repo = in_repo(text, out=settings.out, token=settings.hf_token, stopped=stopped)
        yield from ((file, None) for file in repo)
    else:
        raise UsageError("{place} is not there: give a folder, a file, or owner/repo on the Hub.", place=path)


def report(groups: Sequence[Group]) -> list[str]:
    """A table for each group, and why they are apart."""
    places = {file.place for group in groups for file, _ in group.files}
    lines: list[str] = []
    for name, group in zip(_names(), groups, strict=False):
        columns = [one for one in COLUMNS if any(COLUMNS[one](file, figures) for file, figures in group.files)]
        head = [*(["in"] if len(places) > 1 else []), "file", *(_HEADS.get(one, one) for one in columns)]
        rows = [
            [
                *([file.place] if len(places) > 1 else []),
                file.file,
                *(COLUMNS[one](file, figures) for one in columns),
            ]
            for file, figures in group.files
        ]
        if group.basis:
            title = f"against {said(group.basis)}; ± is one standard error, of speeds the deviation between runs"
        else:
            title = "not measured"
        lines += [f"{name}  {title}" if len(groups) > 1 else title]
        right = tuple(range(len(head) - len(columns), len(head)))
        lines += [table(head, rows, right=right), ""]
    return lines + _remarks(groups)


def _names() -> Iterator[str]:
    """A to Z, then AA and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(ascii_uppercase, repeat=length))


def _remarks(groups: Sequence[Group]) -> list[str]:
    told = []
    if why := apart(groups):
        names = [name for name, group in zip(_names(), groups, strict=False) if group.basis]
        reasons = " and ".join(_APART[one] for one in why)
        told.append(
            f"KLD, PPL ratio and same top p of {', '.join(names)} cannot be compared with each other: they were "
            f"measured {reasons}."
        )
    if len(threads := thread_counts(file for group in groups for file, _ in group.files)) > 1:
        counts = " and ".join(map(str, sorted(threads)))
        told.append(f"Speeds cannot be compared: they were measured with {counts} threads.")
    return told


def missing(files: Sequence[ComparedFile], folders: dict[ComparedFile, Path]) -> list[str]:
    """What to run for files that were not measured."""
    left = [file for file in files if not file.figures and not file.is_base]
    measured = next((one.basis for file in files for one in file.figures), None)
    lines = []
    for folder in dict.fromkeys(folders[file] for file in left if file in folders):
        names = [file.file for file in left if folders.get(file) == folder]
        base = next(filter(None, (beside(name, _names_in(folder))[0] for name in names)), "")
        words = ["python", "-m", "ggufy", "evaluate", str(folder / base) if base else "BASE"]
        words += [str(folder / name) for name in names]
        words += ["--chunks", str(measured.tokens // SCORED)] if measured else []  # as much text as the others
        lines.append(f"To measure {_counted(names)}:\n  {shlex.join(words)}")
    if elsewhere := [file.file for file in left if file not in folders]:
        lines.append(f"Of {_counted(elsewhere)} the repo's card has no figures: fetch it with its base to measure it.")
    return lines


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _counted(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} files"


def _record(group: Group) -> dict[str, object]:
    """The same for programs; sizes in bytes."""
    files = []
    for file, figures in group.files:
        record = asdict(file) | {"memory": memory_needed(file.size)}
        del record["figures"]
        told = {name: part for name, part in asdict(figures).items() if name != "basis"} if figures else {}
        files.append(record | told)
    return {"basis": asdict(group.basis) if group.basis else None, "files": files}

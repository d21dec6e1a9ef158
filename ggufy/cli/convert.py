"""`ggufy convert`: the unquantized file of a model alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy.cli.running import ready_llama
from ggufy.core.errors import SourceError
from ggufy.core.names import stem_of
from ggufy.core.outputs import names_of_output
from ggufy.core.source import Source, SourceFile
from ggufy.core.words import human_size
from ggufy.models.chat_format import pinned_format
from ggufy.system.files import chosen_with
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path

if TYPE_CHECKING:
    from ggufy.sources.adapter import AdapterWish


def run(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.sources.adapter import AdapterSearch, pin_adapters  # loads the Hub's client
    from ggufy.sources.adapter_files import opened_adapters
    from ggufy.sources.format import ConvertTask
    from ggufy.sources.locate import local_file, vocab_with
    from ggufy.sources.registry import format_of_file

    own = vocab_with(str(args.source), args.vocab)
    vocab = user_path(own) if own else None
    chosen_with(args.target.parent, "OUT")
    if (path := local_file(str(args.source))) is None:
        raise SourceError("{path} does not exist: give the path of a .pth or .safetensors file.", path=args.source)
    form, search = format_of_file(path), AdapterSearch(settings)
    form.check_output(args.output)
    files = [SourceFile(path=str(file), size=file.stat().st_size, sha256="") for file in form.files_here(path)]
    pinned = [one for one, _ in pin_adapters(_wish(args), search, form)]
    names = [args.name or "", path.name]
    with opened_adapters(pinned, settings.cache, search) as adapters:
        task = ConvertTask(
            source=Source.of_files(files, kind=form.kind),
            path=path,
            outtype=args.outtype or names_of_output(args.output).base_type(None),
            output=args.output,
            name=args.name or stem_of(str(path)),
            vocab=vocab,
            adapters=adapters,
            chat_format=pinned_format(args.chat_format, names),
            work=args.target.absolute().parent,
            run_converter=_run_converter(args, settings) if form.carries else None,
        )
        form.convert(task, args.target)
    print(f"{args.target}  {human_size(args.target.stat().st_size)}")
    return 0


def _run_converter(args: argparse.Namespace, settings: Settings) -> Callable[[Path, Path], None]:
    """llama.cpp's converter of Hugging Face models."""
    from ggufy.llama.converter import Converter
    from ggufy.llama.tools import ToolRun
    from ggufy.system import resources

    def run(folder: Path, target: Path) -> None:
        log = settings.cache / "logs" / "convert.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = resources.child_environment(threads=1, home=settings.home)
        tool = ToolRun(environment=environment, cwd=folder.parent, log=log)
        llama, pip = ready_llama(settings), settings.pip_environment
        converter = Converter(llama=llama, cache=settings.cache, pip_environment=pip, run=tool)
        converter.convert(folder, target, outtype=args.outtype or "f16")

    return run


def _wish(args: argparse.Namespace) -> AdapterWish:
    from ggufy.sources.adapter import AdapterWish  # loads the Hub's client

    return AdapterWish(texts=tuple(args.lora), alpha=args.lora_alpha, init=args.lora_init or "")

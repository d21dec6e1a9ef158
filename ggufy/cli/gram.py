"""`python -m ggufy gram BASE.gguf`: covariances of what its matrices read from a text, and its imatrix.

Stopped at any moment, it goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from ggufy.cli.terminal import Line, stoppable
from ggufy.core.errors import UsageError
from ggufy.core.messages import Message
from ggufy.core.words import human_size
from ggufy.formats.covariance import CovarianceFile
from ggufy.llama.covariances import CovariancePlan
from ggufy.llama.install import Llama
from ggufy.llama.tools import ToolRun
from ggufy.system import resources
from ggufy.system.locks import lock
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.add_argument("base", metavar="BASE.gguf", type=user_path, help="an unquantized .gguf")
    parser.add_argument("--text", type=user_path, help="calibration text (made at set-up)")
    parser.add_argument(
        "--chunks", type=int, default=0, help="chunks of 512 tokens to read of it, 0 = all (%(default)s)"
    )
    parser.add_argument("--out", type=user_path, metavar="FILE", help="the covariances (beside the base)")
    parser.add_argument("--imatrix", type=user_path, metavar="FILE", help="the imatrix (beside the covariances)")
    parser.add_argument("--threads", type=int, help="threads for the tools (one less than allowed)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no progress")


def run(args: argparse.Namespace, settings: Settings, get_llama: Callable[[Settings], Llama]) -> str:
    """Makes both files; what goes to stdout."""
    from ggufy.sources.gguf_model import UnquantizedGguf  # noqa: PLC0415 - loads the Hub's client
    from ggufy.steps.covariance import make_covariances  # noqa: PLC0415
    from ggufy.texts.calibration import ensure_texts  # noqa: PLC0415

    if args.chunks < 0:
        raise UsageError("--chunks is negative: give a number of chunks, or 0 for the whole text.")
    UnquantizedGguf().base_head(args.base)
    out: Path = args.out or args.base.with_name(f"{args.base.stem}-covariances.gguf")
    imatrix: Path = args.imatrix or out.with_name(f"{out.stem}-imatrix.gguf")
    text = args.text or ensure_texts(settings.cache).calibration
    threads = resources.tool_threads(args.threads, settings.threads)
    work = out.with_name(f"{out.name}.segments")
    busy = Message("another run works on {name}: wait for it to end.", name=out.name)
    line = Line(shown=not args.json, verb="reading ")
    with stoppable() as stopped, lock(work / ".lock", 2.0, busy) as held:
        tool_run = ToolRun(
            environment=resources.child_environment(threads=threads, home=settings.home),
            cwd=work,
            log=work / "log.txt",
            stopped=stopped.is_set,
            keep_open=(held,),
        )
        try:
            make_covariances(
                args.base,
                text,
                out,
                imatrix,
                work=work,
                chunks=args.chunks,
                llama=get_llama(settings),
                run=tool_run,
                threads=threads,
                report=lambda fraction: line(text.name, fraction),
                announce=lambda plan: line(_announced(plan, text), 0),
            )
        finally:
            line.clear()
        for left in work.iterdir():
            left.unlink()
        work.rmdir()
    return _shown(out, imatrix, as_json=args.json)


def _announced(plan: CovariancePlan, text: Path) -> str:
    """What is going to be made, before it begins."""
    passes = f"{plan.passes} passes" if plan.passes > 1 else "one pass"
    return f"{text.name}, {plan.chunks} chunks in {passes}, {human_size(plan.size)} of covariances"


def _shown(out: Path, imatrix: Path, *, as_json: bool) -> str:
    with CovarianceFile.open(out) as file:
        facts = {"tensors": len(file.names()), "tokens": file.tokens, "held_out_tokens": file.held_out_tokens}
    if as_json:
        files = {"file": str(out.absolute()), "size": out.stat().st_size, "imatrix": str(imatrix.absolute())}
        return json.dumps(files | facts, indent=2, ensure_ascii=False)
    counted = "{tensors} tensors, {tokens} tokens and {held_out_tokens} held out".format(**facts)
    return "\n".join([f"{out}  {human_size(out.stat().st_size)}  {counted}", f"{imatrix}"])

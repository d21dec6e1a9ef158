"""The command line: `python -m ggufy COMMAND`. Exit codes: 0 done, 1 failed with one line on stderr, 2 usage.

It calls the functions that the page calls. Progress goes to stderr, results to stdout; with --json, stdout carries one
object and nothing else.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ggufy.cli.parser import build_parser, module_of
from ggufy.cli.running import begun_llama, connected, finish, pinned, ready_llama, run_job
from ggufy.cli.terminal import job_lines
from ggufy.core.errors import GgufyError, UsageError
from ggufy.core.job import Status
from ggufy.core.messages import Message
from ggufy.core.plan import LOCK_NAME, base_name, imatrix_name
from ggufy.core.words import human_size
from ggufy.jobs.options import JobOptions
from ggufy.jobs.values import read_options
from ggufy.llama.install import Llama
from ggufy.records.store import JobStore
from ggufy.system import child_process, streams
from ggufy.system.files import chosen_with, disk_error
from ggufy.system.locks import is_locked
from ggufy.system.settings import Settings, prepare_process
from ggufy.system.user_paths import user_path


def main(arguments: list[str] | None = None) -> int:
    """Parses, runs, and turns our errors into one line and an exit code."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        args = build_parser(words).parse_args(words)
        logging.basicConfig(
            level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(message)s"
        )
        prepare_process(settings := Settings.from_env())
        if getattr(args, "json", False):
            streams.say_json()
        if settings.die_with_parent:
            child_process.die_with_parent()
        return int(COMMANDS[args.command](args, settings))
    except UsageError as error:
        print(f"ggufy: {error}", file=sys.stderr)
        return 2
    except GgufyError as error:
        print(f"ggufy: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if (failure := disk_error(error, Path(error.filename or "."))) is None:
            raise
        print(f"ggufy: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ggufy: stopped: run the same command again to continue.", file=sys.stderr)
        return 1


# ---- commands


def run_quantize(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.cli.several import (
        run_several,
        several_sources,
    )  # load the Hub's client, which other commands do without
    from ggufy.jobs.runner import Runner
    from ggufy.jobs.sharing import SharedRunner

    settings = _with_options(settings, args)
    options = read_options(args.source, vars(args), lambda option: option.flag)
    several = several_sources(options.source, every=args.all, settings=settings)
    llama = begun_llama(settings)
    with connected(settings) as workspace:
        options = workspace.addressed(options)
        kind = SharedRunner if settings.worker and workspace.state else Runner
        runner = kind(settings=settings, llama=llama, threads=args.threads, workspace=workspace)
        if several is not None:
            done, refused = run_several(runner, options, several, quiet=args.json)
            return finish(done, runner, as_json=args.json, several=True, refused=refused)
        done = [run_job(runner, pinned(options, settings, quiet=args.json), quiet=args.json)]
    return finish(done, runner, as_json=args.json)


def run_watch(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.cli import watch as watch_command  # loads the Hub's client

    return watch_command.run_watch(args, _with_options(settings, args))


def run_submit(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.cli import submit as submit_command  # loads the Hub's client

    return submit_command.run(args, settings)


def run_resume(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.jobs.runner import Runner
    from ggufy.jobs.workspace import hub_option

    settings = _with_options(settings, args)
    with connected(settings) as workspace:
        unfinished = [job for job in workspace.records.all() if job.unfinished]
        waiting = [job for job in unfinished if workspace.ours(job)]
        elsewhere = Counter(hub_option(job.request.repos) for job in unfinished if not workspace.ours(job))
        for other, count in elsewhere.items():
            print(f"{count} jobs go elsewhere: `resume --hub {other}` continues them", file=sys.stderr)
        if not waiting:
            print(json.dumps({"jobs": []}) if args.json else "nothing to resume.")
            return 0
        runner = Runner(settings=settings, llama=begun_llama(settings), threads=args.threads, workspace=workspace)
        done = [run_job(runner, job, quiet=args.json) for job in waiting]
    return finish(done, runner, as_json=args.json)


def run_upgrade(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.models.upgrade import upgrade  # loads torch

    chosen_with(args.target.parent, "OUT.pth")
    upgrade(args.source, args.target)
    print(f"{args.target}  {human_size(args.target.stat().st_size)}")
    return 0


def run_evaluate(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.cli import bin_files, evaluate_bin
    from ggufy.cli import evaluate as evaluate_command  # loads the Hub's client

    if args.chunks < 0:
        raise UsageError("--chunks is negative: give a number of chunks, or 0 for the whole text.")
    settings = _with_options(settings, args)
    ours = bin_files.given(args)
    print(evaluate_bin.run(args, settings) if ours else evaluate_command.run(args, settings, ready_llama))
    return 0


def run_mix(args: argparse.Namespace, settings: Settings) -> int:
    _check_threads(args)
    print(module_of("mix").run(args, settings, ready_llama, _base_and_imatrix))
    return 0


def run_gram(args: argparse.Namespace, settings: Settings) -> int:
    _check_threads(args)
    print(module_of("gram").run(args, settings, ready_llama))
    return 0


def _base_and_imatrix(args: argparse.Namespace, settings: Settings, llama: Llama) -> tuple[Path, Path | None]:
    """What a mix is made from: the files given, or made as `quantize` makes them."""
    from ggufy.jobs.runner import Runner
    from ggufy.sources.registry import format_of_name

    form = format_of_name(args.source)
    if form and not form.converts and user_path(args.source).is_file() and args.imatrix != "auto":
        base = user_path(args.source)
        form.base_head(base)
        return base, None if args.imatrix == "none" else user_path(args.imatrix)
    out: Path | None = args.out.parent if args.out and args.out.suffix == ".gguf" else args.out
    settings = settings.having(out=out, hub="local")
    options = JobOptions(
        source=args.source, quant_types=(), imatrix=args.imatrix, evaluate=False, vocab=args.vocab, name=args.name
    )
    with connected(settings) as workspace:
        runner = Runner(settings=settings, llama=llama, threads=args.threads, workspace=workspace)
        job, _ = run_job(runner, pinned(options, settings, quiet=args.json), quiet=args.json)
    if job.status != Status.DONE:
        raise GgufyError(job.error or Message("the base GGUF could not be made: run the same command again."))
    folder = runner.folder(job)
    imatrix = None if args.imatrix == "none" else folder / imatrix_name(job.request)
    return folder / base_name(job.request), imatrix


def run_state(args: argparse.Namespace, settings: Settings) -> int:
    print(module_of("state").run(args, settings, ready_llama))
    return 0


def run_status(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.steps import files_made

    settings = _with_options(settings, args)
    rows = []
    for job in JobStore(settings.out).jobs():
        folder = settings.out / job.request.folder
        products = [step.product for step in files_made(job.request)]
        published = {artifact.name for artifact in job.artifacts if job.request.repo_id}
        done = sum((folder / product).exists() or product in published for product in products)
        rows.append((job, done, len(products), _held(folder)))
    if args.json:
        keys = ("id", "status", "error", "created", "updated")
        records = [{k: getattr(j, k) for k in keys} | {"done": d, "total": t, "active": h} for j, d, t, h in rows]
        print(json.dumps({"jobs": records}, indent=2, ensure_ascii=False))
    else:
        print(job_lines(rows))
    return 0


def run_doctor(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.cli.doctor import examine, report_lines

    findings = examine(_with_options(settings, args))
    print(json.dumps(findings, indent=2, default=str) if args.json else report_lines(findings))
    return 0 if findings["ok"] else 1


def run_setup(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.texts.calibration import ensure_texts

    llama = ready_llama(settings)
    print(f"llama.cpp {llama.version} ({llama.commit}) in {llama.bin}")
    texts = ensure_texts(settings.cache)
    print(f"calibration and evaluation texts in {texts.calibration.parent}")
    return 0


def _own(command: str, *more: object) -> Callable[[argparse.Namespace, Settings], int]:
    """What the command's own module does, loaded when it is asked for."""
    return lambda args, settings: int(module_of(command).run(args, settings, *more))


COMMANDS: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
    "quantize": run_quantize,
    "convert": _own("convert"),
    "upgrade": run_upgrade,
    "evaluate": run_evaluate,
    "compare": lambda args, settings: _own("compare")(args, _with_options(settings, args)),
    "verify": _own("verify", ready_llama),
    "mix": run_mix,
    "gram": run_gram,
    "inspect": _own("inspect"),
    "state": run_state,
    "chat": _own("chat", ready_llama),
    "complete": _own("complete", ready_llama),
    "serve": _own("serve", ready_llama),
    "ollama": _own("ollama"),
    "lint": _own("lint", ready_llama),
    "status": run_status,
    "resume": run_resume,
    "watch": run_watch,
    "submit": run_submit,
    "doctor": run_doctor,
    "page": _own("page"),
    "completion": _own("completion"),
    "setup": run_setup,
}


# ---- helpers


def _check_threads(args: argparse.Namespace) -> None:
    if getattr(args, "threads", None) is not None and args.threads < 1:
        raise UsageError("--threads must be at least 1.")


def _with_options(settings: Settings, args: argparse.Namespace) -> Settings:
    _check_threads(args)
    if args.out is not None:
        chosen_with(args.out, "--out")
    return settings.having(out=args.out, hub=getattr(args, "hub", None))


def _held(folder: Path) -> bool:
    return is_locked(folder / LOCK_NAME)


def program() -> int:
    """As `python -m ggufy` runs it: with streams that do not stop the work, whatever becomes of them."""
    streams.guard(results=True)
    code = main()
    if why := streams.lost():
        print(f"ggufy: stdout cannot be written ({why}): what was made is complete.", file=sys.stderr)
    return 1 if why else code


def script() -> None:
    """As the installed program `ggufy` runs it."""
    sys.exit(program())

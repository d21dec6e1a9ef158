"""The command line: `python -m ggufy COMMAND`. Exit codes: 0 done, 1 failed with one line on stderr, 2 usage.

It calls the functions that the page calls. Progress goes to stderr, results to stdout; with --json, stdout carries one
object and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufy.cli import inspect as inspect_command
from ggufy.cli import mix as mix_command
from ggufy.cli.terminal import Line, LiveDisplay, fitted, job_lines, results_table, stoppable
from ggufy.core.catalog import BY_NAME, OUTTYPES, parse_types
from ggufy.core.errors import GgufyError, UsageError
from ggufy.core.job import DEFAULT_CHUNKS, EVALUATION_CHUNKS, Job, Status
from ggufy.core.messages import Message
from ggufy.core.metrics import DEFAULT_CHUNKS as COMMAND_CHUNKS
from ggufy.core.plan import LOCK_NAME, base_name, folder_name, imatrix_name, makes
from ggufy.core.words import human_size
from ggufy.jobs.results import results
from ggufy.llama.install import Llama, ensure
from ggufy.quantize.search.mixes import KINDS, RWKV
from ggufy.quantize.search.target import MODES, parse_words
from ggufy.records.store import JobStore
from ggufy.system import child_process as child
from ggufy.system import resources as throttle
from ggufy.system import streams
from ggufy.system.files import chosen_with, disk_error
from ggufy.system.locks import is_locked
from ggufy.system.settings import Settings, prepare_process, redraws
from ggufy.system.user_paths import user_path

if TYPE_CHECKING:
    from ggufy.jobs.request import JobOptions
    from ggufy.jobs.runner import Runner
    from ggufy.jobs.workspace import Workspace
    from ggufy.records.run_state import RunState


_LEAVE_S, _SAVE_S = 2.0, 60.0  # that an end waits for the Hub: after Ctrl-C, and when all is done


def main(arguments: list[str] | None = None) -> int:
    """Parses, runs, and turns our errors into one line and an exit code."""
    try:
        args = build_parser().parse_args(arguments)
        logging.basicConfig(
            level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(message)s"
        )
        prepare_process(settings := Settings.from_env())
        if getattr(args, "json", False):
            streams.say_json()
        if settings.die_with_parent:
            child.die_with_parent()
        return int(args.run(args, settings))
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ggufy", description="Turns RWKV checkpoints into GGUF quants.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    quantize = commands.add_parser("quantize", help="make GGUF quants of a model")
    quantize.set_defaults(run=run_quantize)
    quantize.add_argument("source", metavar="SOURCE", help="demo, a .pth, an unquantized .gguf, owner/repo[:file.pth]")
    quantize.add_argument(
        "--types", help="all, recommended, none, or Q4_K_M,Q6_K,… (recommended; with --target: none)"
    )
    quantize.add_argument(
        "--target", action="append", metavar="SIZE", help="a size to order: 1.2GB, 900MiB, 3.275bpw or mem4GB; several"
    )
    quantize.add_argument(
        "--mode", choices=MODES, help="how much is measured for these (standard); without any: which sizes there are"
    )
    _model_options(quantize)
    quantize.add_argument(
        "--mix",
        choices=KINDS,
        default=RWKV,
        help="recipes: made for RWKV, or stock as of llama-quantize (%(default)s)",
    )
    quantize.add_argument(
        "--imatrix", default="auto", metavar="auto|none|FILE", help="importance matrix (%(default)s)"
    )
    quantize.add_argument(
        "--calibration",
        default="bundled",
        metavar="TEXT",
        help="text for the imatrix: a file, URL, Hub dataset, calibration_datav3 or bundled (%(default)s)",
    )
    quantize.add_argument(
        "--chunks", type=int, default=DEFAULT_CHUNKS, help="chunks of 512 tokens to read of it, 0 = all (%(default)s)"
    )
    quantize.add_argument(
        "--evaluate",
        action=argparse.BooleanOptionalAction,
        help="measure every quant against the base (the demo: yes, others: no)",
    )
    quantize.add_argument(
        "--evaluation", default="bundled", metavar="TEXT", help="text for that, named as --calibration (%(default)s)"
    )
    quantize.add_argument(
        "--evaluation-chunks", type=int, default=EVALUATION_CHUNKS, help="chunks of 512 tokens of it (%(default)s)"
    )
    quantize.add_argument("--repo", metavar="OWNER/NAME", help="output repo on the Hub (your account, <Model>-GGUF)")
    quantize.add_argument("--private", action="store_true", help="make that repo private, if it has to be made")
    quantize.add_argument(
        "--keep-card", action="store_true", help="publish the model files only, beside a README.md of the repo's own"
    )
    _run_options(quantize)

    convert = commands.add_parser("convert", help="convert one .pth to an unquantized GGUF")
    convert.set_defaults(run=run_convert)
    convert.add_argument("source", metavar="SRC.pth", type=user_path)
    convert.add_argument("target", metavar="OUT.gguf", type=user_path)
    _model_options(convert)

    evaluate = commands.add_parser("evaluate", help="measure quants against their base: perplexity, KLD, speed")
    evaluate.set_defaults(run=run_evaluate)
    evaluate.add_argument("base", metavar="BASE.gguf", type=user_path, help="the unquantized model")
    evaluate.add_argument(
        "quants", metavar="QUANT.gguf", type=user_path, nargs="+", help="quants that were made from it"
    )
    evaluate.add_argument("--text", type=user_path, help="held-out text to measure on (made at set-up)")
    evaluate.add_argument(
        "--chunks", type=int, default=COMMAND_CHUNKS, help="chunks of 512 tokens to read, 0 = all (%(default)s)"
    )
    evaluate.add_argument("--speed", action=argparse.BooleanOptionalAction, default=True, help="measure speed (yes)")
    evaluate.add_argument("--threads", type=int, help="threads for the tools (one less than allowed)")

    mix_command.add_parser(commands, run_mix)
    inspect_command.add_parser(commands)
    status = commands.add_parser("status", help="list the jobs")
    status.set_defaults(run=run_status)
    resume = commands.add_parser("resume", help="continue every job that was interrupted")
    resume.set_defaults(run=run_resume)
    _run_options(resume)
    doctor = commands.add_parser("doctor", help="what is installed, threads, memory, disk")
    doctor.set_defaults(run=run_doctor)
    setup = commands.add_parser("setup", help="build llama.cpp and make the texts, once")
    setup.set_defaults(run=run_setup)
    for command in (evaluate, status, doctor):
        command.add_argument("--json", action="store_true", help="one JSON object on stdout")
        command.add_argument("--out", type=user_path, help="folder for results (ggufy-out)")
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--outtype", choices=OUTTYPES, help="type of the base GGUF (f16)")
    parser.add_argument("--vocab", metavar="FILE", help="vocabulary of a checkpoint that is not a World model")
    parser.add_argument("--name", help="name of the model in file names and metadata (the source's file name)")


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="threads for the tools (one less than allowed)")
    parser.add_argument("--out", type=user_path, help="folder for results (ggufy-out)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, no progress")
    parser.add_argument(
        "--hub", choices=("local", "hf"), help="results in folders here, or in repos on the Hub (local)"
    )


# ---- commands


def run_quantize(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.jobs.request import JobOptions  # these two load the Hub's client, which other commands do without
    from ggufy.jobs.runner import Runner

    settings = _with_options(settings, args)
    if args.chunks < 0:
        raise UsageError("--chunks is negative: give a number of chunks, or 0 for the whole text.")
    targets = tuple(word for text in args.target or () for word in parse_words(text))
    options = JobOptions(
        source=args.source,
        quant_types=parse_types(args.types or ("none" if targets else "recommended")),
        targets=targets,
        mode=args.mode or "",
        outtype=args.outtype,
        imatrix=args.imatrix,
        calibration=args.calibration,
        chunks=args.chunks,
        evaluate=args.evaluate,
        evaluation=args.evaluation,
        evaluation_chunks=args.evaluation_chunks,
        vocab=args.vocab,
        name=args.name,
        repo_id=args.repo,
        private=args.private,
        keep_card=args.keep_card,
        mix=args.mix,
    )
    llama = _llama(settings)
    with _connected(settings) as workspace:
        options = replace(options, owner=workspace.owner)
        runner = Runner(settings=settings, llama=llama, threads=args.threads, workspace=workspace)
        done = [_run_job(runner, _pinned(options, settings, quiet=args.json), quiet=args.json)]
    return _finish(done, runner, as_json=args.json)


def run_resume(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.jobs.runner import Runner

    settings = _with_options(settings, args)
    with _connected(settings) as workspace:
        unfinished = [job for job in workspace.records.all() if job.unfinished]
        waiting = [job for job in unfinished if workspace.ours(job)]
        if len(waiting) < len(unfinished):
            other = "--hub local" if workspace.hub else "--hub hf"
            print(
                f"{len(unfinished) - len(waiting)} jobs go elsewhere: `resume {other}` continues them", file=sys.stderr
            )
        if not waiting:
            print(json.dumps({"jobs": []}) if args.json else "nothing to resume.")
            return 0
        runner = Runner(settings=settings, llama=_llama(settings), threads=args.threads, workspace=workspace)
        done = [_run_job(runner, job, quiet=args.json) for job in waiting]
    return _finish(done, runner, as_json=args.json)


def run_convert(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.models.convert import convert  # loads torch

    vocab = user_path(args.vocab) if args.vocab else None
    chosen_with(args.target.parent, "OUT.gguf")
    convert(args.source, args.target, outtype=args.outtype or "f16", vocab=vocab, name=args.name)
    print(f"{args.target}  {human_size(args.target.stat().st_size)}")
    return 0


def run_evaluate(args: argparse.Namespace, settings: Settings) -> int:
    from ggufy.cli import evaluate as evaluate_command  # loads the Hub's client

    if args.chunks < 0:
        raise UsageError("--chunks is negative: give a number of chunks, or 0 for the whole text.")
    print(evaluate_command.run(args, _with_options(settings, args), _llama))
    return 0


def run_mix(args: argparse.Namespace, settings: Settings) -> int:
    if args.threads is not None and args.threads < 1:
        raise UsageError("--threads must be at least 1.")
    print(mix_command.run(args, settings, _llama, _base_and_imatrix))
    return 0


def _base_and_imatrix(args: argparse.Namespace, settings: Settings, llama: Llama) -> tuple[Path, Path | None]:
    """What a mix is made from: the files given, or made as `quantize` makes them."""
    from ggufy.formats.gguf import read_head
    from ggufy.jobs.request import JobOptions
    from ggufy.jobs.runner import Runner
    from ggufy.sources.gguf_model import check_model

    if args.source.endswith(".gguf") and user_path(args.source).is_file() and args.imatrix != "auto":
        base = user_path(args.source)
        check_model(read_head(base), base.name)
        return base, None if args.imatrix == "none" else user_path(args.imatrix)
    out: Path | None = args.out.parent if args.out and args.out.suffix == ".gguf" else args.out
    settings = settings.having(out=out, hub="local")
    options = JobOptions(
        source=args.source, quant_types=(), imatrix=args.imatrix, evaluate=False, vocab=args.vocab, name=args.name
    )
    with _connected(settings) as workspace:
        runner = Runner(settings=settings, llama=llama, threads=args.threads, workspace=workspace)
        job, _ = _run_job(runner, _pinned(options, settings, quiet=args.json), quiet=args.json)
    if job.status != Status.DONE:
        raise GgufyError(job.error or Message("the base GGUF could not be made: run the same command again."))
    folder = runner.folder(job)
    imatrix = None if args.imatrix == "none" else folder / imatrix_name(job.request)
    return folder / base_name(job.request), imatrix


def run_status(args: argparse.Namespace, settings: Settings) -> int:
    settings = _with_options(settings, args)
    rows = []
    for job in JobStore(settings.out).jobs():
        folder = settings.out / folder_name(job.request.name)
        products = [step.product for step in makes(job.request)]
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

    llama = _llama(settings)
    print(f"llama.cpp {llama.version} ({llama.commit}) in {llama.bin}")
    texts = ensure_texts(settings.cache)
    print(f"calibration and evaluation texts in {texts.calibration.parent}")
    return 0


# ---- helpers


def _with_options(settings: Settings, args: argparse.Namespace) -> Settings:
    if getattr(args, "threads", None) is not None and args.threads < 1:
        raise UsageError("--threads must be at least 1.")
    if args.out is not None:
        chosen_with(args.out, "--out")
    return settings.having(out=args.out, hub=getattr(args, "hub", None))


def _llama(settings: Settings) -> Llama:
    shown = 0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal shown
        if redraws(sys.stderr):
            line = fitted(f"preparing llama.cpp (once) [{done}/{total}] {text[:60]}", sys.stderr)
            sys.stderr.write(f"\r\x1b[K{line}")
        elif total and done * 10 // total > shown:
            shown = done * 10 // total
            sys.stderr.write(f"preparing llama.cpp (once): {shown * 10} %\n")
        sys.stderr.flush()

    llama = ensure(
        settings.cache,
        override=settings.llama_dir,
        threads=max(1, math.floor(throttle.allowed_cpus())),
        progress=progress,
        pip_environment=settings.pip_environment,
        types=BY_NAME,
    )
    if redraws(sys.stderr):
        sys.stderr.write("\r\x1b[K")
    return llama


@contextlib.contextmanager
def _connected(settings: Settings) -> Iterator[Workspace]:
    """The places where jobs and results go, ours until the block ends; SIGTERM ends it as Ctrl-C does."""
    from ggufy.jobs.workspace import connect

    workspace = connect(settings)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    wait_s = _LEAVE_S
    try:
        workspace.start()
        workspace.acquire(say=_say)
        yield workspace
        wait_s = _SAVE_S
    finally:
        workspace.close(wait_s)
        signal.signal(signal.SIGTERM, previous)


def _say(reason: str) -> None:
    if reason:
        print(f"ggufy: waiting: {reason}", file=sys.stderr)


def _pinned(options: JobOptions, settings: Settings, *, quiet: bool) -> Job:
    """The job that is wished for, with what is read for it in sight."""
    from ggufy.jobs.request import Watch, make_job

    line = Line(shown=not quiet)
    try:
        return make_job(options, settings, Watch(report=line))
    finally:
        line.clear()


def _run_job(runner: Runner, job: Job, *, quiet: bool) -> tuple[Job, RunState]:
    """Runs the job; Ctrl-C and SIGTERM end it in good order, and nothing is lost."""
    from ggufy.records.run_state import RunState, Stop

    with stoppable() as stopped:
        live = RunState(stop=Stop(shutdown=stopped))
        if quiet:
            return runner.run(job, live), live
        where = job.request.repo_id or runner.folder(job)
        count = len(job.request.quants)
        print(f"{job.request.name}: {count} quant{'s' if count > 1 else ''} into {where}", file=sys.stderr)
        with LiveDisplay(live.progress.snapshot):
            return runner.run(job, live), live


def _finish(done: list[tuple[Job, RunState]], runner: Runner, *, as_json: bool) -> int:
    records: list[dict[str, Any]] = []
    for job, live in done:
        folder = runner.folder(job)
        rows = results(job, live.forecast, folder)
        if as_json:
            record: dict[str, Any] = {
                "job": job.id,
                "status": job.status,
                "error": job.error,
                "folder": str(folder.absolute()),
            }
            record |= {"repo_id": job.request.repo_id, "frontier": [asdict(point) for point in job.frontier]}
            records.append(record | {"files": rows})
        elif job.status == Status.DONE:
            print(results_table(rows))
            print(f"\n{len(rows)} files in {job.request.repo_id or folder.absolute()}")
        if job.error:
            print(f"ggufy: {job.error}", file=sys.stderr)
    if as_json:
        print(json.dumps(records[0] if len(records) == 1 else {"jobs": records}, indent=2, ensure_ascii=False))
    return 0 if all(job.status == Status.DONE for job, _ in done) else 1


def _held(folder: Path) -> bool:
    return is_locked(folder / LOCK_NAME)


def program() -> int:
    """As `python -m ggufy` runs it: with streams that do not stop the work, whatever becomes of them."""
    streams.guard(results=True)
    code = main()
    if why := streams.lost():
        print(f"ggufy: stdout cannot be written ({why}): what was made is complete.", file=sys.stderr)
    return 1 if why else code

"""`python -m ggufy submit SOURCE … --flavor NAME`: the same job on a machine of the Hub, as a Hugging Face Job.

The Job runs `quantize` in the image of a Space, publishes into the account's repos, and keeps its progress in the
state repo, so that a Job that dies is begun again (by the Hub, or by the same command) and goes on.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggufy.cli.running import pinned, say_waiting
from ggufy.core.errors import UsageError
from ggufy.core.job import COMPENSATED, Job, Status
from ggufy.core.words import human_time
from ggufy.hub.huggingface import HuggingFaceHub
from ggufy.hub.remote_jobs import Flavor, RemoteJob, RemoteJobs, RemoteTask
from ggufy.jobs.estimate import BaseOptions, EstimateOptions, cost, preview
from ggufy.jobs.options import OPTIONS, Kind
from ggufy.jobs.sharing import JOB_LABEL, WORKER_LABEL
from ggufy.jobs.values import read_options
from ggufy.llama.install import find
from ggufy.records.patience import Patience
from ggufy.records.shares import Shares
from ggufy.records.store import STATE_REPO
from ggufy.sources.inspect import inspect
from ggufy.system.clock import sleep
from ggufy.system.settings import HUB_HF, Settings
from ggufy.system.user_paths import user_path

ATTEMPTS = 3
MOST_JOBS = 16
_LOOK_S = 15.0
_HERE, _OUT = "/home/user/app", "/home/user/ggufy-out"  # of the image
_FILES = ("imatrix", "calibration", "evaluation", "vocab", "lora")  # options that may name files of this machine


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Says the price, asks, and starts it; with --follow 1 if it fails."""
    settings = replace(settings, hub=HUB_HF)
    values = vars(args)
    _check_elsewhere(args.source, values)
    if not 1 <= args.jobs <= MOST_JOBS:
        raise UsageError("--jobs is {jobs}: from 1 to {most}.", jobs=args.jobs, most=MOST_JOBS)
    jobs = RemoteJobs(settings.hf_token)
    options = replace(read_options(args.source, values, lambda option: option.flag), owner=jobs.account())
    flavor = chosen(jobs.flavors(), args.flavor)
    job = pinned(options, settings, quiet=True)
    if args.cancel:
        return _cancel(jobs, job)
    seconds = _seconds(args.source, job, settings, flavor, args.jobs)
    print(told(job, flavor, seconds, _timeout_s(args), args.jobs), file=sys.stderr)
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here whether it may start: add --yes.")
        if input("start it? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    task = _task(args, settings, flavor, job, args.space or f"{jobs.account()}/ggufy")
    started: list[RemoteJob] = []
    try:
        for each in divided(task, args.jobs):
            started.append(jobs.run(each))
    finally:  # those that were started run, and cost
        if started:
            _tell(started, job, flavor, args)
    if not args.follow:
        return 0
    if args.jobs > 1:
        return _follow_several(jobs, job, settings)
    for line in jobs.lines(started[0].id):
        print(line, file=sys.stderr)
    return 0 if jobs.stage(started[0].id) == "COMPLETED" else 1


def _timeout_s(args: argparse.Namespace) -> int:
    return max(1, int(args.hours)) * 3600


def _task(args: argparse.Namespace, settings: Settings, flavor: Flavor, job: Job, space: str) -> RemoteTask:
    return RemoteTask(
        space=space,
        command=[
            "env",
            "-C",
            _HERE,
            "python",
            "-m",
            "ggufy",
            "quantize",
            args.source,
            *words(vars(args)),
            "--hub",
            HUB_HF,
        ],
        flavor=flavor.name,
        timeout_s=_timeout_s(args),
        attempts=ATTEMPTS,
        environment={
            "GGUFY_OUT": _OUT,
            "GGUFY_LEASE": str(int(settings.lease_s)),
            "GGUFY_COMMITS": str(settings.commits_an_hour),
        },
        labels={JOB_LABEL: job.id},
    )


def divided(task: RemoteTask, count: int) -> list[RemoteTask]:
    """The same for so many Jobs that share its work, each with a name of its own."""
    if count == 1:
        return [task]
    names = [secrets.token_hex(4) for _ in range(count)]
    return [
        replace(
            task,
            environment={**task.environment, "GGUFY_WORKER": name, "GGUFY_JOBS": str(count)},
            labels={**task.labels, WORKER_LABEL: name},
        )
        for name in names
    ]


def _cancel(jobs: RemoteJobs, job: Job) -> int:
    alive = jobs.alive({JOB_LABEL: job.id})
    for job_id in alive:
        jobs.cancel(job_id)
        print(f"ended: {job_id}", file=sys.stderr)
    if not alive:
        print(f"no Job is at work on {job.id}.", file=sys.stderr)
    return 0


def _tell(started: list[RemoteJob], job: Job, flavor: Flavor, args: argparse.Namespace) -> None:
    if args.json:
        facts: dict[str, Any] = {"job": job.id, "flavor": flavor.name, "repos": job.request.repos}
        each = [{"id": one.id, "page": one.page} for one in started]
        facts |= {"jobs": each} if args.jobs > 1 else each[0]
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for one in started:
        print(f"started: {one.page}")
        print(f"what it prints: hf jobs logs {one.id}")
    print("to end it: the same command with --cancel")


def _follow_several(jobs: RemoteJobs, job: Job, settings: Settings) -> int:
    """Tells what the state repo says, until no Job is left."""
    shares = Shares(HuggingFaceHub(token=settings.hf_token), f"{jobs.account()}/{STATE_REPO}", job.id, "")
    files, said = {job.request.file_of(quant) for quant in job.request.quants}, ""

    def look() -> tuple[int, str]:
        alive, claims, record = len(jobs.alive({JOB_LABEL: job.id})), shares.claims(), shares.record()
        there = {one.name for one in record.artifacts} if record else set[str]()
        there |= {job.request.file_of(quant) for quant, claim in claims.items() if claim.made}
        making = [quant for quant in claims if job.request.file_of(quant) not in there]
        line = f"{len(files & there)} of {len(files)} quants are made, {alive} Jobs at work"
        return alive, line + (f", on {', '.join(making)}" if making else "")

    patience = Patience(say=say_waiting)
    while True:
        alive, line = patience(look)
        if line != said:
            print(line, file=sys.stderr)
        if not alive:
            break
        said = line
        sleep(min(_LOOK_S, settings.lease_s / 40))
    record = patience(shares.record)
    return 0 if record and record.status is Status.DONE else 1


def told(job: Job, flavor: Flavor, seconds: float | None, timeout_s: int, count: int = 1) -> str:
    """What will run, where, for how long and for how much."""
    made, repos, price = len(job.request.quants), ", ".join(job.request.repos), flavor.price * count
    what = f"{job.request.name}: {made} quant{'s' if made > 1 else ''} into {repos}"
    machine = f"{flavor.name}: {flavor.cpus} CPUs, {flavor.memory}, disk {flavor.disk}, ${flavor.price:.2f} an hour"
    machine = f"{count} times {machine} each" if count > 1 else machine
    most = f"${price * timeout_s / 3600:.2f} at most, when it is ended after {human_time(timeout_s)}"
    if seconds is None:
        return f"{what}\n{machine}\n{most}; how long it takes is told where llama.cpp is set up (`ggufy setup`)"
    about = f"about {human_time(seconds)} of work, ${price * seconds / 3600:.2f}, without start and transfers"
    return f"{what}\n{machine}\n{about}; {most}"


def chosen(flavors: Mapping[str, Flavor], name: str) -> Flavor:
    """Raises UsageError for one that there is not."""
    if (found := flavors.get(name)) is None:
        raise UsageError(
            "there is no machine {name}: choose one of {names}.", name=name, names=", ".join(sorted(flavors))
        )
    return found


def words(values: Mapping[str, Any]) -> list[str]:
    """The options of a job that differ from their defaults, as they were typed."""
    found: list[str] = []
    for option in OPTIONS:
        value = values.get(option.name)
        if value is None or value == option.default or value in ((), [], ""):
            continue
        if option.kind is Kind.FLAG:
            found.append(option.flag if value else f"--no-{option.flag.removeprefix('--')}")
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                found += [option.flag, str(one)]
    return found


def _check_elsewhere(source: str, values: Mapping[str, Any]) -> None:
    """Raises UsageError for what only this machine has."""
    named = [source] if source != "demo" else []
    for name in _FILES:
        value = values.get(name) or ()
        named += [value] if isinstance(value, str) else value
    for text in named:
        for one in (text, text.rpartition(":")[0], *text.split(",")):
            if one and user_path(one).exists():
                raise UsageError(
                    "{path} is on this machine, and a Job does not see it: put it into a repo, and name it "
                    "owner/name:file.",
                    path=one,
                )


def _seconds(source: str, job: Job, settings: Settings, flavor: Flavor, count: int) -> float | None:
    """Of the work, roughly; None where llama.cpp is not set up."""
    if (llama := find(settings.cache, settings.llama_dir)) is None:
        return None
    request = job.request
    report = inspect(source, settings, output=request.output)
    compensated = request.rounding == COMPENSATED
    base = BaseOptions(mix=request.mix, output=request.output, compensated=compensated)
    order = EstimateOptions(
        quant_types=request.quant_types,
        imatrix=request.imatrix != "none",
        chunks=request.chunks,
        evaluate=request.evaluate,
        texts=max(1, len(request.evaluation_texts)),
        evaluation_chunks=request.evaluation_chunks,
        targets=request.targets,
        mode=request.mode,
    )
    found = cost(
        preview(report, settings, base, llama=llama),
        order,
        settings,
        where="",
        account="",
        threads=flavor.cpus,
        machines=count,
    )
    return None if found is None else found.seconds

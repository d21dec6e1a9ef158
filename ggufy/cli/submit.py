"""`python -m ggufy submit SOURCE … --flavor NAME`: the same job on a machine of the Hub, as a Hugging Face Job.

The Job runs `quantize` in the image of a Space, publishes into the account's repos, and keeps its progress in the
state repo, so that a Job that dies is begun again (by the Hub, or by the same command) and goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggufy.cli.running import pinned
from ggufy.core.errors import UsageError
from ggufy.core.job import COMPENSATED, Job
from ggufy.core.words import human_time
from ggufy.hub.remote_jobs import Flavor, RemoteJob, RemoteJobs, RemoteTask
from ggufy.jobs.estimate import BaseOptions, EstimateOptions, cost, preview
from ggufy.jobs.options import OPTIONS, Kind
from ggufy.jobs.values import read_options
from ggufy.llama.install import find
from ggufy.sources.inspect import inspect
from ggufy.system.settings import HUB_HF, Settings
from ggufy.system.user_paths import user_path

ATTEMPTS = 3
_HERE, _OUT = "/home/user/app", "/home/user/ggufy-out"  # of the image
_FILES = ("imatrix", "calibration", "evaluation", "vocab", "lora")  # options that may name files of this machine


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Says the price, asks, and starts it; with --follow 1 if it fails."""
    settings = replace(settings, hub=HUB_HF)
    values = vars(args)
    _check_elsewhere(args.source, values)
    jobs = RemoteJobs(settings.hf_token)
    options = replace(read_options(args.source, values, lambda option: option.flag), owner=jobs.account())
    flavor = chosen(jobs.flavors(), args.flavor)
    job = pinned(options, settings, quiet=True)
    timeout_s = max(1, args.hours) * 3600
    seconds = _seconds(args.source, job, settings, flavor)
    print(told(job, flavor, seconds, timeout_s), file=sys.stderr)
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here whether it may start: add --yes.")
        if input("start it? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    task = RemoteTask(
        space=args.space or f"{jobs.account()}/ggufy",
        command=[
            "env",
            "-C",
            _HERE,
            "python",
            "-m",
            "ggufy",
            "quantize",
            args.source,
            *words(values),
            "--hub",
            HUB_HF,
        ],
        flavor=flavor.name,
        timeout_s=timeout_s,
        attempts=ATTEMPTS,
        environment={"GGUFY_OUT": _OUT, "GGUFY_LEASE": str(int(settings.lease_s))},
        labels={"ggufy": job.id},
    )
    started = jobs.run(task)
    return _tell(jobs, started, job, flavor, args)


def _tell(jobs: RemoteJobs, started: RemoteJob, job: Job, flavor: Flavor, args: argparse.Namespace) -> int:
    if args.json:
        facts = {
            "id": started.id,
            "page": started.page,
            "job": job.id,
            "flavor": flavor.name,
            "repos": job.request.repos,
        }
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print(f"started: {started.page}")
        print(f"what it prints: hf jobs logs {started.id}   to end it: hf jobs cancel {started.id}")
    if not args.follow:
        return 0
    for line in jobs.lines(started.id):
        print(line, file=sys.stderr)
    return 0 if jobs.stage(started.id) == "COMPLETED" else 1


def told(job: Job, flavor: Flavor, seconds: float | None, timeout_s: int) -> str:
    """What will run, where, for how long and for how much."""
    count, repos = len(job.request.quants), ", ".join(job.request.repos)
    what = f"{job.request.name}: {count} quant{'s' if count > 1 else ''} into {repos}"
    machine = f"{flavor.name}: {flavor.cpus} CPUs, {flavor.memory}, disk {flavor.disk}, ${flavor.price:.2f} an hour"
    most = f"${flavor.price * timeout_s / 3600:.2f} at most, when it is ended after {human_time(timeout_s)}"
    if seconds is None:
        return f"{what}\n{machine}\n{most}; how long it takes is told where llama.cpp is set up (`ggufy setup`)"
    about = f"about {human_time(seconds)} of work, ${flavor.price * seconds / 3600:.2f}, without start and transfers"
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


def _seconds(source: str, job: Job, settings: Settings, flavor: Flavor) -> float | None:
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
        evaluate=request.evaluate,
        texts=max(1, len(request.evaluation_texts)),
        targets=request.targets,
        mode=request.mode,
    )
    found = cost(
        preview(report, settings, base, llama=llama), order, settings, where="", account="", threads=flavor.cpus
    )
    return None if found is None else found.seconds

"""`python -m ggufy watch owner/repo`: waits for new models of a repo, and quantizes each once."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime

from ggufy.cli.running import connected, finish, pinned, queue_job, ready_llama, run_job, say_waiting
from ggufy.core.errors import HubError, UsageError
from ggufy.core.job import Job
from ggufy.jobs.follow import Follower, next_look, options_record, parse_every
from ggufy.jobs.runner import Runner
from ggufy.jobs.values import read_options
from ggufy.jobs.workspace import Workspace
from ggufy.records.followed import FollowedRepos
from ggufy.system.settings import Settings

_LOOK_S = 30.0  # between looks at the clock


def run_watch(args: argparse.Namespace, settings: Settings) -> int:
    """Looks, and runs what is unfinished, until it is stopped; once with --once."""
    if args.json and not args.once:
        raise UsageError("--json comes with --once: without it, the command does not end.")
    if args.remove and not args.source:
        raise UsageError("name the repo that is to be followed no longer.")
    with connected(settings) as workspace:
        repos = FollowedRepos(settings.out)
        watch = _Watch(args, settings, workspace, repos)
        interrupted = [job for job in workspace.records.all() if job.unfinished and workspace.ours(job)]
        watch.follower.synchronize()
        if args.remove:
            found = repos.remove(args.source)
            watch.follower.synchronize()
            print("it is followed no longer." if found else "it was not followed.")
            return 0
        if args.source:
            watch.follow()
        if not repos.all():
            raise UsageError("no repo is followed: name one.")
        if args.once:
            return watch.run_jobs(interrupted + watch.look(force=True))
        watch.run_jobs(interrupted)
        while True:
            try:
                watch.run_jobs(watch.look(force=False))
            except HubError as error:  # the state repo's, which comes back
                say_waiting(error.message)
            time.sleep(_LOOK_S)


class _Watch:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace, settings: Settings, workspace: Workspace, repos: FollowedRepos):
        self.args, self.settings, self.workspace, self.repos = args, settings, workspace, repos
        self.runner: Runner | None = None
        self.follower = Follower(
            repos=repos,
            workspace=workspace,
            make=lambda options: pinned(options, settings, quiet=args.json),
            queue=lambda job: queue_job(workspace.records, job),
            token=settings.hf_token,
        )

    def follow(self) -> None:
        """Notes what was asked for."""
        options = read_options(self.args.source, vars(self.args), lambda option: option.flag)
        every_s = parse_every(self.args.every)
        self.follower.follow(self.args.source, options_record(options), every_s, existing=self.args.existing)

    def look(self, *, force: bool) -> list[Job]:
        """Looks at what is due, or, with `force`, at all that is meant; the jobs that were queued. Raises HubError if
        the state repo cannot be asked now."""
        meant = [one for one in self.repos.all() if self.args.source in ("", one.source)]
        if not (due := [one.source for one in meant if force or next_look(one) <= datetime.now(UTC)]):
            return []
        self.workspace.acquire(say=say_waiting)
        self.follower.synchronize()
        jobs: list[Job] = []
        for source in due:
            jobs += self.follower.look(source)
            if (one := self.repos.find(source)) and one.trouble:
                print(f"ggufy: {source} is looked at again later: {one.trouble}", file=sys.stderr)
            elif one and one.refused:
                print(f"ggufy: {source}: {one.refused}", file=sys.stderr)
        self.follower.synchronize()
        return jobs

    def run_jobs(self, jobs: list[Job]) -> int:
        """Runs them, and says what became of them; returns the exit code."""
        if jobs and self.runner is None:
            llama = ready_llama(self.settings)
            self.runner = Runner(
                settings=self.settings, llama=llama, threads=self.args.threads, workspace=self.workspace
            )
        done = [run_job(self.runner, job, quiet=self.args.json) for job in jobs if self.runner]
        away = any(one.trouble for one in self.repos.all() if self.args.source in ("", one.source))
        code = finish(done, self.runner, as_json=self.args.json, several=True) if self.args.json or done else 0
        if self.args.once and not done and not away and not self.args.json:
            print("nothing is new.")
        return 1 if away else code

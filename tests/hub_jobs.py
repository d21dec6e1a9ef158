"""Hugging Face Jobs of the test Hub: their commands run as child processes, each attempt with a disk of its own.

The image is this checkout and this Python: of a command `env -C FOLDER python …`, FOLDER is replaced by the former and
`python` by the latter, and in the environment the image's home by the attempt's.

    GET /__jobs  {id: {"attempts": N, "pid": of the running attempt, or 0, "spec": what was asked for}}
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_storage import Refusal
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

ROOT = Path(__file__).parent.parent
HOME = "/home/user"
HARDWARE = [
    {
        "name": name, "prettyName": name, "cpu": f"{cpus} vCPU", "ram": ram, "ephemeralStorage": disk,
        "accelerator": None, "unitCostMicroUSD": round(hour / 60e-6), "unitCostUSD": hour / 60, "unitLabel": "minute",
    }
    for name, cpus, ram, disk, hour in (
        ("cpu-basic", 2, "16 GB", "50 GB", 0.01),
        ("cpu-upgrade", 8, "32 GB", "50 GB", 0.03),
        ("cpu-xl", 16, "124 GB", "1000 GB", 1.00),
    )
]  # fmt: skip


@dataclass
class Job:
    """One of them."""

    id: str
    owner: str
    spec: dict[str, Any]
    stage: str = "RUNNING"
    attempts: int = 0
    process: asyncio.subprocess.Process | None = None
    lines: list[str] = field(default_factory=list)

    def info(self) -> dict[str, Any]:
        who = {"id": self.owner, "name": self.owner, "type": "user"}
        shown = {key: self.spec.get(key) for key in ("spaceId", "command", "flavor", "environment", "labels")}
        return {"id": self.id, "owner": who, "status": {"stage": self.stage, "message": None}, **shown}


class Jobs:
    """The state, and one method per route."""

    def __init__(self, base: str, folder: Path):
        self.base, self.folder = base, folder
        self.jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def job(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params["id"])
        if job is None or job.owner != request.path_params["owner"]:
            raise Refusal(404, "", "Job not found")
        return job

    async def hardware(self, request: Request) -> Response:
        return JSONResponse(HARDWARE)

    async def run(self, request: Request) -> Response:
        job = Job(id=f"{len(self.jobs):024x}", owner=request.path_params["owner"], spec=await request.json())
        self.jobs[job.id] = job
        task = asyncio.create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return JSONResponse(job.info())

    async def list(self, request: Request) -> Response:
        """Those of the owner in one of the stages, with all the labels."""
        asked, stages = request.query_params, request.query_params.getlist("stage")
        labels = dict(label.split("=", 1) for label in asked.getlist("label"))
        found = [job for job in self.jobs.values() if job.owner == request.path_params["owner"]]
        found = [job for job in found if job.stage in stages or not stages]
        found = [job for job in found if labels.items() <= (job.spec.get("labels") or {}).items()]
        return JSONResponse([job.info() for job in found])

    async def inspect(self, request: Request) -> Response:
        return JSONResponse(self.job(request).info())

    async def cancel(self, request: Request) -> Response:
        job = self.job(request)
        job.stage = "CANCELED"
        if job.process is not None and job.process.returncode is None:
            job.process.terminate()
        return JSONResponse({})

    async def logs(self, request: Request) -> Response:
        job = self.job(request)

        async def events() -> AsyncIterator[str]:
            sent = 0
            while job.stage == "RUNNING" or sent < len(job.lines):
                for line in job.lines[sent:]:
                    yield f"data: {json.dumps({'data': line, 'timestamp': '2026-01-01T00:00:00Z'})}\n\n"
                    sent += 1
                await asyncio.sleep(0.05)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def tell(self, request: Request) -> Response:
        return JSONResponse(
            {
                job.id: {
                    "attempts": job.attempts,
                    "pid": job.process.pid if job.process and job.process.returncode is None else 0,
                    "spec": job.spec,
                }
                for job in self.jobs.values()
            }
        )

    async def _run(self, job: Job) -> None:
        while job.stage == "RUNNING" and job.attempts < job.spec.get("attempts", 1):
            job.attempts += 1
            if await self._attempt(job) == 0:
                job.stage = "COMPLETED"
        if job.stage == "RUNNING":
            job.stage = "ERROR"

    async def _attempt(self, job: Job) -> int:
        home = self.folder / f"{job.id}-{job.attempts}"
        home.mkdir(parents=True)
        cache = os.environ.get("GGUFY_CACHE", str(Path.home() / ".cache" / "ggufy"))
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "GGUFY_CACHE": cache, "HF_ENDPOINT": self.base}
        environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_XET_TELEMETRY_ENABLED": "0"}
        environment |= {"GGUFY_DIE_WITH_PARENT": "1"}
        given = {**job.spec["environment"], **job.spec.get("secrets", {})}
        environment |= {key: value.replace(HOME, str(home)) for key, value in given.items()} | {"HOME": str(home)}
        first, option, _, python, *words = job.spec["command"]
        assert (first, option, python) == ("env", "-C", "python")
        job.process = await asyncio.create_subprocess_exec(
            sys.executable, *words, cwd=ROOT, env=environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        assert job.process.stdout is not None
        async for line in job.process.stdout:
            with contextlib.suppress(UnicodeDecodeError):
                job.lines.append(line.decode().rstrip("\n"))
        return await job.process.wait()

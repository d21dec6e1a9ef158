"""Finished jobs by the hundred, made by code: what a page has to show after a year's work."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gguf
import numpy as np

from ggufy.core.catalog import QUANT_TYPES
from ggufy.core.job import Artifact, FrontierPoint, Job, Request, Status
from ggufy.core.job_record import to_json
from ggufy.core.metrics import Evaluation, Quality, Speed
from ggufy.core.plan import base_name, quant_name
from ggufy.core.source import Source
from ggufy.records.store import STATE_REPO
from ggufy.steps import files_made

_FIRST = datetime(2026, 1, 1, tzinfo=UTC)
_POINTS = 60


def write_records(out: Path, count: int) -> list[Job]:
    """`count` done jobs of all 29 types, measured, with a frontier, and their files, which are small GGUFs; oldest
    first."""
    template = out / "template.gguf"
    out.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(template, "rwkv7")
    writer.add_tensor("token_embd.weight", np.zeros((32, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    jobs = [finished_job(number, template.stat().st_size) for number in range(count)]
    records = out / STATE_REPO / "jobs"
    records.mkdir(parents=True)
    for job in jobs:
        (records / f"{job.id}.json").write_text(to_json(job), encoding="utf-8")
        folder = out / job.request.folder
        folder.mkdir()
        for artifact in job.artifacts:
            os.link(template, folder / artifact.name)
    template.unlink()
    return jobs


def finished_job(number: int, size: int) -> Job:
    """One of them; its files have `size` bytes."""
    name = f"RWKV-x070-Model-{number:03}"
    source = Source(kind="checkpoint", path=f"/models/{name}.pth", size=2 * size, sha256=_digest(name))
    types = tuple(row.name for row in QUANT_TYPES)
    request = Request(
        name=name,
        source=source,
        quant_types=types,
        outtype="f16",
        evaluate=True,
        evaluation_chunks=16,
        mode="standard",
    )
    when = (_FIRST + timedelta(hours=number)).isoformat(timespec="milliseconds")
    points = [FrontierPoint(size=10**8 + 10**7 * n, bpw=2 + n / 10, kld=0.4 * 0.9**n) for n in range(_POINTS)]
    return Job(
        request=request,
        status=Status.DONE,
        created=when,
        updated=when,
        artifacts=tuple(
            Artifact(name=step.product, size=size, sha256=_digest(step.product)) for step in files_made(request)
        ),
        evaluations=tuple(_evaluation(request, quant, size, 0.001 * (n + 1)) for n, quant in enumerate(types)),
        frontier=tuple(points),
    )


def _evaluation(request: Request, quant: str, size: int, kld: float) -> Evaluation:
    figures = {"ppl": 11.25, "base_ppl": 11.2, "ppl_ratio": 1.0045, "kld": kld, "same_top": 92.5}
    quality = Quality(**dict.fromkeys(Quality.__dataclass_fields__, 0.125) | figures)
    return Evaluation(
        quant=quant_name(request, quant),
        quant_sha256=_digest(quant_name(request, quant)),
        size=size,
        bpw=4.5,
        base=base_name(request),
        base_sha256=_digest(base_name(request)),
        text="bundled",
        text_sha256=_digest("bundled"),
        llama="0c1e57098",
        chunks=16,
        tokens=4080,
        quality=quality,
        speed=Speed(threads=2, prompt_tps=90.3, prompt_tps_error=1.2, generation_tps=57.3, generation_tps_error=0.8),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

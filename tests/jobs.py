"""Jobs that nobody runs, for tests of what is noted about them."""

from __future__ import annotations

from dataclasses import fields, replace

from ggufy.core.job import Artifact, Job, Request, Status
from ggufy.core.metrics import Evaluation, Quality
from ggufy.core.source import Source


def job(
    name: str, status: Status = Status.QUEUED, artifacts: int = 0, *, repo_id: str = "", content: str = "ab"
) -> Job:
    source = Source(kind="checkpoint", path="/m.pth", size=10, sha256=content * 32)
    made = tuple(artifact(f"{name}-{n}.gguf", n) for n in range(artifacts))
    request = Request(name=name, source=source, quant_types=("Q8_0",), outtype="f16", repo_id=repo_id)
    return Job(request=request, status=status, artifacts=made)


def artifact(name: str, size: int = 1) -> Artifact:
    return Artifact(name=name, size=size, sha256="cd" * 32)


def figures(quant: str, kld: float = 0.01) -> Evaluation:
    """Of a quant that was measured."""
    quality = replace(Quality(**dict.fromkeys([one.name for one in fields(Quality)], 1.0)), kld=kld)
    return Evaluation(
        quant=quant,
        quant_sha256="cd" * 32,
        size=1,
        bpw=4.5,
        base="m-F16.gguf",
        base_sha256="ab" * 32,
        text="text.txt",
        text_sha256="ef" * 32,
        llama="abc",
        chunks=16,
        tokens=4000,
        quality=quality,
    )

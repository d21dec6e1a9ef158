"""A step of one's own in one file: a list of digests beside the quants, as `sha256sum -c` reads it."""

from __future__ import annotations

from ggufy.core.job import Artifact, Request
from ggufy.core.plan import Step, Workload
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.local_step import LocalStep
from ggufy.system.files import partial, sha256


class ChecksumStep(LocalStep):
    """Comes last, when all quants are there."""

    kind = "checksum"
    product_name = "checksums"
    advice = "For checking downloads."

    @classmethod
    def added(cls, request: Request, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        quants = tuple(request.file_of(quant) for quant in request.quants)
        return (*steps, cls(product=f"{request.name}-SHA256SUMS", reads=quants))

    def seconds(self, load: Workload) -> float:
        return sum(load.sizes.get(name, 0) for name in self.reads) / 1e9

    def size(self, forecast: JobForecast) -> int:
        return sum(64 + 2 + len(name.encode()) + 1 for name in self.reads)

    def run(self, ctx: Context) -> Artifact:
        target = ctx.path(self.product)
        with partial(target) as part:
            lines = [f"{sha256(ctx.path(name))}  {name}\n" for name in self.reads]
            part.write_text("".join(lines), encoding="utf-8")
        return artifact_of(target)

"""What a model card says, gathered: from the job, from other jobs that brought files to the same repo, from what the
repo holds, and from what is here. Functions over plain values; only heads of GGUFs are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ggufy import __version__
from ggufy.card import CardFacts
from ggufy.catalog import BY_NAME, make_order
from ggufy.evaluation import Evaluation
from ggufy.hub.protocol import RemoteFile
from ggufy.job import Job, Request
from ggufy.plan import base_name, quant_name
from ggufy.quantize.mixes import STOCK, is_rwkv, rescaling
from ggufy.sources.gguf import GgufHead, read_head
from ggufy.world import OLLAMA_FILES, speaks

if TYPE_CHECKING:
    from ggufy.steps.forecast import JobForecast

HeldFile = Callable[[str], RemoteFile | None]  # what the repo holds under a name


def gather(
    job: Job,
    jobs: Iterable[Job],
    *,
    sizes: Mapping[str, int],
    file: HeldFile,
    folder: Path,
    forecast: JobForecast | None,
    llama_commit: str,
) -> CardFacts:
    """The facts for `job`'s card; `jobs` are all there are.

    `sizes` are bytes by name of what the repo holds with this commit, `file` says what it held before. `folder` is
    where the job's products are, as far as they are here.
    """
    request = job.request
    base = folder / base_name(request)
    head = forecast.base if forecast else (read_head(base) if base.exists() else None)
    return CardFacts(
        shown=with_others(job, brothers(job, jobs), sizes),
        uploaded=sizes,
        bpw={t: f.bpw for t, f in forecast.quants.items()} | made_to_order(request, folder) if forecast else {},
        same_as=forecast.same_as if forecast else {},
        mix=request.mix if forecast and is_rwkv(forecast.base) else STOCK,
        rescaled=bool(forecast and rescaling(forecast.base)),
        license=request.source.license,
        llama_commit=llama_commit,
        version=__version__,
        rwkv=speaks_world(request, head, file),
    )


def brothers(job: Job, jobs: Iterable[Job]) -> list[Job]:
    """Other jobs that make files of the same base and options for the same repo."""
    repo_id, inputs = job.request.repo_id, job.request.inputs()
    return [
        other
        for other in jobs
        if other.id != job.id and other.request.repo_id == repo_id and other.request.inputs() == inputs
    ]


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What is known of one quant file of a repo."""

    quant: str  # quant type, or label of a size to order
    mode: str = ""  # of a size to order
    figures: Evaluation | None = None
    text: str = ""  # evaluation text of the figures, as its job names it

    def or_else(self, other: FileFacts) -> FileFacts:
        """These facts, and the other's where these say nothing."""
        if self.figures is None:
            return replace(self, mode=self.mode or other.mode, figures=other.figures, text=other.text)
        return replace(self, mode=self.mode or other.mode)


def files_of(job: Job) -> dict[str, FileFacts]:
    """What a job knows of its quants, by file name."""
    request = job.request
    figures = {found.quant: found for found in job.evaluations}
    return {
        (name := quant_name(request, quant)): FileFacts(
            quant=quant,
            mode=request.mode if quant in request.targets else "",
            figures=figures.get(name),
            text=request.evaluation_text if name in figures else "",
        )
        for quant in request.quants
    }


def with_others(job: Job, others: Iterable[Job], held: Collection[str]) -> Job:
    """The job as the card shows it: with what others have brought to the repo, which holds files of these names."""
    files = files_of(job)
    for other in others:
        for name, facts in files_of(other).items():
            if name in held or name in files:
                files[name] = files[name].or_else(facts) if name in files else facts
    measured = [facts for facts in files.values() if facts.figures]
    first = job.evaluations[0] if job.evaluations else (measured[0].figures if measured else None)
    figures = tuple(f.figures for f in measured if f.figures and first and f.figures.text_sha256 == first.text_sha256)
    quants = [facts.quant for facts in files.values()]
    request = replace(
        job.request,
        quant_types=make_order({quant for quant in quants if quant in BY_NAME}),
        targets=tuple(quant for quant in quants if quant not in BY_NAME),
        mode=job.request.mode or next((facts.mode for facts in files.values() if facts.mode), ""),
        evaluation_text=job.request.evaluation_text or next((facts.text for facts in measured), ""),
    )
    return job.evolve(request=request, evaluations=figures)


def made_to_order(request: Request, folder: Path) -> dict[str, float]:
    """Bits per weight of the sizes to order that are here, by label."""
    paths = {label: folder / quant_name(request, label) for label in request.targets}
    return {label: read_head(path).bpw for label, path in paths.items() if path.exists()}


def speaks_world(request: Request, base: GgufHead | None, file: HeldFile) -> bool:
    """Whether the job's model speaks RWKV's World format.

    Its base GGUF tells. Without one, checkpoints with World's vocabulary do; of others it is seen by what went to the
    repo when the base was here. Ollama's files under these names may be somebody's own: what is in them counts, and
    the prompt in `system` is anybody's.
    """
    if base is not None:
        return speaks(base.metadata)
    if request.source.kind == "checkpoint" and not request.vocab_path:
        return True
    ours = {name: text.encode() for name, text in OLLAMA_FILES.items() if name != "system"}
    return any((there := file(name)) is not None and there.holds(text) for name, text in ours.items())

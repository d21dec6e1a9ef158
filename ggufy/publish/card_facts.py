"""What a model card says, gathered: from the job, from other jobs that brought files to the same repo, from what the
repo holds, and from what is here. Functions over plain values; only heads of GGUFs are read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from ggufy import __version__
from ggufy.core.catalog import make_order
from ggufy.core.errors import SourceError
from ggufy.core.job import STOCK_MIX, Job, Making, Request
from ggufy.core.metrics import Evaluation
from ggufy.core.plan import base_name, quant_name
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.hub.protocol import RemoteFile
from ggufy.models.chat_format import format_called, ollama_files, speaks
from ggufy.models.ollama import TEMPLATE, family_files, family_in
from ggufy.models.vocab import WORLD_FILE, WORLD_SHA256
from ggufy.publish.card import CardFacts
from ggufy.quantize.search.mixes import has_recipes, rescaling
from ggufy.sources.registry import format_of
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.making import of_recipe
from ggufy.steps.outputs import output_of

logger = logging.getLogger(__name__)
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
    request, others = job.request, brothers(job, jobs)
    base = folder / base_name(request)
    head = forecast.gguf if forecast else _gguf_head(base)
    files = with_others(job, others, sizes, file)
    made = {name: facts.making for name, facts in files.items() if facts.making}
    expected = {n: m for other in (*others, job) for n, m in planned(other, made, folder, head).items()}
    if forecast:
        expected |= forecast_makings(request, forecast, llama_commit)
    world = made[base.name].world if base.name in made else None
    rwkv = speaks_world(request, head, file) if world is None else world
    return CardFacts(
        shown=shown(job, files),
        uploaded=sizes,
        making=expected | made,
        license=request.source.license,
        llama_commit=llama_commit,
        version=__version__,
        rwkv=rwkv,
        ollama={} if rwkv or TEMPLATE in sizes or not base.exists() else ollama_of(base, head),
    )


def ollama_of(base: Path, head: GgufHead | None) -> dict[str, str]:
    """Ollama's files for a model that is no RWKV, as far as its template is one of those that are known."""
    try:
        family = family_in(base, head) if head else None
    except SourceError as error:
        logger.warning("no files for Ollama: %s", error)
        return {}
    return family_files(family) if family else {}


def brothers(job: Job, jobs: Iterable[Job]) -> list[Job]:
    """Other jobs that make files of the same base and options for the same repo."""
    inputs = job.request.inputs()
    return [
        other
        for other in jobs
        if other.id != job.id and other.request.shares_repo(job.request) and other.request.inputs() == inputs
    ]


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What records say of one file of a repo."""

    quant: str = ""  # quant type, or label of a size to order; empty: no quant
    making: Making | None = None
    figures: tuple[Evaluation, ...] = ()  # over several texts, if several jobs have measured it

    def or_else(self, other: FileFacts) -> FileFacts:
        """These facts, and the other's where these say nothing."""
        known = {one.over for one in self.figures}
        more = tuple(one for one in other.figures if one.over not in known)
        return replace(self, making=self.making or other.making, figures=self.figures + more)


def files_of(job: Job) -> dict[str, FileFacts]:
    """What a job's record says of its files, by name."""
    request = job.request
    files = {quant_name(request, quant): FileFacts(quant=quant) for quant in request.quants}
    for artifact in job.artifacts:
        files[artifact.name] = replace(files.get(artifact.name, FileFacts()), making=artifact.making)
    for figures in job.evaluations:
        if figures.quant in files:
            files[figures.quant] = replace(files[figures.quant], figures=(figures,))
    return files


def with_others(job: Job, others: Iterable[Job], held: Collection[str], file: HeldFile) -> dict[str, FileFacts]:
    """What is known of the job's files, and of those that others have brought to the repo, which holds files of these
    names. Of a file that the repo has in another form than others know it, they know nothing."""
    files = files_of(job)
    for other in others:
        digests = {artifact.name: artifact.sha256 for artifact in other.artifacts}
        for name, facts in files_of(other).items():
            there = file(name)
            if there is not None and there.sha256 not in (None, digests.get(name, there.sha256)):
                continue
            if name in files:
                files[name] = files[name].or_else(facts)
            elif name in held:
                files[name] = facts
    return files


def shown(job: Job, files: Mapping[str, FileFacts]) -> Job:
    """The job as its card shows it: as if it had made all these files itself."""
    quants = [facts.quant for facts in files.values() if facts.quant]
    types = output_of(job.request).types
    request = replace(
        job.request,
        quant_types=make_order({quant for quant in quants if quant in types}, types),
        targets=tuple(quant for quant in quants if quant not in types),
    )
    return job.evolve(request=request, evaluations=tuple(one for facts in files.values() for one in facts.figures))


def planned(job: Job, known: Collection[str], folder: Path, base: GgufHead | None) -> dict[str, Making]:
    """How a job's files were or will be made, as far as its request and what is here say it: for files that are to
    come, were found, or are older than records that hold that; the names in `known` are none of these."""
    request = job.request
    ours = has_recipes(base) if base else format_of(request.source.kind).rwkv
    found = {}
    for quant in request.quants:
        path = folder / quant_name(request, quant)
        if path.name in known:
            continue
        ordered = quant in request.targets
        found[path.name] = Making(
            bpw=output_of(request).read_types(path)[0] if path.exists() else None,
            mix="" if ordered else request.mix if ours else STOCK_MIX,
            rescaled=bool(base and request.mix != STOCK_MIX and rescaling(base)),
            mode=request.mode if ordered else "",
        )
    return found


def forecast_makings(request: Request, forecast: JobForecast, llama_commit: str) -> dict[str, Making]:
    """The same of quant types whose recipes are known."""
    return {
        quant_name(request, quant): replace(
            of_recipe(found.recipe, forecast.gguf, request, quant, llama=llama_commit), bpw=found.bpw
        )
        for quant, found in forecast.quants.items()
    }


def _gguf_head(base: Path) -> GgufHead | None:
    """Of a base that is here and is a GGUF."""
    return read_head(base) if base.suffix == ".gguf" and base.exists() else None


def speaks_world(request: Request, base: GgufHead | None, file: HeldFile) -> bool:
    """Whether the job's model speaks one of RWKV's chat formats.

    Its base GGUF tells. Without one, checkpoints with World's vocabulary do; of those with another, and of GGUFs, it
    is seen by what went to the repo when the base was here. Ollama's files under these names may be somebody's own:
    what is in them counts, and the prompt in `system` is anybody's.
    """
    if base is not None:
        return speaks(base.metadata)
    brought = {one.sha256 for one in request.source.files if PurePath(one.path).name == WORLD_FILE}
    if format_of(request.source.kind).rwkv and not request.vocab_path and brought <= set(WORLD_SHA256):
        return True
    files = ollama_files(format_called(request.chat_format))
    ours = {name: text.encode() for name, text in files.items() if name != "system"}
    return any((there := file(name)) is not None and there.holds(text) for name, text in ours.items())

"""What stands beside the GGUFs of an output repo. Pure.

    README.md                  the model card: what it is, what is there, what is still to come, how to run it
    size-and-kld.svg           the plot that the card shows, once two quants were measured
    template, system, params   how Ollama is to talk with the model (see chat_format.py, ollama.py)
    chat_template.jinja        how llama.cpp is, where the GGUFs have a template of somebody else's

It is rewritten in the commit that brings a file, so while a job runs the card is the public display of its progress.
Hugging Face draws an SVG of a repo where an image is asked for, as the card does, and shows it as text when it is
opened by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ggufy.core.hosts import MODELSCOPE, RepoName
from ggufy.core.job import RWKV_MIX, Job, Making, Status
from ggufy.core.metrics import comparable
from ggufy.core.plan import base_name, base_type, quant_name
from ggufy.core.source import PinnedAdapter, Source
from ggufy.core.writing import list_shares
from ggufy.models.chat_format import TEMPLATE_FILE, RwkvFormat, format_called, ollama_files
from ggufy.models.chat_names import official
from ggufy.publish import kld_plot as scatter
from ggufy.publish import modelscope_card
from ggufy.publish.card_awq import awq_lines
from ggufy.publish.card_chat import how_to_talk
from ggufy.publish.card_rounding import rounding_lines
from ggufy.publish.card_tables import last_part, public_name, tables
from ggufy.publish.kld_plot import Point, Words
from ggufy.publish.links import repo_page
from ggufy.publish.modelscope_card import TASK, license_name
from ggufy.publish.readme import check_readme, merge_readme, yaml_text
from ggufy.quantize.search import target
from ggufy.sources.registry import format_of
from ggufy.steps import files_made
from ggufy.steps.lora import lora_name
from ggufy.steps.outputs import output_of

__all__ = ["CARD", "PLOT", "CardFacts", "card", "check_readme", "merge_readme", "pages"]

CARD, PLOT = "README.md", "size-and-kld.svg"
_WORDS = Words(size="size", kld="KLD", title="Size of the quants against their KLD: better is lower left")
_RUN_FIRST = ("Q4_K_M", "Q8_0")  # what the tools take when no type is named
# Why a job ended, by its cause (see errors.CAUSES). The error's own sentence may name what is nobody's business.
_CAUSES = {
    "source away": "the server of the source could not be reached",
    "source changed": "the source is another file now than when the job was made",
    "source": "the source could not be read",
    "vocabulary": "the vocabulary does not fit",
    "text": "a text or an imatrix could not be used",
    "tool": "a program of llama.cpp failed",
    "disk": "its disk is too small, or cannot be written",
    "storage": "the account has no room left",
    "token": "its token may not write any more",
    "hub": "the repo could not be read or written",
    "options": "its options do not fit",
    "machine": "a file could not be read or written",
    "unexpected": "an error that nobody thought of",
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says besides its job (see card_facts.py)."""

    uploaded: Mapping[str, int]  # file name -> bytes, of what is in the repo with this commit
    shown: Job | None = None  # the job with what others of the same base brought; None: the job itself
    making: Mapping[str, Making] = field(default_factory=dict)  # by file name, as far as it is known
    license: str = ""  # of the source, as its own card says; empty: unknown, and none is invented
    llama_commit: str = ""  # of now, for files of which it is not known
    version: str = ""  # of ggufy
    rwkv: bool = False  # speaks one of RWKV's chat formats
    ollama: Mapping[str, str] = field(default_factory=dict)  # of another model: what Ollama reads, by name


def pages(job: Job, facts: CardFacts, *, repo: str = "", readme: str | None = None) -> dict[str, str]:
    """Text by file name; none if the repo keeps a card of its own.

    `repo` is which of the job's repos they are for, as core/hosts.py names it (empty: the first). `readme` is the
    README.md that the repo has: what people wrote into it stays. Ollama's files are written once: what somebody
    changes in them stays.
    """
    if job.request.keep_card:
        return {}
    job = facts.shown or job
    found = {CARD: merge_readme(readme, card(job, facts, repo=repo))}
    if points := _points(job):
        found[PLOT] = scatter.document(points, _WORDS)
    if chat := _chat(job, facts):
        files = ollama_files(chat)
        if chat.thinks and not format_of(job.request.source.kind).converts:
            files[TEMPLATE_FILE] = chat.template
    else:
        files = dict(facts.ollama)
    found |= {name: text for name, text in files.items() if name not in facts.uploaded}
    return found


def _chat(job: Job, facts: CardFacts) -> RwkvFormat | None:
    return format_called(job.request.chat_format) if facts.rwkv else None


_RECIPES = (
    "The recipes are ggufy's, made for RWKV: which type each matrix gets follows from its role. No file is larger "
    "than the one that llama-quantize makes under the same name, and S, M and L differ. Small low-rank matrices are "
    "F16 or Q8_0 instead of F32. Unmodified llama.cpp reads these files."
)
_RESCALED = (
    "In the base, as in most GGUF files of RWKV-6, the matrices that write into the residual stream are divided by 2 "
    "for every few blocks (`rwkv6.rescale_every_n_layers`), which would take small weights of deep blocks below what "
    "the quantized types can hold. In the quants they are multiplied back and the key is 0: they lose nothing more to "
    "the division than the base has, where the smallest weights of an F16 are rounded."
)


_TO_ORDER = (
    f"Files with `{target.SUFFIX}` in their names are made to order: of all mixtures of types that are no larger than "
    "the name says, the one that is expected to differ least from the base{how} Their exact bits per weight are in "
    "their metadata (`ggufy.bits_per_weight`); unmodified llama.cpp reads them."
)
_SENSITIVITIES = {
    target.FAST: "by the error of every tensor as every type and how much such errors matter in other models",
    target.STANDARD: "by the error of every tensor as every type and 10 measurements of this model",
    target.THOROUGH: "by the error of every tensor as every type, 26 measurements of this model and some of files",
}


def card(job: Job, facts: CardFacts, *, repo: str = "") -> str:
    """Markdown with front matter; `repo` as for `pages`."""
    request, place = job.request, RepoName.of(repo or job.request.repo_id)
    name, source = request.name, request.source
    named = source.files[0].sha256 if source.files else source.sha256  # of the file that is named, not of all together
    digest = f", sha256 `{named}`" if named else ""
    lines = [
        _front_matter(job, facts, place),
        f"# {request.folder}",
        "",
        f"{output_of(request).title.format(name=name)} Made by ggufy {facts.version} from"
        f" {_origin(source)} (`{last_part(source.path)}`{digest}"
        + (f", revision `{source.revision}`)." if source.revision else ")."),
        "",
        *_adapters("Merged into the model before it was converted, in this order:", request.adapters),
        *_adapters("Not merged, but files of their own here:", request.lora_files),
        *_state(job, facts.uploaded),
        *tables(job, facts.uploaded, facts.making, plot=f"![{_WORDS.title}]({PLOT})" if _points(job) else ""),
        "",
        *_how_made(job, facts),
        "",
        *_how_to_run(job, facts, place),
        "",
        *(how_to_talk(chat, official(name)) if (chat := _chat(job, facts)) else ()),
    ]
    return "\n".join(lines)


def _origin(source: Source) -> str:
    if source.model_id:
        return f"[{RepoName.of(source.model_id).repo_id}]({repo_page(source.model_id)})"
    return f"<{source.url.partition('?')[0]}>" if source.url else "a local file"  # a query may hold a key


def _adapters(title: str, adapters: Sequence[PinnedAdapter]) -> list[str]:
    """What was merged into the model, or lies beside it."""
    if not adapters:
        return []
    lines = [title, ""]
    for one in adapters:
        source = one.source
        where = f"{_origin(source)} (`{last_part(source.path)}`, sha256 `{source.sha256}`"
        where += f", revision `{source.revision}`)" if source.revision else ")"
        facts = [one.kind] + ([f"rank {one.rank}"] if one.rank else [])
        facts += [f"alpha / r = {one.scale:g}"] if one.scale != 1 else []
        lines.append(f"- adapter from {where}: {', '.join(facts)}")
    return [*lines, ""]


def _front_matter(job: Job, facts: CardFacts, place: RepoName) -> str:
    sources = (job.request.source, *(one.source for one in job.request.adapters))
    named = dict.fromkeys(RepoName.of(source.model_id) for source in sources)
    models = [one.repo_id for one in named if one.repo_id and one.host == place.host]  # it links to its own only
    known, rows = official(job.request.name), ["---"]
    if text := facts.license or (known.license if known else ""):
        rows.append(f"license: {yaml_text(license_name(text) if place.host == MODELSCOPE else text)}")
    if known:
        rows += ["language:", *(f"- {language}" for language in known.languages)]
        if not job.request.source.model_id and place.host != MODELSCOPE:
            models.insert(0, known.repo_id)
    if len(models) > 1:
        rows += ["base_model:", *(f"- {yaml_text(model)}" for model in models), "base_model_relation: quantized"]
    elif models:
        rows += [f"base_model: {yaml_text(models[0])}", "base_model_relation: quantized"]
    if place.host == MODELSCOPE:
        rows += ["tasks:", f"- {TASK}"]
    output = output_of(job.request)
    rows += [f"library_name: {output.library}", "quantized_by: ggufy", "tags:"]
    rows += [f"- {tag}" for tag in (*output.tags, "ggufy")]
    if job.request.imatrix != "none":
        rows.append("- imatrix")
    return "\n".join([*rows, "---", ""])


def _state(job: Job, uploaded: Collection[str]) -> list[str]:
    """How far the job is, and how it ended if that was not its end."""
    total = [step.product for step in files_made(job.request)]
    there = sum(name in uploaded for name in total)
    whole = there == len(total)
    files = "**All files are here.**" if whole else f"**{there} of {len(total)} files are here.**"
    cause = _CAUSES.get(job.cause, "an error")
    if job.status is Status.FAILED:
        return [f"{files} The job stopped before its end: {cause}.", ""]
    if job.status is Status.CANCELLED and not whole:
        return [f"{files} The job was cancelled.", ""]
    if job.status is Status.PAUSED:
        return [f"{files} The job is paused{f' and waits for its owner: {cause}' if job.error else ''}.", ""]
    if job.status in (Status.RUNNING, Status.QUEUED):
        if not whole:
            return [f"**In progress: {there} of {len(total)} files are here**, the others follow by themselves.", ""]
        measured = {found.quant for found in job.evaluations}
        if job.request.evaluate and any(quant_name(job.request, t) not in measured for t in job.request.quants):
            return [f"{files} Their figures follow.", ""]
    return [] if whole else [f"{files}", ""]


def _points(job: Job) -> list[Point]:
    """The plot's, smallest file first; empty where there is nothing to compare."""
    types = {quant_name(job.request, quant_type): quant_type for quant_type in job.request.quants}
    groups = comparable(job.evaluations)
    found = [
        Point(name=types[e.quant], size=e.size, kld=e.quality.kld)
        for e in sorted(groups[0] if groups else [], key=lambda e: e.size)
        if e.quant in types
    ]
    return found if len(scatter.measured(found)) > 1 else []


def _how_made(job: Job, facts: CardFacts) -> list[str]:
    request = job.request
    made = [facts.making[name] for name in _made(job) if name in facts.making]
    commits = list(dict.fromkeys(making.llama for making in made if making.llama)) or [facts.llama_commit]
    made_with = output_of(request).made_with
    by = " by llama.cpp's converter" if format_of(request.source.kind).carries else ""
    lines = ["## How it was made", "", f"Converted to {base_type(request)}{by} and quantized with {made_with}"]
    lines[-1] += "".join(
        f" {commit}" if place == 0 else f", {commit}" for place, commit in enumerate(commits) if commit
    )
    if request.imatrix == "auto":
        chunks = f"up to {request.chunks}" if request.chunks else "all"
        lines.append(
            f"with an imatrix from {chunks} chunks of 512 tokens of the calibration text "
            f"{public_name(request.calibration)} (sha256 `{request.calibration_sha256}`)"
        )
        shares = list_shares(request.calibration_writing)
        lines[-1] += f": {shares}." if shares else "."
    elif request.imatrix == "file":
        lines.append(f"with an imatrix that its user gave (sha256 `{request.imatrix_sha256}`).")
    else:
        lines.append("without an imatrix.")
    if any(making.mix == RWKV_MIX for making in made):
        lines += ["", _RECIPES]
    if any(making.rescaled for making in made):
        lines += ["", _RESCALED]
    lines += rounding_lines(job, facts.making)
    return lines + awq_lines(job, facts.making) + _to_order(job, facts)


def _made(job: Job) -> list[str]:
    """File names, the base's first."""
    return [base_name(job.request), *(quant_name(job.request, quant) for quant in job.request.quants)]


def _to_order(job: Job, facts: CardFacts) -> list[str]:
    """How the sizes to order were found: each in its own mode."""
    modes: dict[str, list[str]] = {}
    for label in job.request.targets:
        made = facts.making.get(quant_name(job.request, label))
        modes.setdefault((made.mode if made else "") or job.request.mode, []).append(target.short(label))
    if not modes:
        return []
    if len(modes) == 1:
        (mode,) = modes
        how = f", {_SENSITIVITIES[mode]}." if mode in _SENSITIVITIES else "."
        return ["", _TO_ORDER.format(how=how)]
    lines = ["", _TO_ORDER.format(how=", which was found in several ways."), ""]
    return lines + [
        f"- {', '.join(f'`{size}`' for size in sizes)}: {_SENSITIVITIES.get(mode, 'expected as its maker chose')}"
        for mode, sizes in modes.items()
    ]


def _how_to_run(job: Job, facts: CardFacts, place: RepoName) -> list[str]:
    request, quant_type = job.request, _example(job, facts.uploaded)
    converted, how_to_run = format_of(request.source.kind).converts, output_of(request).how_to_run
    file = _file_of(job, quant_type)
    lines = how_to_run(place.repo_id, quant_type, file=file, chat=_chat(job, facts), converted=converted)
    if request.lora_files:
        example = lora_name(request, request.lora_files[0])
        lines += ["", "With the adapter, which any type of the model takes:", "", "```sh"]
        lines += [f"hf download {place.repo_id} {example} --local-dir ."]
        lines += [f"llama-cli -hf {place.repo_id}:{quant_type} --lora {example}", "```"]
    if place.host == MODELSCOPE:
        lines = modelscope_card.how_to_run(lines, place.repo_id, quant_type, file)
    return ["## How to run one", "", *lines]


def _file_of(job: Job, label: str) -> str:
    """Name of the file that tools know by this label."""
    names = [quant_name(job.request, quant) for quant in job.request.quants if quant.rpartition("-")[2] == label]
    return names[0] if names else base_name(job.request)


def _example(job: Job, uploaded: Collection[str]) -> str:
    """The type that the lines name: one that is there, if any is."""
    types = job.request.quants
    here = [quant_type for quant_type in types if quant_name(job.request, quant_type) in uploaded] or types
    first = next((quant_type for quant_type in (*_RUN_FIRST, *here) if quant_type in here), base_type(job.request))
    return first.rpartition("-")[2]  # of a size to order, the label that all tools know

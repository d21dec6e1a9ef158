"""What stands beside the GGUFs of an output repo. Pure.

    README.md                  the model card: what it is, what is there, what is still to come, how to run it
    size-and-kld.svg           the plot that the card shows, once two quants were measured
    template, system, params   how Ollama is to talk with an RWKV (see world.py)

It is rewritten in the commit that brings a file, so while a job runs the card is the public display of its progress.
Hugging Face draws an SVG of a repo where an image is asked for, as the card does, and shows it as text when it is
opened by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ggufy import scatter
from ggufy.catalog import BY_NAME
from ggufy.evaluation import Evaluation
from ggufy.files import human_size
from ggufy.job import Job, Source, Status
from ggufy.plan import base_name, folder_name, imatrix_name, quant_name
from ggufy.quantize import target
from ggufy.quantize.mixes import RWKV, STOCK
from ggufy.scatter import Point, Words
from ggufy.world import LLAMA_FORMAT, LLAMA_STOP, OLLAMA_FILES

CARD, PLOT = "README.md", "size-and-kld.svg"
_WORDS = Words(size="size", kld="KLD", title="Size of the quants against their KLD: better is lower left")
_RUN_FIRST = ("Q4_K_M", "Q8_0")  # what the tools take when no type is named
_PLAIN = re.compile("[A-Za-z][A-Za-z0-9]*([._/-][A-Za-z0-9]+)*")  # mit, apache-2.0, BlinkDL/rwkv-7-world
_NO_TEXT = {"y", "yes", "n", "no", "on", "off", "true", "false", "null"}  # to one version of YAML or the other
_UNSEEN = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")  # YAML takes them as \uXXXX only


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says besides its job."""

    shown: Job | None = None  # the job with what others of the same base brought; None: the job itself
    uploaded: Mapping[str, int]  # file name -> bytes, of what is in the repo with this commit
    bpw: Mapping[str, float] = field(default_factory=dict)  # quant type -> bits per weight
    same_as: Mapping[str, str] = field(default_factory=dict)  # quant type -> type with the same tensors
    mix: str = STOCK  # whose recipes the quants were made by
    rescaled: bool = False  # what was divided in the base of a deep RWKV-6 is multiplied back in the quants
    license: str = ""  # of the source, as its own card says; empty: unknown, and none is invented
    llama_commit: str = ""
    version: str = ""  # of ggufy
    rwkv: bool = False  # speaks RWKV's World format


def pages(job: Job, facts: CardFacts) -> dict[str, str]:
    """Text by file name. Ollama's files are written once: what somebody changes in them stays."""
    job = facts.shown or job
    found = {CARD: card(job, facts)}
    if points := _points(job):
        found[PLOT] = scatter.document(points, _WORDS)
    if facts.rwkv:
        found |= {name: text for name, text in OLLAMA_FILES.items() if name not in facts.uploaded}
    return found


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
    "the name says, the one that is expected to differ least from the base, {how}. Their exact bits per weight are in "
    "their metadata (`ggufy.bits_per_weight`); unmodified llama.cpp reads them."
)
_SENSITIVITIES = {
    target.FAST: "by the error of every tensor as every type and how much such errors matter in other RWKV models",
    target.STANDARD: "by the error of every tensor as every type and 10 measurements of this model",
    target.THOROUGH: "by the error of every tensor as every type, 26 measurements of this model and some of files",
}


def card(job: Job, facts: CardFacts) -> str:
    """Markdown with front matter."""
    request = job.request
    name, source = request.name, request.source
    digest = f", sha256 `{source.sha256}`" if source.sha256 else ""
    lines = [
        _front_matter(job, facts),
        f"# {folder_name(name)}",
        "",
        f"GGUF files of {name}, for llama.cpp and what is built on it. Made by ggufy {facts.version} from"
        f" {_origin(source)} (`{source.path.rsplit('/', 1)[-1]}`{digest}"
        + (f", revision `{source.revision}`)." if source.revision else ")."),
        "",
        *_state(job, facts.uploaded),
        *_table(job, facts),
        "",
        *_how_made(job, facts),
        "",
        *_how_to_run(job, facts),
        "",
    ]
    return "\n".join(lines)


def _origin(source: Source) -> str:
    if source.model_id:
        return f"[{source.model_id}](https://huggingface.co/{source.model_id})"
    return f"<{source.url.partition('?')[0]}>" if source.url else "a local file"  # a query may hold a key


def _front_matter(job: Job, facts: CardFacts) -> str:
    source = job.request.source
    rows = ["---"]
    if facts.license:
        rows.append(f"license: {_yaml(facts.license)}")
    if source.model_id:
        rows += [f"base_model: {_yaml(source.model_id)}", "base_model_relation: quantized"]
    rows += ["library_name: gguf", "quantized_by: ggufy", "tags:", "- gguf", "- llama-cpp", "- ggufy"]
    if job.request.imatrix != "none":
        rows.append("- imatrix")
    return "\n".join([*rows, "---", ""])


def _yaml(text: str) -> str:
    """The text as a string of YAML on one line, whatever it is: it comes from strangers' cards. YAML reads JSON's."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NO_TEXT:
        return text
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _state(job: Job, uploaded: Collection[str]) -> list[str]:
    total = [base_name(job.request), *(quant_name(job.request, t) for t in job.request.quants)]
    total += [imatrix_name(job.request)] if job.request.imatrix != "none" else []
    there = sum(name in uploaded for name in total)
    if there == len(total):
        return []
    if job.status is Status.FAILED:
        return [f"**{there} of {len(total)} files.** The job stopped: {job.error}", ""]
    if job.status is Status.CANCELLED:
        return [f"**{there} of {len(total)} files.** The job was cancelled.", ""]
    if job.status is Status.PAUSED:
        return [f"**{there} of {len(total)} files.** The job is paused.", ""]
    return [f"**In progress: {there} of {len(total)} files are here**, the others follow by themselves.", ""]


def _table(job: Job, facts: CardFacts) -> list[str]:
    """Size-sorted; what is to come stands at the end."""
    request = job.request
    rows = {base_name(request): ("base GGUF, " + request.outtype.upper(), "Unquantized.")}
    if request.imatrix != "none":
        rows[imatrix_name(request)] = ("imatrix", "For making other quants.")
    for quant_type in request.quants:
        same = facts.same_as.get(quant_type)
        advice = f"Same tensors as {same}." if same else _advice(quant_type)
        rows[quant_name(request, quant_type)] = (quant_type, advice)
    measured = {e.quant: e for e in job.evaluations}
    bpw = {e.quant: e.bpw for e in job.evaluations}
    bpw |= {quant_name(request, quant_type): value for quant_type, value in facts.bpw.items()}
    timed = any(e.speed for e in job.evaluations)
    figures = [*(["KLD", "PPL", "PPL ratio", "same top p"] if measured else []), *(["t/s"] if timed else [])]
    lines = [f"| {' | '.join(['file', 'type', 'size', 'bpw', *figures])} | |", "|---" * (5 + len(figures)) + "|"]
    for name in sorted(rows, key=lambda n: (n not in facts.uploaded, facts.uploaded.get(n, 0))):
        kind, advice = rows[name]
        here = name in facts.uploaded
        cells = [f"[{name}]({name})" if here else name, kind, human_size(facts.uploaded[name]) if here else ""]
        cells.append(f"{bpw[name]:.2f}" if name in bpw else "")
        cells += _figures(measured.get(name))[: len(figures)]
        lines.append("| " + " | ".join([*cells, advice if here else "to come"]) + " |")
    plot = ["", f"![{_WORDS.title}]({PLOT})"] if _points(job) else []
    return [*lines, *_measured_how(job), *plot]


def _advice(quant_type: str) -> str:
    return BY_NAME[quant_type].advice if quant_type in BY_NAME else target.advice(quant_type)


def _figures(measured: Evaluation | None) -> list[str]:
    if measured is None:
        return [""] * 5
    quality, speed = measured.quality, measured.speed
    return [
        f"{quality.kld:.4f} ± {quality.kld_error:.4f}",
        f"{quality.ppl:.3f}",
        f"{quality.ppl_ratio:.4f} ± {quality.ppl_ratio_error:.4f}",
        f"{quality.same_top:.1f} ± {quality.same_top_error:.1f} %",
        f"{speed.generation_tps:.1f} ± {speed.generation_tps_error:.1f}" if speed else "",
    ]


def _points(job: Job) -> list[Point]:
    """The plot's, smallest file first; empty where there is nothing to compare."""
    types = {quant_name(job.request, quant_type): quant_type for quant_type in job.request.quants}
    found = [
        Point(name=types[e.quant], size=e.size, kld=e.quality.kld)
        for e in sorted(job.evaluations, key=lambda e: e.size)
        if e.quant in types
    ]
    return found if len(scatter.measured(found)) > 1 else []


def _measured_how(job: Job) -> list[str]:
    """What the columns are, and over which text."""
    if not job.evaluations:
        return []
    first = job.evaluations[0]
    timed = next((e.speed for e in job.evaluations if e.speed), None)
    threads = f"{timed.threads} thread{'s' if timed.threads > 1 else ''}" if timed else ""
    return [
        "",
        f"Measured with llama-perplexity {first.llama[:9]} against the base GGUF over {first.tokens:,} tokens of "
        f"{_public(job.request.evaluation_text)} text (sha256 `{first.text_sha256}`), none of it used for "
        f"calibration; ± is one standard error. Perplexity of the base: {first.quality.base_ppl:.3f}. KLD: how far "
        "the predictions are from the base's, in nats a token; same top p: how often both expect the same next token"
        + (
            f"; t/s: tokens that llama-bench wrote in a second, with {threads} of the machine at work."
            if timed
            else "."
        ),
    ]


def _how_made(job: Job, facts: CardFacts) -> list[str]:
    request = job.request
    lines = ["## How it was made", "", f"Converted to {request.outtype.upper()} and quantized with llama.cpp"]
    lines[-1] += f" {facts.llama_commit}" if facts.llama_commit else ""
    if request.imatrix == "auto":
        chunks = f"up to {request.chunks}" if request.chunks else "all"
        lines.append(
            f"with an imatrix from {chunks} chunks of 512 tokens of the calibration text "
            f"{_public(request.calibration)} (sha256 `{request.calibration_sha256}`)."
        )
    elif request.imatrix == "file":
        lines.append(f"with an imatrix that its user gave (sha256 `{request.imatrix_sha256}`).")
    else:
        lines.append("without an imatrix.")
    if facts.mix == RWKV:
        lines += ["", _RECIPES] + (["", _RESCALED] if facts.rescaled else [])
    if request.targets:
        lines += ["", _TO_ORDER.format(how=_SENSITIVITIES[request.mode])]
    return lines


def _public(calibration: str) -> str:
    """How the text is called in public: a path on somebody's machine is its last part."""
    return calibration.rsplit("/", 1)[-1] if calibration.startswith(("/", "~", ".")) else calibration


def _how_to_run(job: Job, facts: CardFacts) -> list[str]:
    """Lines to copy. Their flags are tested with the programs; see world.py for why RWKV needs them."""
    repo, quant_type = job.request.repo_id, _example(job, facts.uploaded)
    flags = [LLAMA_STOP] if facts.rwkv else []
    if facts.rwkv and job.request.source.kind == "gguf":
        flags.insert(0, LLAMA_FORMAT)
    llama = " ".join([f"-hf {repo}:{quant_type}", *flags])
    message = '{"messages": [{"role": "user", "content": "Hello!"}]}'
    lines = ["## How to run one", "", "With [llama.cpp](https://github.com/ggml-org/llama.cpp), in a terminal:", ""]
    lines += ["```sh", f"llama-cli {llama}", "```", ""]
    lines += ["As a server for everything that speaks OpenAI's protocol (base URL `http://127.0.0.1:8080/v1`):", ""]
    lines += ["```sh", f"llama-server {llama}", "```", ""]
    lines += ["```sh", 'curl http://127.0.0.1:8080/v1/chat/completions -H "Content-Type: application/json" \\']
    lines += [f"  -d '{message}'", "```", "", "With [Ollama](https://ollama.com):", ""]
    lines += ["```sh", f"ollama run hf.co/{repo}:{quant_type}", "```"]
    if facts.rwkv:
        lines += [
            "",
            f"`{LLAMA_STOP}` ends a reply where the model would begin the next question; a request to the server "
            "that has a `stop` of its own has to name it too. Ollama reads it from the file `params`.",
        ]
    return lines


def _example(job: Job, uploaded: Collection[str]) -> str:
    """The type that the lines name: one that is there, if any is."""
    types = job.request.quants
    here = [quant_type for quant_type in types if quant_name(job.request, quant_type) in uploaded] or types
    first = next(
        (quant_type for quant_type in (*_RUN_FIRST, *here) if quant_type in here), job.request.outtype.upper()
    )
    return first.rpartition("-")[2]  # of a size to order, the label that all tools know

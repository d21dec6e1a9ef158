"""GGUF files, for llama.cpp and what is built on it: made from the base with the engine, by a recipe that follows from
the quant type or was found for a size, going on with what an earlier run left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ggufy.core import outputs
from ggufy.core.catalog import BY_NAME
from ggufy.core.job import COMPENSATED, PLAIN, RWKV_MIX, Artifact, Making
from ggufy.core.metrics import Evaluation
from ggufy.core.outputs import OUTPUT_NAMES
from ggufy.core.plan import Step
from ggufy.formats.gguf import read_head
from ggufy.llama import ggml, tools
from ggufy.llama.install import Llama
from ggufy.llama.perplexity import logits_bytes
from ggufy.models.chat_format import TEMPLATE_FILE, RwkvFormat, llama_flags
from ggufy.quantize import engine
from ggufy.quantize.imatrix import read_imatrix, with_embedding
from ggufy.quantize.recipe import ImatrixFacts, forecast, same_tensors, stock_recipe
from ggufy.quantize.search import fallback
from ggufy.quantize.search.mixes import has_recipes, mixed, rescaling
from ggufy.quantize.search.target import of_label
from ggufy.quantize.task import QuantizeTask, planned_facts
from ggufy.steps.awq import STAGES, AwqChoice, make_better
from ggufy.steps.context import Context, artifact_of
from ggufy.steps.covariance import covariances_of, why_plain
from ggufy.steps.evaluate import EvaluationConfig, evaluate
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.job_texts import figures_folder, pinned_text
from ggufy.steps.making import of_recipe, with_quant
from ggufy.steps.outputs.output_format import MeasureOrder, OutputFormat
from ggufy.steps.partial_backup import PartialBackup
from ggufy.steps.target_size import STAGES_OF_A_SIZE, Stages, imatrix_of, mixer_of, sized
from ggufy.system import resources
from ggufy.system.control import Control
from ggufy.system.files import PART_SUFFIX

Report = Callable[[float], None]


class Gguf(OutputFormat):
    """See above."""

    names = OUTPUT_NAMES[outputs.GGUF]
    chats = measured = to_order = True
    title = "GGUF files of {name}, for llama.cpp and what is built on it."
    made_with = "llama.cpp"
    measured_with = "llama-perplexity"
    library = "gguf"
    tags = ("gguf", "llama-cpp")

    def forecast(
        self,
        base: Path,
        types: Iterable[str],
        *,
        llama: Llama,
        run: tools.ToolRun,
        facts: ImatrixFacts | None,
        mix: str = RWKV_MIX,
        compensated: bool = False,
    ) -> JobForecast:
        head, tool = read_head(base), llama.tool("llama-quantize")
        recipes = {t: mixed(head, t, stock=stock_recipe(tool, run, base, t), mix=mix) for t in types}
        more = planned_facts(compensated=compensated)
        quants = {t: forecast(head, recipe, facts, more) for t, recipe in recipes.items()}
        return JobForecast(
            base=head,
            quants=quants,
            same_as=same_tensors(recipes),
            instead=fallback.instead(head, quants),
            compensated=compensated,
        )

    def check(self, ctx: Context) -> None:
        ggml.load(ctx.llama.bin)

    def make(self, ctx: Context, step: Step) -> Artifact:
        """With no local path in its metadata."""
        target = ctx.path(step.product)

        def told(fraction: float) -> None:
            ctx.report(step, fraction)

        report: Report = told
        if step.quant_type in ctx.request.targets:
            stages = Stages(STAGES_OF_A_SIZE[ctx.request.mode] + 1, told)
            order, report = _to_order(ctx, step, stages), stages.last
        else:
            order = _of_type(ctx, step)
        if ctx.request.awq and order.imatrix:
            return self._better(ctx, step, order, report)
        backup = None
        if ctx.safe is not None:
            part = target.with_name(target.name + PART_SUFFIX)
            backup = PartialBackup(ctx.safe, part, ctx.work / "quantize", lambda: ctx.limit() * ctx.share())
            backup.restore()

        def reported(fraction: float) -> None:
            report(fraction)
            if backup:
                backup.looked()

        control = Control(limit=ctx.limit, duty=ctx.share, stopped=ctx.stopped, report=reported)
        engine.quantize(order, control, ggml=ggml.load(ctx.llama.bin))
        return _artifact(ctx, step, order)

    def _better(self, ctx: Context, step: Step, order: QuantizeTask, report: Report) -> Artifact:
        """With or without activation-aware scales."""
        text = ctx.request.evaluation_texts[0]

        def measured(quant: Path, told: Report) -> Evaluation:
            asked = MeasureOrder(
                text=pinned_text(ctx, text), folder=figures_folder(ctx, text), speed=False, report=told
            )
            return self._measured(ctx, step, order.base, quant, asked)

        choice = make_better(ctx, step, order, measured, Stages(STAGES, report))
        return _artifact(ctx, step, order, choice)

    def predictions_bytes(self, vocab_size: int, chunks: int) -> int:
        return logits_bytes(vocab_size, chunks)

    def measure(self, ctx: Context, step: Step, order: MeasureOrder) -> Evaluation:
        """With llama-perplexity and llama-bench."""
        base, quant = (ctx.path(product) for product in step.reads)
        return self._measured(ctx, step, base, quant, order)

    def _measured(self, ctx: Context, step: Step, base: Path, quant: Path, order: MeasureOrder) -> Evaluation:
        threads, run = ctx.threads, ctx.tool_run(step)
        config = EvaluationConfig(
            text=order.text,
            folder=order.folder,
            environment=resources.child_environment(threads=threads, home=ctx.settings.home),
            llama=ctx.llama,
            threads=threads,
            chunks=ctx.request.evaluation_chunks,
            speed=order.speed,
            keep_logits=True,
            all_chunks=True,
            digests=ctx.digests,
            log=run.log,
            limit=run.limit,
            share=ctx.share,
            report=lambda what, fraction: order.report(fraction),
            stopped=ctx.stopped,
            waits=ctx.waits,
        )
        return evaluate(base, [quant], config)[0]

    def read_types(self, path: Path) -> tuple[float, str]:
        head = read_head(path)
        types = repr(sorted((tensor.name, tensor.type) for tensor in head.tensors.values()))
        return head.bpw, sha256(types.encode()).hexdigest()

    def how_to_run(
        self, repo_id: str, quant_type: str, *, file: str, chat: RwkvFormat | None, converted: bool
    ) -> list[str]:
        """The flags are tested with the programs; see chat_format.py for why RWKV needs them."""
        llama = " ".join([f"-hf {repo_id}:{quant_type}", *(llama_flags(chat, converted=converted) if chat else ())])
        message = '{"messages": [{"role": "user", "content": "Hello!"}]}'
        lines = ["With [llama.cpp](https://github.com/ggml-org/llama.cpp), in a terminal:", ""]
        lines += ["```sh", f"llama-cli {llama}", "```", ""]
        lines += [
            "As a server for everything that speaks OpenAI's protocol (base URL `http://127.0.0.1:8080/v1`):",
            "",
        ]
        lines += ["```sh", f"llama-server {llama}", "```", ""]
        lines += ["```sh", 'curl http://127.0.0.1:8080/v1/chat/completions -H "Content-Type: application/json" \\']
        lines += [f"  -d '{message}'", "```", "", "With [Ollama](https://ollama.com):", ""]
        lines += ["```sh", f"ollama run hf.co/{repo_id}:{quant_type}", "```"]
        return lines + (_about_flags(chat, llama) if chat else [])


def _artifact(ctx: Context, step: Step, order: QuantizeTask, choice: AwqChoice | None = None) -> Artifact:
    """Of what the order made."""
    made = of_recipe(order.recipe, read_head(order.base), ctx.request, step.quant_type, llama=ctx.llama.commit)
    made = _rounded(replace(made, rescaled=bool(order.scales)), ctx, step, order)
    if choice:
        made = replace(made, awq=choice.kept, plain_kld=choice.plain_kld, awq_kld=choice.awq_kld)
    return with_quant(artifact_of(order.target), order.target, made)


def _rounded(made: Making, ctx: Context, step: Step, order: QuantizeTask) -> Making:
    """With how its codes were rounded, if compensated ones were asked for."""
    if order.covariances is not None:
        return replace(made, rounding=COMPENSATED)
    if ctx.request.compensates(step.quant_type):
        return replace(made, rounding=PLAIN, plain_because=why_plain(ctx, read_head(order.base)))
    return made


def _about_flags(chat: RwkvFormat, line: str) -> list[str]:
    """What the options of the lines are for, as far as it is not plain."""
    lines = []
    stop = chat.stops[0].replace("\n", "\\n")
    if f'-r "{stop}"' in line:
        lines += [
            "",
            f'`-r "{stop}"` ends a reply where the model would begin the next question; a request to the server '
            "that has a `stop` of its own has to name it too. Ollama reads it from the file `params`.",
        ]
    if TEMPLATE_FILE in line:
        lines += [
            "",
            f"`{TEMPLATE_FILE}` is a file of this repo: fetch it first; the GGUF has another one.",
        ]
    return lines


GGUF = Gguf()


def _to_order(ctx: Context, step: Step, stages: Stages) -> QuantizeTask:
    """By the best recipe for its size."""
    target, label = of_label(step.quant_type)
    with mixer_of(ctx, step, stages) as recipe_search:
        found = sized(recipe_search, target, ctx.request.mode)
        return recipe_search.order(found.mix, ctx.path(step.product), found.facts, label)


def _of_type(ctx: Context, step: Step) -> QuantizeTask:
    """By the recipe of a quant type."""
    base = ctx.path(step.reads[0])
    imatrix = imatrix_of(ctx, step)
    head = read_head(base)
    ours = ctx.request.mix == RWKV_MIX and has_recipes(head)
    stock = stock_recipe(
        ctx.llama.tool("llama-quantize"),
        ctx.tool_run(step),
        base,
        step.quant_type,
        imatrix=str(imatrix.absolute()) if imatrix else "",
    )
    measured = read_imatrix(imatrix) if imatrix else None
    siblings = [ctx.path(ctx.request.file_of(quant_type)) for quant_type in ctx.request.quant_types]
    return QuantizeTask(
        base=base,
        target=ctx.path(step.product),
        recipe=mixed(head, step.quant_type, stock=stock, mix=ctx.request.mix),
        ftype=BY_NAME[step.quant_type].ftype,
        imatrix=measured and with_embedding(measured, head) if ours else measured,
        scales=rescaling(head) if ours else {},
        siblings=[path for path in siblings if path.exists()],
        identity=ctx.digests.get(base.absolute(), ""),
        covariances=covariances_of(ctx, step),
    )

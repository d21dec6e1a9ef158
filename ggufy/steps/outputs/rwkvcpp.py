"""Files of rwkv.cpp: one type for the matrices that it quantizes, without an imatrix, byte for byte as its own
quantizer writes them; of the programs of llama.cpp none is needed, only ggml's kernels."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from ggufy.core.errors import SourceError
from ggufy.core.job import STOCK_MIX, Artifact, Making
from ggufy.core.metrics import Evaluation
from ggufy.core.outputs import OUTPUT_NAMES, RWKVCPP
from ggufy.core.plan import Step
from ggufy.formats.rwkvcpp import RwkvcppHead, read_head
from ggufy.llama import ggml
from ggufy.llama.tools import CONTEXT
from ggufy.models.chat_format import RwkvFormat
from ggufy.quantize.recipe import Forecast
from ggufy.rwkvcpp import quantize
from ggufy.rwkvcpp.measure import MeasureConfig, measure
from ggufy.rwkvcpp.tokenizer import AUTO
from ggufy.steps.context import Context
from ggufy.steps.convert import pinned_vocab
from ggufy.steps.job_forecast import JobForecast
from ggufy.steps.outputs.output_format import MeasureOrder, OutputFormat
from ggufy.system.control import Control


class Rwkvcpp(OutputFormat):
    """See above."""

    names = OUTPUT_NAMES[RWKVCPP]
    chats = measured = True
    title = "Files of {name} for [rwkv.cpp](https://github.com/RWKV/rwkv.cpp)."
    made_with = "the kernels of llama.cpp"
    measured_with = "ggufy's own engine and the kernels of llama.cpp"
    speed_unit = "ms"
    library = "rwkv"
    tags = ("rwkv", "rwkv.cpp")

    def forecast(self, base: Path, types: Iterable[str], **_: Any) -> JobForecast:
        """Raises SourceError for a type whose blocks do not fit the model's rows."""
        head = read_head(base)
        return JobForecast(base=head, quants={name: _forecast(head, name) for name in types}, same_as={})

    def fitting(self, base: Path) -> list[str]:
        head = read_head(base)
        return [name for name in self.types if _fits(head, name)]

    def check(self, ctx: Context) -> None:
        ggml.load(ctx.llama.bin)

    def make(self, ctx: Context, step: Step) -> Artifact:
        base, target = ctx.path(step.reads[0]), ctx.path(step.product)
        control = Control(
            limit=ctx.limit,
            duty=ctx.share,
            stopped=ctx.stopped,
            report=lambda fraction: ctx.report(step, fraction),
        )
        digest = quantize.quantize(
            base,
            target,
            step.quant_type,
            ggml=ggml.load(ctx.llama.bin),
            control=control,
            identity=ctx.digests.get(base.absolute(), ""),
        )
        bpw, types = self.read_types(target)
        making = Making(llama=ctx.llama.commit, bpw=bpw, recipe=types[:16], mix=STOCK_MIX)
        return Artifact(name=target.name, size=target.stat().st_size, sha256=digest, making=making)

    def measure(self, ctx: Context, step: Step, order: MeasureOrder) -> Evaluation:
        """With ggufy's own engine, which reads the text with base and quant at once."""
        base, quant = (ctx.path(product) for product in step.reads)
        vocab = pinned_vocab(ctx)
        config = MeasureConfig(
            text=order.text,
            folder=order.folder,
            run=ctx.tool_run(step, cwd=ctx.folder),
            threads=ctx.threads,
            tokenizer=str(vocab) if vocab else AUTO,
            limit=ctx.request.evaluation_chunks * CONTEXT,
            speed=order.speed,
            ggml_folder=ctx.llama.bin,
            llama=ctx.llama.commit,
            digests=ctx.digests,
            report=lambda what, fraction: order.report(fraction),
        )
        return measure(base, [quant], config)[0]

    def read_types(self, path: Path) -> tuple[float, str]:
        head = read_head(path)
        types = repr(sorted((record.name, record.type) for record in head.records.values()))
        return head.bpw, sha256(types.encode()).hexdigest()

    def how_to_run(
        self, repo_id: str, quant_type: str, *, file: str, chat: RwkvFormat | None, converted: bool
    ) -> list[str]:
        return [
            "With [rwkv.cpp](https://github.com/RWKV/rwkv.cpp), in its folder:",
            "",
            "```sh",
            f"python python/generate_completions.py {file}",
            f"python python/chat_with_bot.py {file}",
            "```",
            "",
            "With ggufy, in a terminal and in its page, or from Python:",
            "",
            "```sh",
            f"python -m ggufy chat {file}",
            "```",
            "",
            "```python",
            "from ggufy.rwkvcpp import RWKVModel",
            "",
            f'model = RWKVModel("{file}")',
            "logits, state = model.eval(1, None)",
            "```",
        ]


RWKVCPP_OUTPUT = Rwkvcpp()


def _fits(head: RwkvcppHead, type_name: str) -> bool:
    try:
        quantize.head_of(head, type_name)
    except SourceError:
        return False
    return True


def _forecast(head: RwkvcppHead, type_name: str) -> Forecast:
    made = quantize.head_of(head, type_name, "the model")
    recipe = {record.name: record.type.replace("FP", "F") for record in made.records.values()}
    return Forecast(recipe=recipe, size=made.file_size, bpw=made.bpw)

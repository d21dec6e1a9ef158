"""Makes one quant from the base GGUF with llama-quantize, and looks at the result before it gets its name."""

from __future__ import annotations

from ggufy.catalog import BY_NAME
from ggufy.errors import DiskError, ToolError
from ggufy.files import free_bytes, human_size, partial
from ggufy.job import Artifact
from ggufy.llama import tools
from ggufy.plan import Step
from ggufy.sources.gguf import read_head
from ggufy.steps.context import Context, artifact_of


def run(ctx: Context, step: Step) -> Artifact:
    """Leaves `<Model>-<quant type>.gguf`: a whole GGUF of the right type, with no local path in its metadata."""
    target = ctx.path(step.product)
    base = read_head(ctx.path(step.reads[0]))
    with partial(target) as part:
        command = tools.quantize_command(
            ctx.llama.tool("llama-quantize"),
            base=ctx.path(step.reads[0]).absolute(),
            out=part.absolute(),
            quant_type=step.quant_type,
            threads=ctx.threads,
            imatrix=step.reads[1] if len(step.reads) > 1 else "",  # a bare name: it stays in the metadata
        )
        progress = tools.QuantizeProgress(base.elements, lambda fraction: ctx.report(step, fraction))
        try:
            tools.run_tool(command, ctx.tool_run(step), progress)
        except ToolError as error:
            free = free_bytes(ctx.folder)
            if free < (1 << 20):
                raise DiskError(
                    f"the disk is full in step {step.label} ({human_size(free)} free): free some space and run the "
                    "same command again; what is finished stays."
                ) from error
            raise
        head = read_head(part)
        if head.metadata.get("general.file_type") != BY_NAME[step.quant_type].ftype or len(head.tensors) != len(
            base.tensors
        ):
            raise ToolError(f"llama-quantize left a file that is no {step.quant_type}: run the same command again.")
    return artifact_of(target)

"""Recipes: the tensor type of every tensor of a quant, and the exact size of the file that follows from it.

A stock recipe is what llama-quantize itself would do, read from its dry run. The file's size is then arithmetic: the
base GGUF's head, four metadata entries about the imatrix, and every tensor padded to 32 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ggufy.catalog import COPY_COST, KERNEL_COST, TABLE_COST
from ggufy.llama import tools
from ggufy.sources.gguf import UNQUANTIZED, GgufHead, padded, tensor_bytes

Recipe = Mapping[str, str]  # tensor name -> ggml type, upper case


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one quant will be, before it is made."""

    recipe: Recipe
    size: int  # bytes of the file
    bpw: float  # bits per weight: tensor bytes × 8 / weights, as llama-quantize prints it


@dataclass(frozen=True, kw_only=True)
class ImatrixFacts:
    """What llama-quantize writes about the imatrix into the quant's metadata."""

    file: str  # as given on the command line, cut to 127 bytes
    dataset: str  # name of the calibration text


def stock_recipe(tool: Path, run: tools.ToolRun, base: Path, quant_type: str, *, imatrix: str = "") -> Recipe:
    """llama-quantize's own recipe for a quant type. Raises ToolError when it cannot read the base.

    `imatrix` is a path, absolute or from `run.cwd`: some recipes of transformers differ when there is one.
    """
    command = tools.dry_run_command(tool, base=base.absolute(), quant_type=quant_type, imatrix=imatrix)
    return tools.parse_dry_run(tools.run_tool(command, run))


def forecast(head: GgufHead, recipe: Recipe, imatrix: ImatrixFacts | None) -> Forecast:
    """The exact size of the file that llama-quantize writes for `recipe` from the base GGUF with this head."""
    sizes = [tensor_bytes(tensor.shape, recipe[name]) for name, tensor in head.tensors.items()]
    size = padded(_head_size(head, imatrix)) + sum(padded(s) for s in sizes)
    return Forecast(recipe=recipe, size=size, bpw=sum(sizes) * 8 / head.elements)


def core_seconds(recipes: Mapping[str, Recipe], head: GgufHead) -> dict[str, float]:
    """Work of each quant, made in this order, in seconds of one core of the CPU that the catalog's costs come from.

    A tensor that an earlier quant has in the same type is copied, and ggml's tables are computed once.
    """
    made: set[tuple[str, str]] = set()
    tables: set[float] = set()
    work = {}
    for quant_type, recipe in recipes.items():
        seconds = 0.0
        for name, kind in recipe.items():
            new = kind in KERNEL_COST and (name, kind) not in made
            seconds += head.tensors[name].elements / 1e6 * (KERNEL_COST[kind] if new else COPY_COST)
            if new and (table := TABLE_COST.get(kind, 0.0)) not in tables:
                seconds += table
                tables.add(table)
            made.add((name, kind))
        work[quant_type] = seconds
    return work


def quantizable(recipe: Recipe) -> list[str]:
    """The tensors that a recipe quantizes and that use imatrix data; embedding and head never need it."""
    return [
        name
        for name, kind in recipe.items()
        if kind not in UNQUANTIZED and name not in ("token_embd.weight", "output.weight")
    ]


def same_tensors(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """Quant types whose recipe equals that of an earlier one -> that earlier one."""
    first: dict[tuple[tuple[str, str], ...], str] = {}
    same: dict[str, str] = {}
    for name, recipe in recipes.items():
        key = tuple(sorted(recipe.items()))
        if key in first:
            same[name] = first[key]
        else:
            first[key] = name
    return same


def _head_size(head: GgufHead, imatrix: ImatrixFacts | None) -> int:
    """Bytes before the padding that precedes the data section."""
    infos = sum(8 + len(t.name.encode()) + 4 + 8 * len(t.shape) + 4 + 8 for t in head.tensors.values())
    size = head.metadata_end + infos
    if "general.quantization_version" not in head.metadata:
        size += _entry_size("general.quantization_version", 4)
    if "general.file_type" not in head.metadata:
        size += _entry_size("general.file_type", 4)
    if imatrix:
        size += _entry_size("quantize.imatrix.file", 8 + len(imatrix.file.encode()[:127]))
        size += _entry_size("quantize.imatrix.dataset", 8 + len(imatrix.dataset.encode()[:127]))
        size += _entry_size("quantize.imatrix.entries_count", 4)
        size += _entry_size("quantize.imatrix.chunks_count", 4)
    return size


def _entry_size(key: str, value_bytes: int) -> int:
    return 8 + len(key) + 4 + value_bytes

"""Recipes: the tensor type of every tensor of a quant, and the exact size of the file that follows from it.

A stock recipe is what llama-quantize itself would do, read from its dry run. The file's size is then arithmetic: its
head (`head_size`, which layout.py writes), and every tensor padded to the alignment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ggufy.core.catalog import COMPENSATED_COST, COPY_COST, KERNEL_COST, TABLE_COST, TABLE_OF
from ggufy.formats.gguf import UNQUANTIZED, GgufHead, packed_entry, padded, tensor_bytes
from ggufy.formats.rwkvcpp import RwkvcppHead
from ggufy.llama import tools

_QUANTIZATION_VERSION = 2  # ggml.h, GGML_QNT_VERSION
_SPLIT = ("split.no", "split.count", "split.tensors.count")
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
    dataset: str  # name of the calibration text; empty: it is not said
    chunks: int = 1  # of that text; 0: it is not said


def stock_recipe(tool: Path, run: tools.ToolRun, base: Path, quant_type: str, *, imatrix: str = "") -> Recipe:
    """llama-quantize's own recipe for a quant type. Raises ToolError when it cannot read the base.

    `imatrix` is a path, absolute or from `run.cwd`: some recipes of transformers differ when there is one.
    """
    command = tools.dry_run_command(tool, base=base.absolute(), quant_type=quant_type, imatrix=imatrix)
    return tools.parse_dry_run(tools.run_tool(command, run))


def forecast(
    head: GgufHead, recipe: Recipe, imatrix: ImatrixFacts | None, facts: Mapping[str, str] | None = None
) -> Forecast:
    """The exact size of the file that llama-quantize writes for `recipe` from the base GGUF with this head, or of one
    with more `facts` in its metadata."""
    sizes = [tensor_bytes(tensor.shape, recipe[name]) for name, tensor in head.tensors.items()]
    size = head_size(head, quant_metadata(0, imatrix) | dict(facts or {})) + sum(
        padded(s, head.alignment) for s in sizes
    )
    return Forecast(recipe=recipe, size=size, bpw=sum(sizes) * 8 / head.elements)


def core_seconds(
    recipes: Mapping[str, Recipe], head: GgufHead | RwkvcppHead, *, compensated: bool = False
) -> dict[str, float]:
    """Work of each quant, made in this order, in seconds of one core of the CPU that the catalog's costs come from.

    A tensor that an earlier quant has in the same type is copied, and ggml's tables are computed once.
    """
    costs = COMPENSATED_COST if compensated else KERNEL_COST
    tensors = head.tensors if isinstance(head, GgufHead) else head.records
    made: set[tuple[str, str]] = set()
    tables: set[str] = set()
    work = {}
    for quant_type, recipe in recipes.items():
        seconds = 0.0
        for name, kind in recipe.items():
            new = kind in costs and (name, kind) not in made
            seconds += tensors[name].elements / 1e6 * (costs[kind] if new else COPY_COST)
            if new and (table := TABLE_OF.get(kind, kind)) not in tables:
                seconds += TABLE_COST.get(table, 0.0)
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


def quant_metadata(ftype: int, imatrix: ImatrixFacts | None, entries: int = 0) -> dict[str, str | int]:
    """What llama-quantize sets anew; `entries` is the number of tensors that the imatrix has data for."""
    new: dict[str, str | int] = {"general.quantization_version": _QUANTIZATION_VERSION, "general.file_type": ftype}
    if imatrix:
        new["quantize.imatrix.file"] = _cut(imatrix.file)
        if imatrix.dataset:
            new["quantize.imatrix.dataset"] = _cut(imatrix.dataset)
        new["quantize.imatrix.entries_count"] = entries
        if imatrix.chunks:
            new["quantize.imatrix.chunks_count"] = imatrix.chunks
    return new


def kept_keys(head: GgufHead, new: Collection[str]) -> list[str]:
    """The base's keys that a quant keeps, in their order: those that are not set anew, nor about being split."""
    return [key for key in head.metadata if key not in _SPLIT and key not in new]


def head_size(head: GgufHead, new: Mapping[str, str | int]) -> int:
    """Bytes before the first tensor of a quant with this metadata set anew."""
    kept = sum(end - start for start, end in (head.entries[key] for key in kept_keys(head, new)))
    size = 24 + kept + sum(len(packed_entry(key, value)) for key, value in new.items()) + head.infos_size
    return padded(size, head.alignment)


def _cut(text: str) -> str:
    """llama-quantize keeps 127 bytes; here, no half of a character."""
    return text.encode()[:127].decode(errors="ignore")

"""What the record keeps of how a product was made, read from the product itself and from what it was made by."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from ggufy.core.job import STOCK_MIX, Artifact, Making, Request
from ggufy.formats.gguf import GgufHead, read_head
from ggufy.models.chat_format import speaks
from ggufy.quantize.recipe import Recipe
from ggufy.quantize.search.fallback import mostly
from ggufy.quantize.search.mixes import has_recipes, rescaling


def with_base(artifact: Artifact, base: Path, *, llama: str) -> Artifact:
    """The artifact of a base."""
    world = speaks(read_head(base).metadata) if base.suffix == ".gguf" else False
    return replace(artifact, making=Making(llama=llama, world=world))


def with_quant(artifact: Artifact, quant: Path, making: Making) -> Artifact:
    """The artifact of a quant, `making` being what its recipe says (see `of_recipe`)."""
    return replace(artifact, making=replace(making, bpw=read_head(quant).bpw))


def of_recipe(recipe: Recipe, base: GgufHead | None, request: Request, quant: str, *, llama: str) -> Making:
    """What follows from the recipe of a quant type or a size to order; the bits per weight are the file's. `base` is
    the head of the base, if that is a GGUF."""
    ours = base is not None and (quant in request.targets or (request.mix != STOCK_MIX and has_recipes(base)))
    text = "\n".join(f"{name} {kind}" for name, kind in sorted(recipe.items()))
    return Making(
        llama=llama,
        recipe=hashlib.sha256(text.encode()).hexdigest()[:16],
        mix="" if quant in request.targets else request.mix if ours else STOCK_MIX,
        rescaled=base is not None and ours and bool(rescaling(base)),
        mostly=mostly(base, quant, recipe) if base is not None else "",
        mode=request.mode if quant in request.targets else "",
    )

"""RWKV-5 with a gate (5.1, 5.2) as RWKV-6, of which it is a special case, so that llama.cpp can run it.

RWKV-6 adds to each mix and each decay what two low-rank matrices make of the token. Where these are zero, its formulas
are those of RWKV-5.2: a mix x + (p - x)(1 - m) for x m + p (1 - m), a decay exp(-exp(d)), the same bonus, gate and
channel mix, and a group norm of eps 64e-5 for one of 1e-5 after a division by 8 (x052 and x060 in RWKV-v5/src/model.py
of BlinkDL/RWKV-LM; scripts/convert5to6.py of BBuf/RWKV-World-HF-Tokenizer has tiny random numbers for the zeros).
RWKV-5.1 has one decay and one bonus a head, repeated here; its bonus is the exponential of `time_first`. What is
computed is F32: `1 - m` in bf16 would cost up to 0.05 in a logit.

RWKV-5 without a gate and RWKV-4 cannot become RWKV-6: no gate of theirs is 1 for every token.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import TYPE_CHECKING

from ggufy.core.errors import CheckpointError
from ggufy.models.architecture import DAMAGED, Shapes, block_numbers, shape_text, size_of
from ggufy.models.origin import Origin, Origins, derived, identity, shapes_of
from ggufy.models.rwkv import older_version

if TYPE_CHECKING:
    import torch

UPGRADED = ("5.1", "5.2")
_GGUF_RANK = 1  # of the matrices of zeros
# Ranks that every program reads: RWKV-6's own, which are twice as large from a width of 4096 on.
_RANKS, _LARGE_RANKS, _LARGE_WIDTH = (32, 64), (64, 128), 4096
_MIX = re.compile(r"blocks\.[0-9]{1,6}\.(?:att|ffn)\.time_mix_[kvrg]")


def upgraded(origins: Origins, *, usual_ranks: bool = False) -> Origins:
    """The same model as RWKV-6, if it is an RWKV-5 with a gate; else what was given.

    The matrices of zeros have rank 1, which llama.cpp takes, or with `usual_ranks` those of published models, which
    PyPI's `rwkv` needs. Raises CheckpointError for a missing tensor or a wrong shape.
    """
    shapes = shapes_of(origins)
    if older_version(shapes) not in UPGRADED or any(".time_maa_" in name for name in shapes):
        return origins
    width = size_of(shapes, "emb.weight", 1)
    ranks = (_GGUF_RANK, _GGUF_RANK)
    if usual_ranks:
        ranks = _LARGE_RANKS if width >= _LARGE_WIDTH else _RANKS
    found: dict[str, Origin] = {}
    for name, origin in origins.items():
        if _MIX.fullmatch(name):
            found[name.replace("time_mix", "time_maa")] = derived(origin, origin.shape, _one_minus)
        elif not name.endswith((".att.time_decay", ".att.time_faaaa", ".att.time_first")):
            found[name] = origin
    for block in range(1 + max(block_numbers(shapes))):
        found |= _of_heads(f"blocks.{block}.att.", origins, width) | _zeros(f"blocks.{block}.att.", width, *ranks)
    return found


def upgraded_shapes(shapes: Shapes) -> Shapes:
    """The shapes of the tensors that `upgraded` gives."""
    return shapes_of(upgraded(identity(shapes)))


def _of_heads(att: str, origins: Origins, width: int) -> dict[str, Origin]:
    """The decay and the bonus of a block, each of every channel."""
    decay, old = f"{att}time_decay", f"{att}time_first" in origins
    bonus = f"{att}time_first" if old else f"{att}time_faaaa"
    for name in (decay, bonus):
        if name not in origins:
            raise CheckpointError("the checkpoint has no tensor {name}: {damaged}.", name=name, damaged=DAMAGED)
    shapes = [origins[name].shape for name in (bonus, decay)]
    # Of every channel, a matrix [H, N] says how many heads there are; of every head, the number of values does.
    heads = next((shape[0] for shape in shapes if len(shape) == 2 and math.prod(shape) == width), math.prod(shapes[0]))
    for name, shape in zip((bonus, decay), shapes, strict=True):
        if not heads or width % heads or math.prod(shape) not in (heads, width):
            raise CheckpointError(
                "{name} has the shape {shape}, which does not fit a width of {width}: {damaged}.",
                name=name,
                shape=shape_text(shape),
                width=width,
                damaged=DAMAGED,
            )
    size = width // heads
    raw = partial(_each_channel, heads, size)
    return {
        decay: derived(origins[decay], (1, 1, width), raw),
        f"{att}time_faaaa": derived(origins[bonus], (heads, size), partial(_exp_of_each, heads, size) if old else raw),
    }


def _zeros(att: str, width: int, mix: int, decay: int) -> dict[str, Origin]:
    """What RWKV-6 has beside RWKV-5, without effect: where the matrices are zero, no vector of theirs matters."""
    shapes: dict[str, tuple[int, ...]] = {
        "time_maa_x": (1, 1, width),
        "time_maa_w": (1, 1, width),
        "time_maa_w1": (width, 5 * mix),
        "time_maa_w2": (5, mix, width),
        "time_decay_w1": (width, decay),
        "time_decay_w2": (decay, width),
    }
    return {att + name: Origin((), shape, partial(_zero, shape)) for name, shape in shapes.items()}


def _one_minus(mix: torch.Tensor) -> torch.Tensor:
    return 1 - mix.float()


def _each_channel(heads: int, size: int, values: torch.Tensor) -> torch.Tensor:
    """[H, N], of [H] or [H, N]."""
    return values.float().reshape(heads, -1).expand(heads, size)


def _exp_of_each(heads: int, size: int, values: torch.Tensor) -> torch.Tensor:
    return _each_channel(heads, size, values).exp()


def _zero(shape: tuple[int, ...]) -> torch.Tensor:
    import torch  # noqa: PLC0415 - describing a model does not load it

    return torch.zeros(shape)

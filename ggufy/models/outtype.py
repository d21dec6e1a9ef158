"""The unquantized types that a base GGUF can have, and values cast to them, none of which may be lost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from gguf import GGMLQuantizationType, LlamaFileType

from ggufy.core.errors import CheckpointError


@dataclass(frozen=True)
class OutType:
    """An unquantized type; `limit` is the smallest magnitude that rounds to infinity in it."""

    dtype: torch.dtype
    tensor_type: GGMLQuantizationType
    file_type: LlamaFileType
    limit: float


def _out_type(dtype: torch.dtype, tensor_type: GGMLQuantizationType, file_type: LlamaFileType) -> OutType:
    info = torch.finfo(dtype)
    half_step = info.eps / 2 * 2.0 ** math.floor(math.log2(info.max))
    return OutType(dtype, tensor_type, file_type, info.max + half_step)


OUT_TYPES = {
    "f16": _out_type(torch.float16, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": _out_type(torch.bfloat16, GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "f32": _out_type(torch.float32, GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
}


def cast(piece: torch.Tensor, source: str, *, out: OutType, divisor: int) -> torch.Tensor:
    """One piece in its GGUF type, contiguous and of one dimension; raises CheckpointError if a value is lost."""
    if divisor > 1:
        # The official converter divides F16 in F16 (small values lose bits), everything else in F32.
        piece = (piece if piece.dtype == torch.float16 else piece.to(torch.float32)) / divisor
    elif piece.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        piece = piece.to(torch.float32)
    largest = largest_of(piece, source)
    if largest >= out.limit:
        raise CheckpointError(
            "{name} holds {value}, which is too large for {type}: convert with {OUTTYPE} {outtype}.",
            name=source,
            value=f"{largest:.6g}",
            type=out.tensor_type.name,
            outtype="bf16" if out.dtype == torch.float16 else "f32",
        )
    return piece.to(out.dtype).reshape(-1)


def largest_of(piece: torch.Tensor, source: str) -> float:
    """The largest magnitude of a piece; raises CheckpointError if it holds NaN or infinite values."""
    # One pass finds the smallest and the largest value; a NaN anywhere makes both NaN.
    smallest, largest = (float(value) for value in torch.aminmax(piece))
    largest = max(-smallest, largest)
    if math.isnan(largest):
        raise CheckpointError(
            "{name} holds NaN values: the checkpoint is damaged, or its training failed; choose another one.",
            name=source,
        )
    if math.isinf(largest):
        raise CheckpointError(
            "{name} holds infinite values: the checkpoint is damaged, or its training failed; choose another one.",
            name=source,
        )
    return largest

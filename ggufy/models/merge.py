"""Merges adapters into the tensors of a model, one at a time, in F32 whatever their types.

The formulas are those of the trainers' own scripts (Blealtan/RWKV-LM-LoRA, JL-er/RWKV-PEFT, OpenMOSE/RWKV-LM-RLHF) and
of Hugging Face's PEFT, which compute in the adapter's type and round the result to the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ggufy.core.errors import SourceError
from ggufy.formats.tensor_file import MappedTensors
from ggufy.models.adapter import Adapter, Formula, Part, check_fits
from ggufy.models.origin import Origin, Origins, shapes_of


@dataclass(frozen=True, kw_only=True)
class OpenAdapter:
    """An adapter whose values can be read."""

    adapter: Adapter
    scale: float
    key: str = ""  # stands for its bytes and its scale
    files: Sequence[MappedTensors]  # its own, and a PiSSA's init file

    def tensor(self, key: str) -> torch.Tensor:
        """In F32. Raises SourceError if it holds NaN or infinite values."""
        file = next(file for file in self.files if key in file.shapes)
        values = file.tensor(key).to(torch.float32)
        if not bool(torch.isfinite(values).all()):
            raise SourceError(
                "{name} holds NaN or infinite values in {key}: its training failed, or it is damaged; choose another.",
                name=self.adapter.name,
                key=repr(key[:80])[1:-1],
            )
        return values


def merge_adapters(origins: Origins, adapters: Iterable[OpenAdapter]) -> dict[str, Origin]:
    """The origins of the model with the adapters merged into it, in their order.

    Raises SourceError if one does not fit the model.
    """
    found = dict(origins)
    for one in adapters:
        check_fits(one.adapter, shapes_of(found))
        for target, part in one.adapter.parts.items():
            before = found[target]
            if part.formula is Formula.WHOLE:
                found[target] = Origin((), before.shape, partial(_whole, one, part, before.shape))
            else:
                found[target] = Origin(before.sources, before.shape, partial(_merged, one, part, before))
    return found


def _whole(one: OpenAdapter, part: Part, shape: tuple[int, ...]) -> torch.Tensor:
    values = one.tensor(part.tensors[0])
    return (values.T if part.transposed else values).reshape(shape)


def _merged(one: OpenAdapter, part: Part, before: Origin, *tensors: torch.Tensor) -> torch.Tensor:
    base = (before.make(*tensors) if before.make else tensors[0]).reshape(before.shape)
    values = [one.tensor(key) for key in part.tensors]
    if part.transposed:
        return merge(part.formula, base.T, values, one.scale).T
    return merge(part.formula, base, values, one.scale)


def merge(formula: Formula, base: torch.Tensor, values: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    """A matrix [out, in] with a part of an adapter merged into it, as a new one in F32; `values` are the part's
    tensors in F32, in the order of `Part.tensors`."""
    if base.dtype not in (torch.float32, torch.float16, torch.bfloat16):  # not all operations mix others with F32
        base = base.to(torch.float32)
    return _FORMULAS[formula](base, values, scale)


def _lora(base: torch.Tensor, values: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    a, b = values
    return (b @ a).mul_(scale).add_(base)


def _dora(base: torch.Tensor, values: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    *pair, magnitudes = values
    directed = _lora(base, pair, scale)
    norms = directed.norm(dim=0, keepdim=True) + 1e-6
    return directed.mul_(magnitudes.reshape(1, -1)).div_(norms)


def _pissa(base: torch.Tensor, values: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    a, b, first_a, first_b = values
    return (first_b @ first_a).neg_().add_(base).add_(b @ a)


def _rows(base: torch.Tensor, values: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    (d,), (out, columns) = values, base.shape
    d = d.repeat(1, out // d.shape[1])
    return d.T.repeat(1, -(-columns // d.shape[0]))[:, :columns] + base


def _blocks(base: torch.Tensor, values: Sequence[torch.Tensor], scale: float, *, by_row: bool) -> torch.Tensor:
    (d,), (out, columns) = values, base.shape
    r = d.shape[-1]
    d = d[:, None] if by_row else d
    blocks = base.to(torch.float32).reshape(out // r, r, columns // r, r).transpose(1, 2)
    return (blocks @ d).add_(d).add_(blocks).transpose(1, 2).reshape(out, columns)


_FORMULAS: dict[Formula, Callable[[torch.Tensor, Sequence[torch.Tensor], float], torch.Tensor]] = {
    Formula.LORA: _lora,
    Formula.DORA: _dora,
    Formula.PISSA: _pissa,
    Formula.ROWS: _rows,
    Formula.COLUMN_BLOCKS: partial(_blocks, by_row=False),
    Formula.ROW_BLOCKS: partial(_blocks, by_row=True),
}

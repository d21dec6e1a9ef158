"""Files of rwkv.cpp (`.bin`): an unquantized one is a base as it is, or the model that an adapter is merged into; one
of version 100 is brought up to date first. No GGUF is made of them."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

from ggufy.core.errors import SourceError
from ggufy.core.messages import Message
from ggufy.formats.rwkvcpp import RwkvcppHead, is_rwkvcpp, read_head, read_head_of, refuse_file
from ggufy.rwkvcpp.tensors import RwkvcppModel, check_file, model_of_file
from ggufy.sources.format import ConvertTask, OpenBeside, Report, SkeletonTask, SourceFormat
from ggufy.sources.gguf_model import refuse_outtype, take_as_it_is
from ggufy.system.control import Control

OUTTYPES = {"f32": "FP32", "f16": "FP16"}  # of a base: rwkv.cpp's names
# Of a file elsewhere; llama.cpp's files of 2023 and those of transformers end in .bin too.
_NAME = re.compile(r".*rwkv.*-(?:FP32|FP16|F32|F16|Q[0-9]_[0-9A-Z_]+)\.bin|rwkv\.cpp-.+\.bin", re.IGNORECASE)


class RwkvcppBin(SourceFormat):
    """One file, without a vocabulary."""

    kind, noun, suffix = "rwkvcpp", "rwkv.cpp file", ".bin"
    rwkv = True
    bases: ClassVar[tuple[str, ...]] = ("bin",)

    def claims(self, name: str) -> bool:
        return _NAME.fullmatch(PurePosixPath(name).name) is not None

    def recognizes(self, path: Path) -> bool:
        return is_rwkvcpp(path)

    def base_head(self, path: Path) -> RwkvcppHead | None:
        head = read_head(path)
        _refuse_quantized(head, path.name)
        check_file(head, path.name)
        return None if head.outdated else head

    def describe(self, file: BinaryIO, beside: OpenBeside, found: dict[str, Any], vocab: str | None) -> None:
        name = found["path"]
        elsewhere = "streams" in found
        head = read_head_of(file, name, until="blocks.2." if elsewhere else "")
        found |= {"version": head.rwkv, "layers": head.layers, "width": head.width, "vocab_size": head.vocab_size}
        found |= {"architecture": f"rwkv{head.rwkv[0]}", "dtype": _outtype(head)}
        _refuse_quantized(head, name)
        model = _of_start(head, name, found["size"]) if elsewhere else check_file(head, name)
        shapes = {source: one.source_shape for one in model.tensors() for source in one.sources}
        found |= {"heads": model.sizes["H"], "head_size": model.sizes["N"]} if head.rwkv != "4" else {}
        found |= {"shapes": shapes, "parameters": model.head(model.tensors(), "FP32").elements}

    def write_described(self, report: Report, target: Path, task: SkeletonTask) -> None:
        from ggufy.rwkvcpp.convert import write_skeleton  # noqa: PLC0415 - as late as in other formats

        write_skeleton(report.shapes, target, type_name=OUTTYPES.get(task.outtype, task.outtype))

    def convert(self, task: ConvertTask, target: Path) -> str:
        """With the task's adapters merged into it."""
        from ggufy.rwkvcpp.lora import merge_into_file  # noqa: PLC0415 - loads torch
        from ggufy.rwkvcpp.quantize import quantize  # noqa: PLC0415

        source, key = task.path, task.source.key
        head = self.base_head(source)
        if head is None:
            if task.adapters:
                raise SourceError(
                    "{name} is of rwkv.cpp's version 100 and quantized: make an FP32 file of it first, and merge the "
                    "adapter into that.",
                    name=source.name,
                )
            control = Control(stopped=task.stopped, report=task.report)
            return quantize(source, target, OUTTYPES.get(task.outtype, ""), control=control, identity=key)
        if _outtype(head) != task.outtype:
            refuse_outtype(source.name, _outtype(head))
        if not task.adapters:
            return take_as_it_is(task, target)
        marks = ",".join(one.key for one in task.adapters)
        return merge_into_file(source, target, task.adapters, key=key and key + marks, progress=task.progress)


def _outtype(head: RwkvcppHead) -> str:
    """What a file's type is called where bases are."""
    return next((name for name, theirs in OUTTYPES.items() if theirs == head.type), head.type)


def _refuse_quantized(head: RwkvcppHead, name: str) -> None:
    if head.quantized and not head.outdated:
        raise SourceError(
            "{name} is quantized already: start from its FP32 or FP16 file, or from the .pth.", name=name
        )


def _of_start(head: RwkvcppHead, name: str, size: int) -> RwkvcppModel:
    """The model of a file of so many bytes, of which only the first blocks' tensors are known. Raises SourceError."""
    model = model_of_file(head)
    if not head.outdated and model.head(model.tensors(), head.type).file_size != size:
        refuse_file(name, Message("its {size} bytes are not those of the tensors that its header says", size=size))
    return model

"""Unquantized GGUFs, which are taken as they are; and whether a GGUF holds a whole, unquantized model, told from its
head: the one check for every way in.

That all tensors of an architecture are there is for llama.cpp to say, which loads the model before a job works on it
(steps/forecast.py): blocks differ in many architectures, and only it knows how. Those of the known ones are all alike.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ggufy.core.errors import Cancelled, SourceError
from ggufy.core.messages import Message
from ggufy.formats.gguf import MAGIC, GgufHead, read_head, read_head_of, type_of_most
from ggufy.models import registry
from ggufy.sources.format import ConvertTask, OpenBeside, Report, SkeletonTask, SourceFormat
from ggufy.system.files import Digesting, partial, sha256

# What other GGUFs are, by a word of their type or architecture, or the end of their first tensor's name.
_OTHERS = {
    "adapter": Message("an adapter (LoRA)"),
    ".lora_a": Message("an adapter (LoRA)"),
    "imatrix": Message("an imatrix"),
    ".in_sum2": Message("an imatrix"),
    "mmproj": Message("the part of a model that sees or hears (mmproj)"),
    "clip": Message("the part of a model that sees or hears (mmproj)"),
    "controlvector": Message("a control vector"),
}
_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.(.+)")
_COPIED = 4 << 20  # bytes at once


class UnquantizedGguf(SourceFormat):
    """One file of any model that llama.cpp runs, with its vocabulary in it."""

    kind, noun, suffix = "gguf", "GGUF", ".gguf"
    converts = False

    def recognizes(self, path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(4) == MAGIC

    def base_head(self, path: Path) -> GgufHead:
        head = read_head(path)
        check_model(head, path.name)
        return head

    def describe(self, file: BinaryIO, beside: OpenBeside, found: dict[str, Any], vocab: str | None) -> None:
        name = found["path"]
        head = read_head_of(file, name)
        said = head.metadata
        arch = str(said.get("general.architecture", ""))
        tokens = said.get("tokenizer.ggml.tokens")
        head_size = number(said, f"{arch}.wkv.head_size")
        width = number(said, f"{arch}.embedding_length")
        found |= {
            "architecture": arch,
            "version": kin.version if (kin := registry.related(arch)) else "",
            "layers": number(said, f"{arch}.block_count"),
            "width": width,
            "head_size": head_size,
            "heads": width // head_size if head_size else number(said, f"{arch}.attention.head_count"),
            "vocab_size": len(tokens) if isinstance(tokens, list) else number(said, "tokenizer.ggml.tokens"),
            "parameters": head.elements,
            "dtype": type_of_most((tensor.type, tensor.elements) for tensor in head.tensors.values()),
        }
        check_model(head, name)
        found["dtype"] = head.outtype
        file.seek(0)
        found["head"] = file.read(head.data_start)

    def write_described(self, report: Report, target: Path, task: SkeletonTask) -> None:
        target.write_bytes(report.head)
        os.truncate(target, report.size)

    def convert(self, task: ConvertTask, target: Path) -> str:
        """A second name for the file where the disk allows it, else a copy."""
        source, outtype = task.path, task.outtype
        head = self.base_head(source)
        if head.outtype != outtype:
            refuse_outtype(source.name, head.outtype)
        return take_as_it_is(task, target)


def refuse_outtype(name: str, own: str) -> NoReturn:
    """Raises SourceError for a base that is to be of another type than it is."""
    raise SourceError(
        "{source} is {type} and is taken as it is: add {OUTTYPE} {outtype}.", source=name, type=own, outtype=own
    )


def take_as_it_is(task: ConvertTask, target: Path) -> str:
    """Makes the source the base: by a second name for it where the disk allows that, else as a copy. Gives its
    SHA-256. Raises SourceError if it is not the pinned one, DiskError, Cancelled."""
    source, pinned = task.path, task.source

    def progress(done: int) -> None:
        task.report(done / max(1, pinned.size))

    with partial(target) as part:
        with contextlib.suppress(OSError):
            os.link(source, part)
        if part.exists():
            digest = sha256(part, progress, stopped=task.stopped)
        else:
            digest = _copy(source, part, progress, task.stopped)
        if pinned.sha256 and digest != pinned.sha256:
            raise SourceError(
                "{path} changed since the job was made: put the file back, or start anew with {NAME}.", path=source
            )
    return digest


def _copy(source: Path, target: Path, progress: Callable[[int], None], stopped: Callable[[], bool]) -> str:
    """Gives the SHA-256 of what it copies."""
    with source.open("rb") as old, target.open("wb") as new:
        sink, done = Digesting(new), 0
        while block := old.read(_COPIED):
            if stopped():
                raise Cancelled("the job was stopped.")
            sink.write(block)
            done += len(block)
            progress(done)
    return sink.hexdigest()


def check_model(head: GgufHead, name: str) -> None:
    """Raises SourceError, with what to do next, for what cannot be quantized; `name` is the file's."""
    said = head.metadata
    if number(said, "split.count") > 1:  # first: the parts behind the first one have hardly any metadata
        raise SourceError(
            "{name} is one part of several: join them with llama-gguf-split --merge, and give the whole.", name=name
        )
    kind, arch = str(said.get("general.type", "model")), said.get("general.architecture")
    ends = tuple(end for end in _OTHERS if end.startswith("."))
    found = next((end for end in ends if any(tensor.endswith(end) for tensor in head.tensors)), "")
    for word in (kind, arch, found):
        if word in _OTHERS:
            raise SourceError(
                "{name} is {what}, not a model: give an unquantized .gguf of a model, or a .pth.",
                name=name,
                what=_OTHERS[word],
            )
    if kind != "model" or not isinstance(arch, str) or not head.tensors:
        raise SourceError(
            "{name} is a GGUF without a model in it: give an unquantized .gguf of a model, or a .pth.", name=name
        )
    if head.quantized:
        raise SourceError(
            "{name} is quantized already: start from its F16, BF16 or F32 GGUF, or from the .pth.", name=name
        )
    if lost := _lost(head, arch):
        raise SourceError("{name} lacks tensors, such as {tensor}: fetch or convert it again.", name=name, tensor=lost)


def number(metadata: dict[str, Any], key: str) -> int:
    """A whole number of the metadata; 0 if there is none."""
    value = metadata.get(key, 0)
    return value if isinstance(value, int) else 0


def _lost(head: GgufHead, arch: str) -> str:
    """A tensor that has to be there and is not; empty if none is known to be."""
    if "token_embd.weight" not in head.tensors:
        return "token_embd.weight"
    blocks: dict[int, set[str]] = {}
    for match in filter(None, map(_BLOCK.search, head.tensors)):
        blocks.setdefault(int(match[1]), set()).add(match[2])
    # Blocks that only predict further tokens are left out by some converters.
    count = number(head.metadata, f"{arch}.block_count") - number(head.metadata, f"{arch}.nextn_predict_layers")
    if count > 0 and max(blocks, default=-1) < count - 1:
        return f"blk.{count - 1}.*"
    if not registry.related(arch):
        return ""
    alike = set().union(*(names for at, names in blocks.items() if at))
    missing = [f"blk.{at}.{name}" for at in range(1, count) for name in sorted(alike - blocks.get(at, set()))]
    if registry.named(arch):  # of their hybrids with transformers, some use the embedding as the head
        missing += [name for name in ("output_norm.weight", "output.weight") if name not in head.tensors]
    return missing[0] if missing else ""

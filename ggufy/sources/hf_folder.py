"""Hugging Face models that llama.cpp's own converter takes: a folder or repo with a config.json that names an
architecture (hf_config.py), a tokenizer, and safetensors or pytorch_model.bin, whole or in parts.

They are told by that config.json alone, since their weights are called as an RWKV's are. The converter sees a folder
of links to the files that were pinned, and no others: none called .py is ever fetched or linked, and `auto_map`, which
would name programs, is left out of the copies of its JSON files.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from ggufy.core.errors import SourceError, UsageError
from ggufy.core.messages import Message
from ggufy.formats.gguf import type_of_most
from ggufy.formats.pickled import read_tensors as read_pickled
from ggufy.formats.safetensors import INDEX_SUFFIX, StoredTensor, is_shard, is_shard_of, read_any_header, read_index
from ggufy.models.adapter import bare_name
from ggufy.models.names.config import CONFIG_FILE, LONGEST_CONFIG, read_config
from ggufy.sources.format import ConvertTask, OpenBeside, Report, SkeletonTask, SourceFormat
from ggufy.sources.hf_config import describe_config, has_heads, is_transformer, pre_tokenizer, without_programs
from ggufy.sources.hf_skeleton import write_stand_in
from ggufy.sources.rwkv_tensors import ListedTensor
from ggufy.system.files import part_of, partial, sha256

BIN_INDEX = "pytorch_model.bin.index.json"
# What names a model, the first that is there.
WEIGHTS = ("model.safetensors", f"model{INDEX_SUFFIX}", "pytorch_model.bin", BIN_INDEX)
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
)
# Beside the weights, all that the converter reads: README.md for licence and base model.
_COMPANIONS = (
    CONFIG_FILE,
    "generation_config.json",
    *_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "hf_quant_config.json",
    "README.md",
)
_FAST, _OF_SLOW = "tokenizer.json", ("vocab.json", "vocab.txt", "merges.txt")  # which the former holds too
_CLEANED = (CONFIG_FILE, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_LONGEST_JSON = 64 << 20  # bytes
_LONGEST_COMPANION = 20 << 20  # of one that is read before the model is fetched; others are not looked into
_MOST_PARTS = 32  # whose lists are read; of more, the number of weights follows from their bytes
_BIN_PART = re.compile(r"pytorch_model-\d{5}-of-\d{5}\.bin")
_WIDTHS = {"f32": 4, "f64": 8, "f8_e4m3": 1, "f8_e5m2": 1}  # bytes of a value; all others have 2


class HuggingFaceModel(SourceFormat):
    """One model in a folder of its own."""

    kind, noun, suffix = "hf", "Hugging Face model", ".safetensors"
    unnamed = carries = True
    forecasts = False

    def claims(self, name: str) -> bool:
        return PurePosixPath(name).name == BIN_INDEX

    def recognizes(self, path: Path) -> bool:
        config = path.with_name(CONFIG_FILE)
        if path.name not in WEIGHTS or not config.is_file():
            return False
        with config.open("rb") as file:
            return is_transformer(file.read(LONGEST_CONFIG))

    def files(self, name: str, listing: Callable[[], Collection[str]]) -> tuple[str, ...]:
        there, folder = listing(), PurePosixPath(name).parent
        parts = sorted(other for other in there if _is_part(other, name))
        companions = [str(folder / one) for one in _COMPANIONS]
        return (name, *parts, *(one for one in companions if one in there))

    def base_head(self, path: Path) -> None:
        for one in self.files_here(path):
            if not stat.S_ISREG(one.stat().st_mode):
                raise SourceError("{name} is no file: fetch the model again.", name=one.name)
        with path.with_name(CONFIG_FILE).open("rb") as file:
            describe_config(read_config(file.read(LONGEST_CONFIG)), path.parent.name)

    def describe(self, file: BinaryIO, beside: OpenBeside, found: dict[str, Any], vocab: str | None) -> None:
        path, there = PurePosixPath(found["path"]), {PurePosixPath(name).name for name in found["files"]}
        if vocab:
            raise UsageError("this model carries its vocabulary: leave {VOCAB} out.")

        def companion(name: str, limit: int) -> bytes:
            with beside(str(path.with_name(name))) as opened:
                return opened.read(limit)

        config = read_config(companion(CONFIG_FILE, LONGEST_CONFIG))
        found |= describe_config(config, found.get("stem", path.parent.name))
        if "tokenizer.json" in there and "tokenizer.model" not in there:
            text = companion("tokenizer.json", _LONGEST_COMPANION)
            found["pre_tokenizer"] = pre_tokenizer(text) if len(text) < _LONGEST_COMPANION else None
        elif there.isdisjoint(_VOCABULARIES):
            raise SourceError(
                "{name} has no tokenizer: fetch the model again, with all its files.", name=found["stem"]
            )
        tensors, names = _listed(file, path, beside, there)
        if has_heads(found["architecture"], names, found["layers"]):
            told = Message("heads for several tokens at once (MTP) stay in the base, unless {MTP} says otherwise")
            found |= {"mtp": True, "notes": (*found["notes"], told)}
        found["dtype"] = type_of_most((tensor.dtype, tensor.elements) for tensor in tensors.values())
        found["parameters"] = sum(tensor.elements for tensor in tensors.values())
        if len(tensors) < len(names):
            found["parameters"] = found["size"] // _WIDTHS.get(found["dtype"], 2)
        elif all(isinstance(tensor, StoredTensor) for tensor in tensors.values()):
            found["stored"] = tensors
            found["shapes"] = {bare_name(name): tensor.shape for name, tensor in tensors.items()}
            if "companions" in found:
                small = [name for name in _COMPANIONS if name in there and not (name in _OF_SLOW and _FAST in there)]
                read = {name: companion(name, _LONGEST_COMPANION) for name in small}
                found["companions"] = read if all(len(t) < _LONGEST_COMPANION for t in read.values()) else {}

    def base_bytes(self, report: Report, outtype: str) -> int:
        return report.parameters * (4 if outtype == "f32" else 2)

    def write_described(self, report: Report, target: Path, task: SkeletonTask) -> None:
        if task.run_converter is None or not report.companions:
            super().write_described(report, target, task)
        else:
            folder = part_of(target) / task.name
            write_stand_in(report, folder)
            try:
                task.run_converter(folder, target)
            finally:
                shutil.rmtree(folder.parent, ignore_errors=True)

    def convert(self, task: ConvertTask, target: Path) -> str:
        assert task.run_converter is not None, "whoever has such models converted has the converter"
        with linked_folder(task) as folder:
            if task.adapters:
                _merge(task, folder)
            with partial(target) as part:
                task.run_converter(folder, part)
        return sha256(target, stopped=task.stopped)


def _is_part(name: str, index: str) -> bool:
    """Whether a file belongs to an index, by their names; folders count."""
    if PurePosixPath(index).name == BIN_INDEX:
        path = PurePosixPath(name)
        return path.parent == PurePosixPath(index).parent and _BIN_PART.fullmatch(path.name) is not None
    return index.endswith(INDEX_SUFFIX) and is_shard_of(name, index)


def _listed(
    file: BinaryIO, path: PurePosixPath, beside: OpenBeside, there: Collection[str]
) -> tuple[Mapping[str, ListedTensor], Collection[str]]:
    """The tensors of a model's files, as far as these are read, and the names of all."""
    if not path.name.endswith(".index.json"):
        read = read_pickled if path.name == "pytorch_model.bin" else read_any_header
        whole = read(file, path.name)
        return whole, whole.keys()
    places = read_index(file, path.name, is_part=lambda name: is_shard(name) or bool(_BIN_PART.fullmatch(name)))
    parts, tensors = sorted({*places.values()}), dict[str, ListedTensor]()
    for part in parts:
        if part not in there:
            raise SourceError("{name} is missing: fetch the model again, with all its files.", name=part)
    for part in parts[:_MOST_PARTS]:
        with beside(str(path.with_name(part))) as opened:
            tensors |= (read_pickled if part.endswith(".bin") else read_any_header)(opened, part)
    return tensors, places.keys() if len(parts) > _MOST_PARTS else tensors.keys()


def _merge(task: ConvertTask, folder: Path) -> None:
    """Puts weights with the task's adapters in them into a folder of links."""
    from ggufy.models.merge_files import merge_into_files  # noqa: PLC0415 - loads torch

    paths = [path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors"]
    if not paths:
        raise SourceError(
            "{name} has its weights in .bin files, and adapters are merged into safetensors: save it again.",
            name=task.name,
        )
    merge_into_files(paths, task.adapters, task.progress)


@contextlib.contextmanager
def linked_folder(task: ConvertTask) -> Iterator[Path]:
    """A folder that is called as the model is, with links to its pinned files; digests of local ones are checked."""
    work = part_of(task.work / "converter")
    shutil.rmtree(work, ignore_errors=True)
    folder = work / task.name
    folder.mkdir(parents=True)
    try:
        for one in task.source.each():
            name = PurePath(one.path).name
            here = task.path.with_name(name)
            if one.sha256 and not task.source.remote and sha256(here, stopped=task.stopped) != one.sha256:
                raise SourceError(
                    "{path} changed since the job was made: put the file back, or start anew with {NAME}.", path=here
                )
            if name in _CLEANED:
                with here.open("rb") as file:
                    (folder / name).write_bytes(without_programs(file.read(_LONGEST_JSON), name))
            else:
                (folder / name).symlink_to(here.absolute())
        yield folder
    finally:
        shutil.rmtree(work, ignore_errors=True)

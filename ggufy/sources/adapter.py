"""Adapters as people name them: where one is, what it is, and how its files get here.

An adapter is a `.pth`, or a folder that Hugging Face's PEFT has saved (adapter_model.safetensors beside
adapter_config.json), on this machine or on the Hub. `pin_adapter` tells it by its head, without its values; a job
fetches it whole, once it is at work, since it is small beside the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ggufy.core.errors import SourceError, UsageError
from ggufy.core.source import PinnedAdapter, Source, SourceFile
from ggufy.core.words import brief
from ggufy.formats.gguf import MAGIC
from ggufy.formats.pickled import read_tensors
from ggufy.formats.safetensors import read_header
from ggufy.models.adapter import Adapter, Formula, check_fits, describe_adapter
from ggufy.models.adapter_config import LARGEST, parse_config
from ggufy.net.download import fetch_small
from ggufy.net.http_file import BLOCK, BlockFile, HttpFile
from ggufy.net.http_get import hub_address, source_address
from ggufy.net.hub_api import RepoSibling, repo_files
from ggufy.net.session import Reference
from ggufy.sources import hub
from ggufy.sources.format import Report, SourceFormat
from ggufy.system.clock import never
from ggufy.system.files import sha256
from ggufy.system.settings import Settings
from ggufy.system.user_paths import is_there, user_file, user_path

KIND = "adapter"  # of its Source
CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # of a folder by PEFT
_SUFFIXES = (".pth", ".safetensors", ".bin")
_INIT = "init_pissa.pth"  # as RWKV-PEFT names what a PiSSA began with
_SCALE = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)")
_LONGEST_HEAD = 64 << 20  # bytes of a file's list of tensors and what stands around it
_LONGEST_SMALL = 4 << 20  # bytes of a file that the Hub keeps no digest of


Found = tuple[PinnedAdapter, Adapter]


@dataclass(frozen=True)
class AdapterSearch:
    """How adapters are looked for: with the token, and on this machine unless `settings` says not to."""

    settings: Settings
    digest: Callable[[Path], str] = sha256
    stopped: Callable[[], bool] = never


@dataclass(frozen=True, kw_only=True)
class AdapterWish:
    """Adapters as they were asked for: each `FILE[:SCALE]`, FILE being a `.pth`, a folder, or `owner/repo[:file]`."""

    texts: tuple[str, ...] = ()
    alpha: float | None = None  # of those that say neither alpha nor a scale
    init: str = ""  # the file that the only one, a PiSSA, began with


def pin_adapters(wish: AdapterWish, search: AdapterSearch, form: SourceFormat) -> tuple[Found, ...]:
    """Pins the adapters of a model of that format by digest, and tells what they are.

    Raises SourceError for what is no adapter or cannot be had, UsageError if something was not said that merging
    needs, or was said and is of no use.
    """
    if (wish.init or wish.alpha is not None) and not wish.texts:
        raise UsageError("{LORA_ALPHA} and {LORA_INIT} say more of an adapter: give one with {LORA}.")
    if wish.init and len(wish.texts) > 1:
        raise UsageError("{LORA_INIT} belongs to one adapter: put the others' beside them, as init_pissa.pth.")
    if wish.texts and not form.converts:
        raise UsageError("a GGUF is taken as it is: give the checkpoint that it was made from, and {LORA} with it.")
    if wish.alpha is not None and not 0 < wish.alpha <= LARGEST:
        raise UsageError("{LORA_ALPHA} takes a number above 0, such as 32: check it.")
    found = tuple(_pinned(text, wish, search) for text in wish.texts)
    if wish.alpha is not None and not any(adapter.asks_alpha for _, adapter in found):
        raise UsageError("no adapter here needs alpha: leave {LORA_ALPHA} out.")
    return found


def _pinned(text: str, wish: AdapterWish, search: AdapterSearch) -> Found:
    name, given = split_scale(text)
    source = _resolve(name, search)
    init = _resolve(wish.init, search) if wish.init else None
    adapter = _describe(source, init, search)
    if adapter.kind == "LoRA" and adapter.asks_alpha and init is None:
        if init := _init_beside(source, search):
            adapter = _describe(source, init, search)
        elif "pissa" in name.lower():
            raise SourceError(
                "{name} seems to be a PiSSA, which takes the file that its training began with: give that with "
                "{LORA_INIT}, or put it beside as init_pissa.pth.",
                name=adapter.name,
            )
    if wish.init and adapter.kind != "PiSSA":
        raise UsageError("{name} ({kind}) takes no {LORA_INIT}: leave it out.", name=adapter.name, kind=adapter.kind)
    scale = adapter.scale(given, wish.alpha)
    return PinnedAdapter(source=source, init=init, kind=adapter.kind, rank=adapter.rank, scale=scale), adapter


def split_scale(text: str) -> tuple[str, float | None]:
    """`FILE[:SCALE]` in its two halves. Raises UsageError for a scale that makes no sense."""
    match = _SCALE.fullmatch(text.strip())
    if match is None:
        return text.strip(), None
    scale = float(match[2])
    if not 0 < abs(scale) <= LARGEST:
        raise UsageError("{scale} is no scale for an adapter: give alpha / r, such as 2.", scale=match[2])
    return match[1], scale


def adapter_stem(source: Source) -> str:
    """What an adapter is called: its file, or the folder or the repo that PEFT's files lie in."""
    path = PurePosixPath(source.path)
    if path.name not in _WEIGHTS:
        return path.stem
    return path.parent.name or source.model_id.rpartition("/")[2] or path.stem


def check_adapters(adapters: Iterable[Found], report: Report | None) -> None:
    """Raises SourceError if one is not for the model of the report, which is known if there is one."""
    for _, adapter in adapters if report else ():
        check_fits(adapter, report.shapes if report else {})


def check_separable(adapters: Sequence[Found], form: SourceFormat) -> tuple[PinnedAdapter, ...]:
    """The adapters of a model of that format, each of which can be a GGUF of its own. Raises an error for others."""
    if not adapters:
        raise UsageError("{LORA_AS_FILE} says what becomes of adapters: give one with {LORA}.")
    for one, adapter in adapters:
        if not form.carries or not form.converts:
            raise UsageError(
                "{LORA_AS_FILE} is for models that go through llama.cpp's converter, and this one does not: leave it "
                "out, and adapters are merged."
            )
        plain = all(part.formula is Formula.LORA for part in adapter.parts.values())
        if not plain or len({part.rank for part in adapter.parts.values()}) > 1 or not _by_peft(one.source):
            raise SourceError(
                "{name} ({kind}) is not just a LoRA in safetensors by PEFT, and only such a one can be a file of its "
                "own: leave {LORA_AS_FILE} out, and it is merged.",
                name=adapter.name,
                kind=adapter.kind,
            )
    return tuple(one for one, _ in adapters)


def _by_peft(source: Source) -> bool:
    names = [PurePosixPath(one.path).name for one in source.files]
    return names == [_WEIGHTS[0], CONFIG]


def adapters_label(adapters: Iterable[Found], *, by_stranger: bool) -> str:
    """What a model's name gets from its adapters: `-<adapter>` each, with the account it is of if a stranger chose
    it."""
    words: list[str] = []
    for one, _ in adapters:
        account = one.source.model_id.partition("/")[0].replace(":", ".")  # `ms.` before one of ModelScope
        words += [account] if by_stranger and account else []
        words.append(adapter_stem(one.source))
    return "".join(f"-{word}" for word in words)


# ---- where it is


def _resolve(text: str, search: AdapterSearch) -> Source:
    files = None if search.settings.hub_only else _files_here(text)
    if files is None:
        return _on_hub(text, search)
    pinned = [SourceFile(path=str(file), size=file.stat().st_size, sha256=search.digest(file)) for file in files]
    return Source.of_files(pinned, kind=KIND)


def _files_here(text: str) -> list[Path] | None:
    """The files of an adapter on this machine; None if it can only be on the Hub."""
    path = user_path(text)
    if is_there(path) and path.is_dir():
        path = next((path / name for name in _WEIGHTS if is_there(path / name)), path / _WEIGHTS[0])
    if file := user_file(path):
        config = file.with_name(CONFIG)
        return [file, config] if file.name in _WEIGHTS and is_there(config) else [file]
    here = ":" not in text and (text.count("/") != 1 or text.startswith((".", "/", "~")) or path.suffix in _SUFFIXES)
    if here:
        raise SourceError(
            "there is no adapter {path}: give a .pth, a folder with adapter_model.safetensors in it, or "
            "owner/repo:file.pth.",
            path=brief(str(path)),
        )
    return None


def _on_hub(text: str, search: AdapterSearch) -> Source:
    wanted = hub.parse_reference(text)
    listing = repo_files(wanted, token=search.settings.token_for(wanted.host), stopped=search.stopped)
    by_name = {file.rfilename: file for file in listing.files}
    weights = _chosen(wanted, listing.files)
    names = [weights]
    if weights.name in _WEIGHTS and str(weights.with_name(CONFIG)) in by_name:
        names.append(weights.with_name(CONFIG))
    there = replace(wanted, revision=listing.commit)
    files = [_pinned_file(by_name[str(name)], there, search) for name in names]
    return Source.of_files(
        files,
        kind=KIND,
        model_id=wanted.name,
        revision=listing.commit,
        license=listing.license,
        public=listing.public,
    )


def _chosen(wanted: Reference, files: Sequence[RepoSibling]) -> PurePosixPath:
    """The file that was named, the weights of the folder that was, or the only adapter of the repo."""
    names = {file.rfilename: PurePosixPath(file.rfilename) for file in files}
    folder = PurePosixPath(wanted.file)
    for name in _WEIGHTS:
        if str(folder / name) in names:
            return folder / name
    candidates = [n for n, p in names.items() if p.name in _WEIGHTS or (p.suffix == ".pth" and p.name != _INIT)]
    also = [name for name, path in names.items() if path.suffix in _SUFFIXES]
    return names[hub.choose_file(wanted, files, suffix=".pth", candidates=candidates, also=also).rfilename]


def _pinned_file(file: RepoSibling, there: Reference, search: AdapterSearch) -> SourceFile:
    if file.lfs is not None:
        return SourceFile(path=file.rfilename, size=file.lfs.size, sha256=file.lfs.sha256)
    text = _small(replace(there, file=file.rfilename), search)
    return SourceFile(path=file.rfilename, size=len(text), sha256=hashlib.sha256(text).hexdigest())


def _small(there: Reference, search: AdapterSearch) -> bytes:
    address = hub_address(there, token=search.settings.token_for(there.host))
    return fetch_small(address, limit=_LONGEST_SMALL, stopped=search.stopped)


def _init_beside(source: Source, search: AdapterSearch) -> Source | None:
    """What a PiSSA began with, if it lies beside it under a name that says so."""
    path = PurePosixPath(source.path)
    names = [path.with_name(_INIT), path.with_name(f"{path.stem}_init.pth")]
    if not source.remote:
        found = next((name for name in names if is_there(Path(name))), None)
        return _resolve(str(found), search) if found else None
    there = Reference.named(source.model_id, revision=source.revision)
    listing = repo_files(there, token=search.settings.token_for(there.host), stopped=search.stopped)
    listed = {file.rfilename for file in listing.files}
    found = next((name for name in names if str(name) in listed), None)
    return _on_hub(f"{source.model_id}@{source.revision}:{found}", search) if found else None


# ---- what it is


def _describe(source: Source, init: Source | None, search: AdapterSearch) -> Adapter:
    return describe_files(adapter_stem(source), (*source.each(), *(init.each() if init else ())), search)


def describe_files(name: str, files: Sequence[Source], search: AdapterSearch) -> Adapter:
    """What the adapter called `name` is, from the heads of its files. Raises SourceError."""
    shapes: dict[str, tuple[int, ...]] = {}
    config = None
    for one in files:
        file_name = PurePosixPath(one.path).name
        with _opened(one, search) as file:
            if file_name == CONFIG:
                config = parse_config(file.read(_LONGEST_SMALL), name)
                continue
            found = _shapes(file, file_name)
        if found.keys() & shapes.keys():
            raise SourceError("two files of {name} hold the same tensors: check {LORA_INIT}.", name=name)
        shapes |= found
    return describe_adapter(shapes, name, config)


@contextlib.contextmanager
def _opened(one: Source, search: AdapterSearch) -> Iterator[BinaryIO]:
    """A file of an adapter, from which little is read."""
    if not one.remote:
        with Path(one.path).open("rb") as file:
            yield file
    elif PurePosixPath(one.path).name == CONFIG:
        yield io.BytesIO(_small(Reference.named(one.model_id, file=one.path, revision=one.revision), search))
    else:
        address = source_address(one, token=search.settings.token_for(one.host))
        remote = HttpFile(address, one, stopped=search.stopped)
        with io.BufferedReader(BlockFile(remote, budget=_LONGEST_HEAD), BLOCK) as reader:
            yield cast(BinaryIO, reader)


def _shapes(file: BinaryIO, name: str) -> dict[str, tuple[int, ...]]:
    magic = file.read(9)
    file.seek(0)
    if magic.startswith(MAGIC):
        raise SourceError(
            "{name} is a GGUF: give the adapter as it was trained, a .pth or a folder with adapter_model.safetensors.",
            name=name,
        )
    read = read_header if is_safetensors(magic) else read_tensors
    return {key: tensor.shape for key, tensor in read(file, name).items()}


def is_safetensors(start: bytes) -> bool:
    """By the first nine bytes of a file."""
    return start[8:9] == b"{" and not start.startswith(b"PK")

"""What a source is, told from its headers alone: within seconds, without its weights, and without running anything.

`inspect` takes what a user types. A file here is opened; of a file on the Hub or at a plain address a few ranges are
read (net/http_file.py). A .pth is described by the list of its tensors (pickled.py) and RWKV's tables of names and
shapes, a GGUF by its own metadata. Whatever is wrong becomes the report's `problem`: one sentence, with the next thing
to do.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from ggufy import demo
from ggufy.core.errors import Cancelled, SourceAway, SourceError, UsageError
from ggufy.core.words import brief
from ggufy.formats import gguf
from ggufy.formats.pickled import read_tensors
from ggufy.models.names import detect, version_of
from ggufy.models.vocab import vocab_for
from ggufy.net.http_file import BLOCK, BlockFile, Deadline, HttpFile
from ggufy.net.http_get import Address, hub_address
from ggufy.net.hub_api import Listing, check_access, repo_files
from ggufy.net.session import QUICK_TIMEOUT, SILENCE_S, Reference
from ggufy.sources import hub
from ggufy.sources.gguf_model import check_model, number, rwkv_version
from ggufy.sources.locate import is_plain_url, local_file
from ggufy.system.settings import Settings
from ggufy.system.user_paths import user_file

_LONGEST_TEXT = 600
_MOST_BYTES = 8 << 20  # of one file; heads of the largest models take some 2 MB
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model file of a repo."""

    name: str  # path in the repo
    size: int  # bytes


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is known of a source; a field is empty, or 0, if it is not known or does not apply."""

    source: str  # as it was typed
    problem: str = ""  # why it cannot be quantized, and what to do next; empty: it can
    kind: str = ""  # checkpoint or gguf
    path: str = ""  # name of the file, in the repo if it is in one
    architecture: str = ""  # as llama.cpp calls it: rwkv6, rwkv7, llama, …
    version: str = ""  # of RWKV: 4, 5, 5.1, 5.2, 6 or 7
    layers: int = 0
    width: int = 0
    heads: int = 0
    head_size: int = 0
    vocab_size: int = 0
    parameters: int = 0
    dtype: str = ""  # of most weights: bf16, f16, f32, or a quantized GGUF's tensor type
    size: int = 0  # of the file, bytes
    model_id: str = ""  # Hub: owner/name
    revision: str = ""  # Hub: commit sha
    license: str = ""  # Hub: as the repo's card says
    gated: bool = False  # Hub: its conditions have to be accepted first
    variants: tuple[Variant, ...] = ()  # Hub: every .pth and .gguf of the repo
    streams: bool = False  # remote checkpoint: converting it needs no room for the file itself
    received: int = 0  # bytes of the file that were fetched to know all this
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)  # checkpoint: of its tensors
    head: bytes = field(default=b"", repr=False)  # unquantized GGUF: everything before its data

    @property
    def remote(self) -> bool:
        """It is not on this machine."""
        return bool(self.received)

    def facts(self) -> dict[str, Any]:
        """What people and programs are told."""
        kept = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("shapes", "head")}
        return kept | {"variants": [{"name": v.name, "size": v.size} for v in self.variants]}

    @property
    def title(self) -> str:
        """Its kind in words."""
        what = {"checkpoint": "checkpoint", "gguf": "GGUF"}.get(self.kind, "")
        name = f"RWKV-{self.version}" if self.version else self.architecture
        return f"{name} {what}".strip()


def inspect(text: str, settings: Settings, *, vocab: str | None = None, endpoint: str | None = None) -> Report:
    """Looks at SOURCE: demo, a file here, a plain address, or a Hub repo with or without a file.

    `vocab` is the vocabulary file for a checkpoint that does not use World's. Reads at most 8 MiB over the network, in
    at most about 20 seconds. Never raises for a source that cannot work: the report's `problem` says why.
    """
    text = text.strip()
    found: dict[str, Any] = {}
    try:
        _look(text, settings, found, vocab=vocab, endpoint=endpoint)
    except (SourceError, UsageError) as error:
        found["problem"] = str(error)
    # A stranger's file chooses some of these texts, and they may be shown in a terminal.
    tame: dict[str, Any] = {key: _tame(value) if isinstance(value, str) else value for key, value in found.items()}
    return Report(source=text, **tame)


def look(text: str, settings: Settings, *, vocab: str | None = None) -> Report:
    """As `inspect`, but raises SourceError or UsageError for what cannot work."""
    found: dict[str, Any] = {}
    _look(text.strip(), settings, found, vocab=vocab)
    return Report(source=text, **found)


def _look(
    text: str, settings: Settings, found: dict[str, Any], *, vocab: str | None, endpoint: str | None = None
) -> None:
    """Fills `found` with the fields of a Report, as far as they can be known."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(text, settings, found, endpoint=endpoint))
        if found["kind"] == "gguf":
            _look_at_gguf(file, found)
        else:
            own = str(demo.VOCAB) if text == "demo" else None
            _look_at_checkpoint(file, found, vocab or own)


def _tame(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_TEXT])


def write_gguf_skeleton(report: Report, target: Path) -> None:
    """The head of an unquantized GGUF with a hole of the size of its data, which takes no disk."""
    target.write_bytes(report.head)
    os.truncate(target, report.size)


# ---- where it is


def _opened(
    text: str, settings: Settings, found: dict[str, Any], *, endpoint: str | None
) -> contextlib.AbstractContextManager[BinaryIO]:
    """The file, open for reading; what is known of the place goes into `found`."""
    if not settings.hub_only and is_plain_url(text):
        return _opened_url(text, found, public=settings.space_id is not None)
    if path := local_file(text, hub_only=settings.hub_only):
        return _opened_here(path, found)
    return _opened_on_hub(text, found, token=settings.hf_token, endpoint=endpoint)


@contextlib.contextmanager
def _opened_here(path: Path, found: dict[str, Any]) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    with file:
        kind = "gguf" if file.read(4) == gguf.MAGIC else "checkpoint"
        found |= {"kind": kind, "path": path.name, "size": path.stat().st_size}
        yield file


@contextlib.contextmanager
def _opened_url(text: str, found: dict[str, Any], *, public: bool) -> Iterator[BinaryIO]:
    url = hub.split_address(text)
    path = PurePosixPath(unquote(url.path))
    if url.username is not None:
        raise SourceError("an address with a password in it is not taken: it would end up in job records.")
    if path.suffix not in hub.KINDS:
        raise SourceError(f"{brief(text)} is not the address of a model: give one that ends in .pth or .gguf.")
    found |= {"kind": hub.KINDS[path.suffix], "path": path.name}
    address = url._replace(fragment="").geturl()
    remote, deadline = Address(url=address, shown=address, public=public), Deadline()
    with _reading(remote, deadline, found) as file:
        found["streams"] &= not url.fragment
        yield file


@contextlib.contextmanager
def _opened_on_hub(text: str, found: dict[str, Any], *, token: str | None, endpoint: str | None) -> Iterator[BinaryIO]:
    deadline = Deadline()
    wanted = hub.parse_reference(text, endpoint=endpoint)
    found["model_id"] = wanted.repo_id
    try:
        listing = repo_files(
            wanted, token=token, endpoint=endpoint, check=False, timeout_s=SILENCE_S, stopped=deadline.passed
        )
        found |= {"revision": listing.commit, "license": listing.license, "gated": listing.gated}
        found["variants"] = tuple(
            Variant(name=file.rfilename, size=file.size or 0)
            for file in sorted(listing.files, key=lambda file: file.rfilename)
            if file.rfilename.endswith(tuple(hub.KINDS))
        )
        chosen = _chosen(wanted, listing)
        found |= {"kind": hub.KINDS[PurePosixPath(chosen.file).suffix], "path": chosen.file}
        found["size"] = next(variant.size for variant in found["variants"] if variant.name == chosen.file)
        found["streams"] = found["kind"] == "checkpoint"
        if listing.gated:
            check_access(wanted, token=token, endpoint=endpoint, stopped=deadline.passed)
    except Cancelled as error:
        raise SourceAway("the Hub did not answer in time: try again later.") from error
    with _reading(hub_address(chosen, token=token, endpoint=endpoint), deadline, found) as file:
        yield file


def _chosen(wanted: Reference, listing: Listing) -> Reference:
    """The file that was named or is the only one, at the listing's commit. Raises SourceError if none is."""
    names = {suffix: [f.rfilename for f in listing.files if f.rfilename.endswith(suffix)] for suffix in hub.KINDS}
    repo = wanted.repo_id
    if not wanted.file and len(names[".pth"]) > 1:
        raise SourceError(
            f"{repo} holds {len(names['.pth'])} .pth files: choose one, for example {repo}:{min(names['.pth'])}."
        )
    if not wanted.file and names[".gguf"] and not names[".pth"]:
        raise SourceError(
            f"{repo} holds no .pth file, only GGUF: name an unquantized one, for example {repo}:{min(names['.gguf'])}."
        )
    return Reference(repo_id=repo, file=hub.model_file(wanted, listing.files).rfilename, revision=listing.commit)


@contextlib.contextmanager
def _reading(address: Address, deadline: Deadline, found: dict[str, Any]) -> Iterator[BinaryIO]:
    remote = HttpFile(address, timeout=QUICK_TIMEOUT, stopped=deadline.passed)
    try:
        with io.BufferedReader(BlockFile(remote, budget=_MOST_BYTES), BLOCK) as file:
            found["size"] = remote.size
            found.setdefault("streams", found["kind"] == "checkpoint" and bool(remote.version))
            yield cast(BinaryIO, file)
    except Cancelled as error:
        raise SourceAway(
            f"{address.shown} was not answered within {deadline.seconds:.0f} seconds: try again later."
        ) from error
    finally:
        found["received"] = remote.received
        logger.info("%d bytes in %d requests", remote.received, remote.requests)


# ---- what it is


def _look_at_checkpoint(file: BinaryIO, found: dict[str, Any], vocab: str | None) -> None:
    tensors = read_tensors(file, found["path"])
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    found["dtype"] = _most((tensor.dtype, tensor.elements) for tensor in tensors.values())
    found["parameters"] = sum(tensor.elements for tensor in tensors.values())
    found |= _sizes(shapes) | {"shapes": shapes}
    model = detect(shapes)
    found |= {"architecture": model.arch, "version": model.version, "parameters": model.parameters}
    found |= {"layers": model.layers, "width": model.width, "vocab_size": model.vocab_size}
    found |= {"head_size": model.head_size, "heads": model.width // model.head_size}
    own = user_file(vocab) if vocab else None
    if vocab and own is None:
        raise SourceError(f"the vocabulary {brief(vocab)} does not exist: check the path given with --vocab.")
    vocab_for(model.vocab_size, own)


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What can be said of any RWKV, also of one that cannot be converted."""
    blocks = [int(match[1]) for name in shapes if (match := re.match(r"blocks\.([0-9]{1,6})\.", name))]
    embedding = shapes.get("emb.weight", ())
    vocab_size, width = embedding if len(embedding) == 2 else (0, 0)
    layers = max(blocks, default=-1) + 1
    return {"version": version_of(shapes), "layers": layers, "width": width, "vocab_size": vocab_size}


def _look_at_gguf(file: BinaryIO, found: dict[str, Any]) -> None:
    name = found["path"]
    head = gguf.read_head_of(file, name)
    said = head.metadata
    arch = str(said.get("general.architecture", ""))
    tokens = said.get("tokenizer.ggml.tokens")
    head_size = number(said, f"{arch}.wkv.head_size")
    width = number(said, f"{arch}.embedding_length")
    found |= {
        "architecture": arch,
        "version": rwkv_version(arch),
        "layers": number(said, f"{arch}.block_count"),
        "width": width,
        "head_size": head_size,
        "heads": width // head_size if head_size else number(said, f"{arch}.attention.head_count"),
        "vocab_size": len(tokens) if isinstance(tokens, list) else number(said, "tokenizer.ggml.tokens"),
        "parameters": head.elements,
        "dtype": _most((tensor.type, tensor.elements) for tensor in head.tensors.values()),
    }
    check_model(head, name)
    found["dtype"] = head.outtype
    file.seek(0)
    found["head"] = file.read(head.data_start)


def _most(tensors: Iterable[tuple[str, int]]) -> str:
    """The type of most values, from the type and the number of values of each tensor."""
    counts: dict[str, int] = {}
    for kind, count in tensors:
        counts[kind] = counts.get(kind, 0) + count
    return max(counts, key=lambda kind: counts[kind], default="")

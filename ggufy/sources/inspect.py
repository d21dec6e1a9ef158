"""What a source is, told from its headers alone: within seconds, without its weights, and without running anything.

`inspect` takes what a user types. A file here is opened; of a file on the Hub or at a plain address a few ranges are
read (net/http_file.py). Its format describes it (registry.py). Whatever is wrong becomes the report's `problem`: one
sentence, with the next thing to do.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote, urljoin

from ggufy.core.errors import Cancelled, SourceAway, SourceError, UsageError
from ggufy.core.hosts import MODELSCOPE
from ggufy.core.messages import Message
from ggufy.core.names import stem_of
from ggufy.core.outputs import GGUF
from ggufy.core.source import STREAMED_KINDS
from ggufy.core.words import brief
from ggufy.models.chat_format import AUTO, pinned_format
from ggufy.models.names.config import LONGEST_CONFIG
from ggufy.net.download import fetch_small
from ggufy.net.http_file import BLOCK, BlockFile, Deadline, HttpFile
from ggufy.net.http_get import Address, hub_address
from ggufy.net.hub_api import NO_POINTER, Listing, RepoSibling, check_access, repo_files
from ggufy.net.session import QUICK_TIMEOUT, SILENCE_S, Reference
from ggufy.sources import hub
from ggufy.sources.addresses import split_address
from ggufy.sources.format import OpenBeside, Report, SourceFormat, Variant
from ggufy.sources.locate import is_plain_url, local_file, vocab_with
from ggufy.sources.patterns import is_wild, matching
from ggufy.sources.registry import format_of, format_of_file, format_of_name, models_by_config, unnamed_among
from ggufy.system.settings import Settings

_LONGEST_TEXT = 600
_MOST_BYTES = 20 << 20  # of one file: a large vocabulary's tokenizer has 17 MB, the largest model's head some 2
logger = logging.getLogger(__name__)


def inspect(
    text: str,
    settings: Settings,
    *,
    vocab: str | None = None,
    endpoint: str | None = None,
    output: str = GGUF,
    forecast: bool = False,
) -> Report:
    """Looks at SOURCE: demo, a file here, a plain address, or a Hub repo with or without a file.

    `vocab` is the vocabulary file for a checkpoint that does not use World's, `output` the format of what is to be
    made of it; with `forecast`, what it takes to foresee sizes is read too. Reads at most 20 MiB of a file over the
    network, in at most about 20 seconds. Never raises for a source that cannot work: the report's `problem` says why.
    """
    text = text.strip()
    found: dict[str, Any] = {"output": output} | ({"companions": {}} if forecast else {})
    try:
        _look(text, settings, found, vocab=vocab, endpoint=endpoint)
    except (SourceError, UsageError) as error:
        found |= {"problem": error.message, "away": isinstance(error, SourceAway)}
    # A stranger's file chooses some of these texts, and they may be shown in a terminal.
    tame: dict[str, Any] = {key: _tame(value) if isinstance(value, str) else value for key, value in found.items()}
    return Report(source=text, **tame)


def look(
    text: str, settings: Settings, *, vocab: str | None = None, output: str = GGUF, forecast: bool = False
) -> Report:
    """As `inspect`, but raises SourceError or UsageError for what cannot work."""
    found: dict[str, Any] = {"output": output} | ({"companions": {}} if forecast else {})
    _look(text.strip(), settings, found, vocab=vocab)
    return Report(source=text, **found)


def _look(
    text: str, settings: Settings, found: dict[str, Any], *, vocab: str | None, endpoint: str | None = None
) -> None:
    """Fills `found` with the fields of a Report, as far as they can be known."""
    with contextlib.ExitStack() as stack:
        file, beside = stack.enter_context(_opened(text, settings, found, endpoint=endpoint))
        form = format_of(found["kind"])
        found["noun"] = form.noun
        form.describe(file, beside, found, vocab_with(text, vocab))
        form.check_output(found["output"], found)
        if form.rwkv:
            found["chat_format"] = pinned_format(AUTO, (found["path"], found.get("model_id", "")))


def _tame(text: str) -> str:
    if isinstance(text, Message):
        return text.changed(_tame)
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_TEXT])


# ---- where it is


def _opened(
    text: str, settings: Settings, found: dict[str, Any], *, endpoint: str | None
) -> contextlib.AbstractContextManager[tuple[BinaryIO, OpenBeside]]:
    """The file, open for reading, and a way to the others; what is known of the place goes into `found`."""
    if not settings.hub_only and is_plain_url(text):
        return _opened_url(text, found, public=settings.space_id is not None)
    if path := local_file(text, hub_only=settings.hub_only):
        return _opened_here(path, found)
    return _opened_on_hub(hub.parse_reference(text, endpoint=endpoint), settings, found, endpoint=endpoint)


@contextlib.contextmanager
def _opened_here(path: Path, found: dict[str, Any]) -> Iterator[tuple[BinaryIO, OpenBeside]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(
            "{path} cannot be read ({reason}): check its permissions.", path=path, reason=error.strerror
        ) from error
    with file:
        form = format_of_file(path)
        files = form.files_here(path)
        found |= {"kind": form.kind, "path": path.name, "size": sum(one.stat().st_size for one in files)}
        found |= {"files": tuple(one.name for one in files), "stem": stem_of(str(path))}
        yield file, lambda name: path.with_name(name).open("rb")


@contextlib.contextmanager
def _opened_url(text: str, found: dict[str, Any], *, public: bool) -> Iterator[tuple[BinaryIO, OpenBeside]]:
    url = split_address(text)
    path = PurePosixPath(unquote(url.path))
    if url.username is not None:
        raise SourceError("an address with a password in it is not taken: it would end up in job records.")
    if (form := format_of_name(path.name)) is None:
        raise SourceError(
            "{text} is not the address of a model: give one that ends in .pth, .safetensors or .gguf.",
            text=brief(text),
        )
    found |= {"kind": form.kind, "path": path.name, "files": (path.name,), "stem": stem_of(path.name)}
    address = url._replace(fragment="").geturl()
    deadline = Deadline()

    def beside(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        other = urljoin(address, quote(name)) if name else address
        return _reading(Address(url=other, shown=other, public=public), deadline, found)

    with beside("") as file:
        found["streams"] &= not url.fragment
        yield file, beside


@contextlib.contextmanager
def _opened_on_hub(
    wanted: Reference, settings: Settings, found: dict[str, Any], *, endpoint: str | None
) -> Iterator[tuple[BinaryIO, OpenBeside]]:
    deadline, token = Deadline(), settings.token_for(wanted.host)
    found["model_id"] = wanted.name
    try:
        listing = repo_files(
            wanted, token=token, endpoint=endpoint, check=False, timeout_s=SILENCE_S, stopped=deadline.passed
        )
        found |= {"revision": listing.commit, "license": listing.license, "gated": listing.gated}
        sizes = {file.rfilename: file.size or 0 for file in listing.files}
        there = replace(wanted, revision=listing.commit)

        @functools.cache
        def read(name: str) -> bytes:
            address = hub_address(replace(there, file=name), token=token, endpoint=endpoint)
            data = fetch_small(address, limit=LONGEST_CONFIG, stopped=deadline.passed)
            found["received"] = found.get("received", 0) + len(data)
            return data

        models = sorted(models_by_config(sizes, wanted.file, read).items())
        if is_wild(wanted.file) and wanted.file not in sizes:
            meant = matching(wanted.file, models)
            models = [(name, form) for name, form in models if name in meant]
        found["variants"] = tuple(
            Variant(name=name, size=sum(sizes[part] for part in form.files(name, lambda: sizes)))
            for name, form in models
        )
        form, chosen = _chosen(wanted, listing, dict(models), read)
        found |= {"kind": form.kind, "path": chosen.file, "streams": form.kind in STREAMED_KINDS}
        found |= {"files": form.files(chosen.file, lambda: sizes), "stem": stem_of(chosen.file, wanted.repo_id)}
        found["size"] = next(variant.size for variant in found["variants"] if variant.name == chosen.file)
        if listing.gated:
            check_access(wanted, token=token, endpoint=endpoint, stopped=deadline.passed)
    except Cancelled as error:
        if wanted.host == MODELSCOPE:
            raise SourceAway("ModelScope did not answer in time: try again later.") from error
        raise SourceAway("the Hub did not answer in time: try again later.") from error
    whole = {file.rfilename: file for file in listing.files if file.lfs and file.lfs.pointer_size == NO_POINTER}

    def beside(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        there = hub_address(replace(chosen, file=name), token=token, endpoint=endpoint)
        if name in whole:
            return _whole(there, whole[name], deadline, found)
        return _reading(there, deadline, found)

    with beside(chosen.file) as file:
        yield file, beside


def _chosen(
    wanted: Reference, listing: Listing, models: dict[str, SourceFormat], read: Callable[[str], bytes]
) -> tuple[SourceFormat, Reference]:
    """The model that was named or is the only one, at the listing's commit. Raises SourceError if none is."""
    unnamed = unnamed_among(models)
    repo = wanted.name
    if not wanted.file and len(unnamed) > 1:
        raise SourceError(
            "{repo} holds {count} {suffix} files: choose one, for example {example}.",
            repo=repo,
            count=len(unnamed),
            suffix=models[unnamed[0]].suffix,
            example=f"{repo}:{min(unnamed)}",
        )
    if not wanted.file and models and not unnamed:
        raise SourceError(
            "{repo} holds no .pth file, only GGUF: name an unquantized one, for example {example}.",
            repo=repo,
            example=f"{repo}:{min(models)}",
        )
    form, files = hub.model_files(wanted, listing.files, read)
    return form, replace(wanted, file=files[0].rfilename, revision=listing.commit)


def _whole(address: Address, file: RepoSibling, deadline: Deadline, found: dict[str, Any]) -> io.BytesIO:
    """A small file, of which ModelScope sends no parts. Raises SourceError if it is not the one that was listed: of a
    missing one, ModelScope sends a sentence as if it were the file."""
    data = fetch_small(address, limit=_MOST_BYTES, stopped=deadline.passed)
    found["received"] = found.get("received", 0) + len(data)
    if file.lfs is None or (len(data), hashlib.sha256(data).hexdigest()) != (file.lfs.size, file.lfs.sha256):
        raise SourceError("{url} arrived damaged (its sha256 is another): try again later.", url=address.shown)
    return io.BytesIO(data)


@contextlib.contextmanager
def _reading(address: Address, deadline: Deadline, found: dict[str, Any]) -> Iterator[BinaryIO]:
    remote = HttpFile(address, timeout=QUICK_TIMEOUT, stopped=deadline.passed)
    try:
        with io.BufferedReader(BlockFile(remote, budget=_MOST_BYTES), BLOCK) as file:
            found.setdefault("size", remote.size)  # of several files, it is known already
            found.setdefault("streams", found["kind"] in STREAMED_KINDS and bool(remote.version))
            yield cast(BinaryIO, file)
    except Cancelled as error:
        raise SourceAway(
            "{url} was not answered within {seconds} seconds: try again later.",
            url=address.shown,
            seconds=f"{deadline.seconds:.0f}",
        ) from error
    finally:
        found["received"] = found.get("received", 0) + remote.received
        logger.info("%d bytes in %d requests", remote.received, remote.requests)

"""Files on the Hugging Face Hub and on ModelScope: which one is meant, at which commit, and how it gets here.

`resolve` turns `owner/repo:file.pth`, or `ms:owner/repo:file.pth`, into a Source that is pinned to a commit and a
digest; `download` fetches it, by ranges (net/download.py).

A token is sent only when it was given: none is looked up in files or in the environment.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from ggufy.core.errors import SourceError, UsageError
from ggufy.core.hosts import MODELSCOPE, RepoName
from ggufy.core.messages import Message
from ggufy.core.source import Source, SourceFile
from ggufy.core.words import brief, human_size
from ggufy.models.names.config import LONGEST_CONFIG
from ggufy.net.download import DownloadTask, fetch, fetch_small
from ggufy.net.http_get import hub_address, hub_host, source_address
from ggufy.net.hub_api import RepoSibling, repo_files
from ggufy.net.hub_errors import source_errors
from ggufy.net.modelscope import SMALL
from ggufy.net.session import Reference
from ggufy.sources.addresses import is_modelscope, modelscope_reference, split_address
from ggufy.sources.format import SourceFormat
from ggufy.sources.patterns import is_wild, matching
from ggufy.sources.registry import format_of_name, models_by_config, unnamed_among
from ggufy.system.files import DOWNLOAD_SUFFIX
from ggufy.system.user_paths import user_text

logger = logging.getLogger(__name__)
_LARGEST_TEXT = 64 << 20  # bytes of a file that the Hub keeps no digest of
_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_NAME = r"[A-Za-z0-9_][\w.-]*"
_REFERENCE = re.compile(rf"(ms:)?({_NAME}/{_NAME})(?:@([^:\s]+))?(?::(.+))?", re.ASCII)


def is_reference(text: str) -> bool:
    """True if the text can only name something on a hub: `owner/repo`, `owner/repo:file.pth`, `ms:owner/repo`, or a
    hub's URL."""
    if "://" in text:
        host = split_address(text).netloc
        return host in _HOSTS | {hub_host()} or is_modelscope(host)
    match = _REFERENCE.fullmatch(text)
    return match is not None and (bool(match[1] or match[4]) or format_of_name(text) is None)


def is_on_hub(text: str) -> bool:
    """True for a name or an address of a hub, whatever files this machine has."""
    try:
        return is_reference(text) if "://" in text else _REFERENCE.fullmatch(text) is not None
    except (SourceError, UsageError):  # no address at all
        return False


def parse_reference(text: str, *, repo_type: str = "model", endpoint: str | None = None) -> Reference:
    """Reads `[ms:]owner/repo[@revision][:file]`, or the URL of a model repo or of one of its files.

    Raises SourceError for anything else.
    """
    if "://" in text:
        url = split_address(text)
        return modelscope_reference(url) if is_modelscope(url.netloc) else _parse_url(text, hub_host(endpoint))
    match = _REFERENCE.fullmatch(user_text(text).strip())
    if match and match[1] and repo_type == "model":
        return Reference(repo_id=match[2], host=MODELSCOPE, revision=match[3], file=match[4] or "")
    if match and not match[1]:
        return Reference(repo_id=match[2], revision=match[3], file=match[4] or "", repo_type=repo_type)
    raise SourceError("{text} is no name on the Hub: write owner/repo or owner/repo:file.", text=repr(brief(text)))


def _parse_url(text: str, own_host: str) -> Reference:
    url = split_address(text)
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    if url.netloc not in _HOSTS | {own_host} or len(parts) < 2 or parts[0] in ("datasets", "spaces", "api"):
        raise SourceError(
            "{text} is not the address of a model on the Hub: write owner/repo:file.pth.", text=brief(text)
        )
    repo_id = "/".join(parts[:2])
    if len(parts) == 2:
        return Reference(repo_id=repo_id)
    if parts[2] not in ("blob", "resolve", "raw", "tree") or len(parts) < 4:
        raise SourceError(
            "{text} is a page of {repo}, not a file: write {example}.",
            text=brief(text),
            repo=repo_id,
            example=f"{repo_id}:file.pth",
        )
    return Reference(repo_id=repo_id, revision=parts[3], file="" if parts[2] == "tree" else "/".join(parts[4:]))


def resolve(
    text: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Source:
    """Pins what the user named to one model of one commit, with the size and sha256 of its files.

    Raises SourceError, with what to do next, if the repo is missing, private or gated, holds no `.pth` or several of
    them and none was chosen, or the Hub cannot be reached (SourceAway); Cancelled.
    """
    wanted = parse_reference(text, endpoint=endpoint)
    listing = repo_files(wanted, token=token, endpoint=endpoint, stopped=stopped)

    def read(name: str) -> bytes:
        there = replace(wanted, file=name, revision=listing.commit)
        address = hub_address(there, token=token, endpoint=endpoint)
        return fetch_small(address, limit=LONGEST_CONFIG, stopped=stopped)

    form, files = model_files(wanted, listing.files, read)

    def pinned(file: RepoSibling) -> SourceFile:
        if file.lfs is not None:
            return SourceFile(path=file.rfilename, size=file.lfs.size, sha256=file.lfs.sha256)
        there = replace(wanted, file=file.rfilename, revision=listing.commit)
        address = hub_address(there, token=token, endpoint=endpoint)
        text = fetch_small(address, limit=_LARGEST_TEXT, stopped=stopped)
        return SourceFile(path=file.rfilename, size=len(text), sha256=hashlib.sha256(text).hexdigest())

    return Source.of_files(
        [pinned(file) for file in files],
        kind=form.kind,
        model_id=wanted.name,
        revision=listing.commit,
        license=listing.license,
        public=listing.public,
    )


def model_files(
    wanted: Reference, files: Sequence[RepoSibling], read: Callable[[str], bytes]
) -> tuple[SourceFormat, list[RepoSibling]]:
    """The files of the model that was named, its own first, or of the only one that need not be named; and its format.
    `read` gives a config.json. Raises SourceError."""
    by_name = {file.rfilename: file for file in files}
    models = models_by_config(by_name, wanted.file, read)
    wanted = _only_match(wanted, models)
    if inside := {name: form for name, form in models.items() if name.startswith(f"{wanted.file.rstrip('/')}/")}:
        wanted = replace(wanted, file="")  # a folder of the repo
    unnamed = unnamed_among(inside or models)
    suffix = models[unnamed[0]].suffix if unnamed else ".pth"
    chosen = choose_file(wanted, files, suffix=suffix, candidates=unnamed, also=models)
    names = models[chosen.rfilename].files(chosen.rfilename, lambda: by_name)
    if chosen.lfs is None and len(names) == 1:
        raise SourceError(
            "{name} in {repo} is a small text file, not a model: choose another.",
            name=chosen.rfilename,
            repo=wanted.name,
        )
    return models[chosen.rfilename], [by_name[name] for name in names]


def _only_match(wanted: Reference, models: Mapping[str, SourceFormat]) -> Reference:
    """With the one model that a pattern stands for in its place. Raises SourceError if there are more, or none."""
    if not is_wild(wanted.file) or wanted.file in models:
        return wanted
    found = matching(wanted.file, models.items())
    if len(found) == 1:
        return replace(wanted, file=found[0])
    if not found:
        raise SourceError(
            "{repo} has no model that matches {pattern}: it holds {files}.",
            repo=wanted.repo_id,
            pattern=wanted.file,
            files=", ".join(sorted(models)) or Message("nothing like it"),
        )
    raise SourceError(
        "{repo} has {count} models that match {pattern}, choose one, for example {example}; there are {files}.",
        repo=wanted.repo_id,
        count=len(found),
        pattern=wanted.file,
        example=f"{wanted.repo_id}:{found[0]}",
        files=", ".join(found),
    )


def choose_file(
    wanted: Reference,
    files: Sequence[RepoSibling],
    *,
    suffix: str,
    candidates: Collection[str] | None = None,
    also: Collection[str] = (),
) -> RepoSibling:
    """The file that was named, or else the only one of the `candidates` (None: all that end in `suffix`, which is what
    people are told in any case); one of `also` must be named.

    Raises SourceError, which lists the candidates, if that decides nothing.
    """
    repo, by_name = wanted.name, {file.rfilename: file for file in files}
    candidates = sorted(candidates if candidates is not None else (name for name in by_name if name.endswith(suffix)))
    listed = ", ".join(f"{name} ({human_size(by_name[name].size or 0)})" for name in candidates)
    if wanted.file in by_name and wanted.file in (*candidates, *also):
        return by_name[wanted.file]
    if wanted.file in by_name:
        if listed:
            raise SourceError(
                "{name} in {repo} is no {suffix} file: choose {files}.",
                name=wanted.file,
                repo=repo,
                suffix=suffix,
                files=listed,
            )
        raise SourceError(
            "{name} in {repo} is no {suffix} file: choose another repo.", name=wanted.file, repo=repo, suffix=suffix
        )
    if wanted.file:
        if near := listed or "".join(difflib.get_close_matches(wanted.file, by_name, n=1)):
            raise SourceError("{repo} has no file {name}: it holds {files}.", repo=repo, name=wanted.file, files=near)
        raise SourceError("{repo} has no file {name}: it holds nothing like it.", repo=repo, name=wanted.file)
    if not candidates:
        raise SourceError(
            "{repo} holds no {suffix} file: look at {page} and choose a repo that does.",
            repo=repo,
            suffix=suffix,
            page=wanted.page,
        )
    if len(candidates) > 1:
        raise SourceError(
            "{repo} holds {count} {suffix} files, choose one, for example {example}; there are {files}.",
            repo=repo,
            count=len(candidates),
            suffix=suffix,
            example=f"{repo}:{candidates[0]}",
            files=listed,
        )
    return by_name[candidates[0]]


def download(
    source: Source,
    target: Path,
    *,
    token: str | None = None,
    progress: Callable[[int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    endpoint: str | None = None,
) -> None:
    """Fetches a resolved source to `target`, going on where an earlier process stopped.

    `progress` gets the bytes that are here. Raises SourceError when the Hub refuses, stays away or sends something
    else than was pinned, DiskError when there is no room, BusyError when another process fetches the same file, and
    Cancelled soon after `stopped()` turned true. What has arrived stays in `<target>.download`.
    """
    address = source_address(source, token=token, endpoint=endpoint)
    file = DownloadTask(
        address=address,
        path=source.path,
        commit=source.revision,
        size=source.size,
        sha256=source.sha256,
        error=SourceError,
        whole=RepoName.of(source.model_id).host == MODELSCOPE and source.size < SMALL,
    )
    with source_errors(address.wanted, token=token):
        fetch(file, target, progress=progress, stopped=stopped)


def remove_orphans(folder: Path, keep: Collection[str], *, older_than_s: float = 86_400.0) -> None:
    """Removes what downloads have left in the cache's folder of sources, if no unfinished job is for it (`keep`: names
    of its subfolders) and it was not touched for so many seconds: another program may be fetching it."""
    for part in folder.glob(f"*/*{DOWNLOAD_SUFFIX}"):
        try:
            if part.parent.name not in keep and time.time() - part.stat().st_mtime > older_than_s:
                logger.info("removing %s, which no job needs", part)
                part.unlink()
        except FileNotFoundError:
            continue  # just finished or removed by another process

"""Files on the Hugging Face Hub: which one is meant, at which commit, and how it gets here.

`resolve` turns `owner/repo:file.pth` into a Source that is pinned to a commit and a digest; `download` fetches it, by
ranges (net/ranges.py).

A token is sent only when it was given: none is looked up in files or in the environment.
"""

from __future__ import annotations

import difflib
import logging
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.hf_api import RepoSibling

from ggufy.core.errors import SourceError, UsageError
from ggufy.core.job import Source
from ggufy.core.messages import Message
from ggufy.core.words import brief, human_size
from ggufy.net.hub_private import build_hf_headers, hf_raise_for_status
from ggufy.net.ranges import RangedFile, fetch
from ggufy.net.session import DOWNLOAD_TIMEOUT, Reference, ask, check_stopped, source_errors, use_timeouts
from ggufy.system.files import DOWNLOAD_SUFFIX
from ggufy.system.user_paths import user_text

logger = logging.getLogger(__name__)
KINDS = {".pth": "checkpoint", ".gguf": "gguf"}
_BLOCK = 1 << 18
_LONGEST_ADDRESS = 4096  # letters; signed ones have some hundred
_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_NAME = r"[A-Za-z0-9_][\w.-]*"
_REFERENCE = re.compile(rf"({_NAME}/{_NAME})(?:@([^:\s]+))?(?::(.+))?", re.ASCII)


def is_reference(text: str) -> bool:
    """True if the text can only name something on the Hub: `owner/repo`, `owner/repo:file.pth` or a Hub URL."""
    if "://" in text:
        return split_address(text).netloc in _HOSTS | {urlsplit(constants.ENDPOINT).netloc}
    match = _REFERENCE.fullmatch(text)
    return match is not None and (match[3] is not None or PurePosixPath(text).suffix not in KINDS)


def is_on_hub(text: str) -> bool:
    """True for a name or an address of the Hub, whatever files this machine has."""
    try:
        return is_reference(text) if "://" in text else _REFERENCE.fullmatch(text) is not None
    except (SourceError, UsageError):  # no address at all
        return False


def parse_reference(text: str, *, repo_type: str = "model", endpoint: str | None = None) -> Reference:
    """Reads `owner/repo[@revision][:file]`, or the URL of a model repo or of one of its files.

    Raises SourceError for anything else.
    """
    if "://" in text:
        return _parse_url(text, urlsplit(endpoint or constants.ENDPOINT).netloc)
    if match := _REFERENCE.fullmatch(user_text(text).strip()):
        return Reference(repo_id=match[1], revision=match[2], file=match[3] or "", repo_type=repo_type)
    raise SourceError("{text} is no name on the Hub: write owner/repo or owner/repo:file.", text=repr(brief(text)))


def split_address(text: str) -> SplitResult:
    """The parts of an address. Raises SourceError for what is none."""
    try:
        if "\0" in text or len(text) > _LONGEST_ADDRESS:
            raise ValueError(Message("it holds a zero byte") if "\0" in text else Message("it is too long"))
        return urlsplit(user_text(text).strip())
    except ValueError as error:
        raise SourceError(
            "{text} is no address that can be fetched ({reason}): check it.",
            text=brief(text).replace(chr(0), ""),
            reason=error,
        ) from error


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
    """Pins what the user named to one file of one commit, with its size and sha256.

    Raises SourceError, with what to do next, if the repo is missing, private or gated, holds no `.pth` or several of
    them and none was chosen, or the Hub cannot be reached (SourceAway); Cancelled.
    """
    wanted = parse_reference(text, endpoint=endpoint)
    listing = repo_files(wanted, token=token, endpoint=endpoint, stopped=stopped)
    chosen = model_file(wanted, listing.files)
    assert chosen.lfs is not None
    return Source(
        kind=KINDS[PurePosixPath(chosen.rfilename).suffix],
        path=chosen.rfilename,
        size=chosen.lfs.size,
        sha256=chosen.lfs.sha256,
        model_id=wanted.repo_id,
        revision=listing.commit,
        license=listing.license,
        public=listing.public,
    )


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A repo at one commit."""

    commit: str  # its sha
    files: Sequence[RepoSibling]
    license: str  # as the repo's own card says; empty if it says nothing
    gated: bool  # its conditions have to be accepted before its files can be read
    public: bool  # anybody can read its files


def repo_files(
    wanted: Reference,
    *,
    token: str | None,
    endpoint: str | None = None,
    check: bool = True,
    timeout_s: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Listing:
    """The repo's commit sha and its files, once it is known that they may be read (unless `check` is false).

    `timeout_s` is how long the Hub may be silent, if not the session's minute. Raises SourceError, and Cancelled when
    `stopped()` turns true while it waits for the Hub.
    """
    use_timeouts()
    api = HfApi(endpoint=endpoint, token=token or False)
    info = api.model_info if wanted.repo_type == "model" else api.dataset_info

    def call() -> Listing:
        repo = info(wanted.repo_id, revision=wanted.revision, files_metadata=True, timeout=timeout_s)
        if repo.gated and check:  # the list of its files is public, the files are not
            api.auth_check(wanted.repo_id, repo_type=wanted.repo_type)
        said = repo.card_data.get("license") if repo.card_data else None
        named = said if isinstance(said, str) else ""
        gated = bool(repo.gated)
        public = repo.private is False and not gated
        return Listing(commit=repo.sha or "", files=repo.siblings or (), license=named, gated=gated, public=public)

    return ask(call, wanted, token=token, stopped=stopped)


def check_access(
    wanted: Reference,
    *,
    token: str | None,
    endpoint: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Raises SourceError if the files of a gated repo may not be read with this token; and Cancelled, see above."""
    api = HfApi(endpoint=endpoint, token=token or False)
    ask(lambda: api.auth_check(wanted.repo_id, repo_type=wanted.repo_type), wanted, token=token, stopped=stopped)


def model_file(wanted: Reference, files: Sequence[RepoSibling]) -> RepoSibling:
    """The `.pth` or `.gguf` that was named, or the only `.pth`, with its digest. Raises SourceError."""
    chosen = choose_file(wanted, files, suffix=".pth", also=".gguf")
    if chosen.lfs is None:
        raise SourceError(
            "{name} in {repo} is a small text file, not a model: choose another.",
            name=chosen.rfilename,
            repo=wanted.repo_id,
        )
    return chosen


def choose_file(wanted: Reference, files: Sequence[RepoSibling], *, suffix: str, also: str = "") -> RepoSibling:
    """The file that was named, or else the only one that ends in `suffix`; one that ends in `also` must be named.

    Raises SourceError, which lists the candidates, if that decides nothing.
    """
    repo, by_name = wanted.repo_id, {file.rfilename: file for file in files}
    candidates = sorted(name for name in by_name if name.endswith(suffix))
    listed = ", ".join(f"{name} ({human_size(by_name[name].size or 0)})" for name in candidates)
    if wanted.file in by_name and wanted.file.endswith((suffix, also or suffix)):
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
    use_timeouts()
    wanted = Reference(repo_id=source.model_id, file=source.path, revision=source.revision)
    file = RangedFile(
        url=hf_hub_url(source.model_id, source.path, revision=source.revision, endpoint=endpoint),
        headers=build_hf_headers(token=token or False),
        path=source.path,
        commit=source.revision,
        size=source.size,
        sha256=source.sha256,
        error=SourceError,
    )
    with source_errors(wanted, token=token):
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


def fetch_small(
    url: str,
    *,
    limit: int,
    wanted: Reference | None = None,
    token: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> bytes:
    """The body of a small file at an http(s) URL. The token goes along only with a file of the Hub (`wanted`).

    Raises SourceError if it cannot be had, is a web page, or is larger than `limit` bytes; Cancelled.
    """
    use_timeouts()
    headers = build_hf_headers(token=token or False) if wanted else {}
    shown = f"{wanted.repo_id}:{wanted.file}" if wanted else url

    def get() -> bytes:
        body = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise SourceError("{url} is a web page, not a text file: give the address of the raw file.", url=shown)
            for block in response.iter_bytes(_BLOCK):
                check_stopped(stopped)
                body += block
                if len(body) > limit:
                    raise SourceError(
                        "{url} is larger than {size}: give a shorter text.", url=shown, size=human_size(limit)
                    )
        return bytes(body)

    return ask(get, wanted, token=token, shown=shown, stopped=stopped)

"""The models of a repo on the Hub at one commit: all of `owner/repo`, or those of `owner/repo:*-pro.pth`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ggufy.core.errors import SourceError
from ggufy.core.words import brief
from ggufy.net.hub_api import RepoSibling, repo_files
from ggufy.sources.hub import is_on_hub, parse_reference
from ggufy.sources.patterns import is_wild, matching
from ggufy.sources.registry import models_among
from ggufy.system.clock import never


@dataclass(frozen=True, kw_only=True)
class RepoModel:
    """One model."""

    source: str  # owner/repo@commit:file
    name: str  # path of its file in the repo
    digest: str  # stands for its bytes: of one file the sha256


def is_pattern(source: str) -> bool:
    """True for a source that stands for several models of a repo."""
    return is_on_hub(source) and is_wild(parse_reference(source).file)


def list_models(
    source: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    stopped: Callable[[], bool] = never,
) -> list[RepoModel]:
    """The models that `owner/repo[@revision][:pattern]` stands for, at one commit; there may be none.

    Raises SourceError if the repo cannot be read (SourceAway: now), and Cancelled.
    """
    if not is_on_hub(source):
        raise SourceError("{text} is no repo on the Hub: write owner/repo or owner/repo:*.pth.", text=brief(source))
    wanted = parse_reference(source, endpoint=endpoint)
    listing = repo_files(wanted, token=token, endpoint=endpoint, stopped=stopped)
    by_name = {file.rfilename: file for file in listing.files}
    models = models_among(by_name)
    return [
        RepoModel(
            source=f"{wanted.repo_id}@{listing.commit}:{name}",
            name=name,
            digest=_digest([by_name[part] for part in models[name].files(name, lambda: by_name)]),
        )
        for name in matching(wanted.file, models.items())
    ]


def _digest(files: Sequence[RepoSibling]) -> str:
    """Of large files the Hub knows the sha256, of small ones git's digest."""
    digests = [file.lfs.sha256 if file.lfs else file.blob_id or "" for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

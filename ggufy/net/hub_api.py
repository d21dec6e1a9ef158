"""What is asked of the Hub's API, or of ModelScope's, about repos that somebody named as a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.hf_api import BlobLfsInfo, RepoSibling

from ggufy.core.hosts import MODELSCOPE
from ggufy.net import modelscope
from ggufy.net.hub_errors import ask
from ggufy.net.session import Reference, use_timeouts
from ggufy.system.clock import never

__all__ = ["Listing", "RepoSibling", "check_access", "repo_files"]

# Bytes of what stands in git for a large file. ModelScope tells the digest of the others too, and sends these whole.
_POINTER, NO_POINTER = 134, 0


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
    stopped: Callable[[], bool] = never,
) -> Listing:
    """The repo's commit sha and its files, once it is known that they may be read (unless `check` is false).

    `timeout_s` is how long the Hub may be silent, if not the session's minute. Raises SourceError, and Cancelled when
    `stopped()` turns true while it waits for the Hub.
    """
    if wanted.host == MODELSCOPE:
        return _on_modelscope(wanted, token=token, endpoint=endpoint, timeout_s=timeout_s, stopped=stopped)
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


def _on_modelscope(
    wanted: Reference,
    *,
    token: str | None,
    endpoint: str | None,
    timeout_s: float | None,
    stopped: Callable[[], bool],
) -> Listing:
    def call() -> Listing:
        info = modelscope.repo_info(wanted, token=token, endpoint=endpoint, timeout=timeout_s)
        tree = modelscope.repo_tree(wanted, token=token, endpoint=endpoint, timeout=timeout_s, stopped=stopped)
        files = [
            RepoSibling(
                rfilename=file.path,
                size=file.size,
                lfs=BlobLfsInfo(file.size, file.sha256, _POINTER if file.lfs else NO_POINTER),
            )
            for file in tree.files.values()
        ]
        named = info.get("License")
        return Listing(
            commit=tree.commit,
            files=files,
            license=modelscope.LICENSES.get(named, named) if isinstance(named, str) else "",
            gated=modelscope.is_gated(info),
            public=modelscope.is_public(info),
        )

    return ask(call, wanted, token=token, stopped=stopped)


def check_access(
    wanted: Reference,
    *,
    token: str | None,
    endpoint: str | None = None,
    stopped: Callable[[], bool] = never,
) -> None:
    """Raises SourceError if the files of a gated repo may not be read with this token; and Cancelled, see above. Of
    ModelScope, only reading one tells."""
    if wanted.host == MODELSCOPE:
        return
    api = HfApi(endpoint=endpoint, token=token or False)
    ask(lambda: api.auth_check(wanted.repo_id, repo_type=wanted.repo_type), wanted, token=token, stopped=stopped)

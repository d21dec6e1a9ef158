"""A repo of quants on a hub at one commit: its GGUF files, brought here one by one, and texts beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ggufy.core.errors import SourceError
from ggufy.core.source import Source
from ggufy.net.download import fetch_small
from ggufy.net.http_get import hub_address
from ggufy.net.hub_api import repo_files
from ggufy.net.session import Reference
from ggufy.sources.hub import download, parse_reference
from ggufy.system.clock import never


@dataclass(frozen=True, kw_only=True)
class PublishedRepo:
    """The GGUF files of a repo, by their names in it."""

    name: str
    chosen: str  # the one that was named; empty: all
    files: dict[str, Source]
    at: Reference  # its commit
    texts: frozenset[str] = frozenset()  # names of its other files

    @classmethod
    def of(cls, text: str, *, token: str | None, stopped: Callable[[], bool] = never) -> PublishedRepo:
        """What `owner/repo[@revision][:file.gguf]` or a hub's URL names. Raises SourceError, SourceAway, Cancelled."""
        wanted = parse_reference(text)
        listing = repo_files(wanted, token=token, stopped=stopped)
        files = {
            file.rfilename: Source(
                kind="gguf",
                path=file.rfilename,
                size=file.lfs.size,
                sha256=file.lfs.sha256,
                model_id=wanted.name,
                revision=listing.commit,
            )
            for file in listing.files
            if file.lfs is not None and file.rfilename.endswith(".gguf")
        }
        if not files or (wanted.file and wanted.file not in files):
            raise SourceError(
                "{repo} has no file {name}: it holds {files}.",
                repo=wanted.name,
                name=wanted.file or "*.gguf",
                files=", ".join(sorted(files)) or "nothing like it",
            )
        others = frozenset(file.rfilename for file in listing.files) - files.keys()
        at = replace(wanted, file="", revision=listing.commit)
        return cls(name=wanted.name, chosen=wanted.file, files=files, at=at, texts=others)

    def read(self, name: str, *, limit: int, token: str | None, stopped: Callable[[], bool] = never) -> str:
        """A text beside them; empty if there is none. Raises SourceError for one of more than `limit` bytes; and what
        fetching does."""
        if name not in self.texts:
            return ""
        address = hub_address(replace(self.at, file=name), token=token)
        return fetch_small(address, limit=limit, stopped=stopped).decode("utf-8", errors="replace")

    def fetch(
        self,
        name: str,
        folder: Path,
        *,
        token: str | None,
        stopped: Callable[[], bool] = never,
        report: Callable[[float], None] = lambda fraction: None,
    ) -> Path:
        """The file in `folder`, from which a download that was stopped goes on. Raises what `download` does."""
        source, target = self.files[name], folder / Path(name).name
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            download(
                source,
                target,
                token=token,
                progress=lambda done: report(done / max(1, source.size)),
                stopped=stopped,
            )
        return target

"""A pinned source: where it is, and the digests that tell it from any other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from ggufy.core.hosts import RepoName

# Of sources: formats that can be converted while they are fetched.
STREAMED_KINDS = frozenset({"checkpoint", "safetensors", "bin"})


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a source."""

    path: str  # local: absolute path; Hub: the file's path in the repo
    size: int  # bytes
    sha256: str  # hex digest


@dataclass(frozen=True, kw_only=True)
class Source:
    """The pinned source: a file on this machine, or one of a Hub repo at one commit; or several that lie together."""

    kind: str  # its format, see sources/registry.py: "checkpoint" (.pth), "safetensors", "bin" or "gguf"
    path: str  # local: absolute path; Hub: the file's path in the repo; of several: of the one that names the model
    size: int  # bytes, of all files
    sha256: str  # hex digest of the whole file, or of several's; empty if only a plain address is known, see `mark`
    files: tuple[SourceFile, ...] = ()  # all, if there are several; the first is that of `path`
    mtime_ns: int = 0  # local files: while size and time stand, the digest is not computed again
    model_id: str = ""  # Hub: owner/name; on ModelScope ms:owner/name
    revision: str = ""  # Hub: commit sha
    license: str = ""  # Hub: as the source's own card says; empty if it says nothing
    url: str = ""  # plain address: without token or fragment
    etag: str = ""  # plain address: the server's mark of the version
    mark: str = ""  # plain address: the digest if one was given, else that of address, size and version
    # The demo, or on the Hub and read without a token: anybody could have made this job. Not known of older records,
    # which count as private until the job is started again from the form.
    public: bool = False

    @property
    def host(self) -> str:
        """Which hub it is on, as core/hosts.py calls it."""
        return RepoName.of(self.model_id).host

    @property
    def remote(self) -> bool:
        return bool(self.model_id or self.url)

    @classmethod
    def of_files(cls, files: Sequence[SourceFile], *, kind: str, **facts: Any) -> Self:
        """From its files, of which the first names the model."""
        first, *more = files
        if not more:
            return cls(kind=kind, path=first.path, size=first.size, sha256=first.sha256, **facts)
        text = "".join(f"{one.sha256} {one.path.rpartition('/')[2]}\n" for one in files)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return cls(
            kind=kind, path=first.path, size=sum(one.size for one in files), sha256=digest, files=tuple(files), **facts
        )

    def each(self) -> tuple[Self, ...]:
        """A source for each of its files, the one that names the model last: where that is, all are."""
        if not self.files:
            return (self,)
        alone = (dataclasses.replace(self, files=(), **dataclasses.asdict(one)) for one in self.files)
        return tuple(alone)[::-1]

    @property
    def can_stream(self) -> bool:
        """True for a remote model of a streamed kind whose version the server vouches for. A digest that a user gives
        for a plain address is checked over the whole file, which has to be downloaded then, as if its server names no
        version."""
        return self.kind in STREAMED_KINDS and bool(self.model_id or (self.etag and not self.sha256))

    @property
    def key(self) -> str:
        """Hex digest that stands for the file's content."""
        return self.sha256 or self.mark


@dataclass(frozen=True, kw_only=True)
class PinnedAdapter:
    """An adapter that is merged into the model on its way."""

    source: Source  # its file; of a folder by Hugging Face's PEFT the weights, and adapter_config.json
    init: Source | None = None  # what a PiSSA's training began with
    kind: str  # for people: LoRA, Bone, …
    rank: int = 0  # the largest; 0: it has only whole tensors
    scale: float = 1.0  # of B A; 1 where nothing is scaled

    @property
    def key(self) -> str:
        """Stands for everything that decides what becomes of the model."""
        return f"{self.source.key}:{self.init.key if self.init else ''}:{self.scale!r}"

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source, self.init) if self.init else (self.source,)

"""What the test Hub (hub_server.py) holds: repos, commits, and contents by digest."""

from __future__ import annotations

import hashlib
import struct
import time
from dataclasses import dataclass, field
from os import link
from pathlib import Path
from shutil import copy2, copytree

import hf_xet
from starlette.responses import JSONResponse


@dataclass(frozen=True)
class File:
    """One file of one commit; `oid` is the sha256 of a large file, the git digest of any other."""

    oid: str
    size: int
    lfs: bool

    @property
    def blob_id(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n"
        return git_digest(pointer.encode()) if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    id: str
    title: str
    files: dict[str, File]
    date: str


@dataclass
class Repo:
    kind: str  # models, datasets or spaces
    id: str
    private: bool
    gated: str | bool = False
    downloads: int = 0
    commits: list[Commit] = field(default_factory=list)  # the last one is the head of main

    def add(self, title: str, files: dict[str, File]) -> Commit:
        seed = f"{self.kind}/{self.id}/{len(self.commits)}/{title}/{sorted(files)}/{time.time_ns()}"
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        self.commits.append(Commit(hashlib.sha1(seed.encode()).hexdigest(), title, files, date))
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        if revision == "main":
            return self.commits[-1]
        for commit in self.commits:
            if commit.id == revision:
                return commit
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class Refusal(Exception):
    """Ends a request with an error as the Hub words it."""

    def __init__(self, status: int, code: str, message: str):
        self.response = JSONResponse({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})


class Storage:
    """Contents by digest: what came over HTTP in memory, what came over Xet in memory and in folders.

    hf_xet locks the folder that it works in for the rest of its process, so each access token names a new folder, a
    copy of the server's own. Which file has which sha256 is read from the shards that an upload leaves; its content is
    then taken over into memory and into the server's own folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self.own = root / "own"
        self.own.mkdir()
        self.session = hf_xet.XetSession()
        self.blobs: dict[str, bytes] = {}
        self.xet: dict[str, tuple[str, int, Path]] = {}  # sha256 -> Xet hash, size, folder that it came in
        self.folders = 0

    def cas_url(self, folder: Path | None = None) -> str:
        """Address of a new copy of a storage folder, the server's own if none is given."""
        self.folders += 1
        new = self.root / f"copy-{self.folders}"
        # Everything but the data base is written once, so a link is as good as a copy.
        copytree(folder or self.own, new, copy_function=lambda a, b: (copy2 if a.endswith(".redb") else link)(a, b))
        return f"local://{new}"

    def xet_hash(self, oid: str) -> str | None:
        """The Xet hash of a large file that came over Xet."""
        if oid not in self.xet:
            for shard in self.root.glob("copy-*/xet/xorbs/shards/*.mdb"):
                for digest, (name, size) in read_shard(shard.read_bytes()).items():
                    self.xet.setdefault(digest, (name, size, shard.parents[3]))
        return self.xet[oid][0] if oid in self.xet else None

    def has(self, oid: str) -> bool:
        return oid in self.blobs or self.xet_hash(oid) is not None

    def get(self, oid: str) -> bytes:
        if oid not in self.blobs:
            name, size, folder = self.xet[oid]
            target = self.root / f"{oid}.bin"
            with self.session.new_file_download_group(endpoint=self.cas_url(folder)) as group:
                group.start_download_file(hf_xet.XetFileInfo(name, size), str(target))
            self.blobs[oid] = target.read_bytes()
            with self.session.new_upload_commit(endpoint=f"local://{self.own}") as commit:
                commit.start_upload_bytes(self.blobs[oid], sha256=oid)
        return self.blobs[oid]


def read_shard(data: bytes) -> dict[str, tuple[str, int]]:
    """sha256 -> (Xet hash, size) from a shard: 48 bytes of header, then per file one entry of 48 bytes with its hash,
    flags and count, `count` segments of 48 bytes, as many checks if bit 31 is set, and the sha256 if bit 30 is."""
    found, at = {}, 48
    while data[at : at + 32] != b"\xff" * 32:
        name, flags, count = hash_text(data[at : at + 32]), *struct.unpack_from("<II", data, at + 32)
        size = sum(struct.unpack_from("<I", data, at + 48 * (n + 1) + 36)[0] for n in range(count))
        at += 48 * (1 + count * (1 + (flags >> 31 & 1)))
        if flags >> 30 & 1:
            found[hash_text(data[at : at + 32])] = (name, size)
            at += 48
    return found


def hash_text(raw: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

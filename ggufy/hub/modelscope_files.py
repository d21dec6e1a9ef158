"""Files on their way to ModelScope: what a commit says of one, and its bytes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufy.core.errors import HubError
from ggufy.hub.protocol import Content, Staged, check_path, sha256_of
from ggufy.net.session import check_stopped

_LFS_BYTES = 64 << 10  # larger files are kept apart from the repo
_ALWAYS_INSIDE = {"README.md", "configuration.json", "config.json"}  # what ModelScope itself reads
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """A file that is to be in the repo."""

    path: str
    content: bytes | Path
    size: int  # bytes
    sha256: str  # hex digest

    @property
    def lfs(self) -> bool:
        return self.size > _LFS_BYTES and self.path not in _ALWAYS_INSIDE

    def action(self) -> dict[str, Any]:
        """What a commit says of it."""
        told: dict[str, Any] = {"action": "create", "path": self.path, "size": self.size}
        if self.lfs:
            return told | {"type": "lfs", "sha256": self.sha256, "content": "", "encoding": ""}
        data = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return told | {
            "type": "normal",
            "sha256": "",
            "content": base64.b64encode(data).decode(),
            "encoding": "base64",
        }


def new_file(path: str, content: Content) -> NewFile:
    assert not isinstance(content, Staged), "nothing is staged on ModelScope"
    check_path(path)
    if isinstance(content, Path) and not content.is_file():
        raise HubError("{path} is gone, so it cannot be uploaded: make it again.", path=content)
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return NewFile(path=path, content=content, size=size, sha256=sha256_of(content))


def blocks(content: bytes | Path, report: Callable[[int], None], stopped: Callable[[], bool]) -> Iterator[bytes]:
    """The content in pieces. Raises Cancelled soon after `stopped()` turned true."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while block := file.read(_BLOCK):
            check_stopped(stopped)
            yield block
            report(file.tell())

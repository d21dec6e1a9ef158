"""Which site a repo is on, told by its name: `owner/name` is on the Hugging Face Hub, `ms:owner/name` on ModelScope.

Records, commands and the page name repos so. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

HUGGING_FACE, MODELSCOPE = "", "ms"


@dataclass(frozen=True)
class RepoName:
    """A repo of one of the sites."""

    host: str  # HUGGING_FACE or MODELSCOPE
    repo_id: str  # owner/name, as the site itself calls it

    @classmethod
    def of(cls, name: str) -> RepoName:
        """From `owner/name` or `ms:owner/name`."""
        bare = name.removeprefix(f"{MODELSCOPE}:")
        return cls(HUGGING_FACE if bare == name else MODELSCOPE, bare)

    def __str__(self) -> str:
        return f"{self.host}:{self.repo_id}" if self.host else self.repo_id

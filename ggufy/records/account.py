"""Whose repos these are, also while the Hub is away: the account's name is remembered beside the records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ggufy.system.files import write_text

_MODELSCOPE_FILE = "owner-modelscope.txt"


@dataclass(frozen=True, kw_only=True)
class Account:
    """Whose repos these are."""

    ask: Callable[[], str]  # the account's name; asks the Hub
    key: str = ""  # stands for the token that was given, and says nothing about it
    file: str = "owner.txt"

    @classmethod
    def of_token(cls, ask: Callable[[], str], token: str) -> Account:
        return cls(ask=ask, key=hashlib.sha256(b"ggufy account " + token.encode()).hexdigest()[:12])

    def on_modelscope(self) -> Account:
        """The same of an account there."""
        return replace(self, file=_MODELSCOPE_FILE)

    def remembered(self, folder: Path) -> str:
        """The name that the Hub gave for this token at an earlier start; empty if it gave none."""
        try:
            key, _, owner = (folder / self.file).read_text(encoding="utf-8").strip().partition(" ")
        except (OSError, ValueError):
            return ""
        return owner if self.key and key == self.key else ""

    def remember(self, folder: Path, owner: str) -> None:
        if self.key and owner != self.remembered(folder):
            write_text(folder / self.file, f"{self.key} {owner}\n")

"""Who may do what. Pure.

On somebody's own machine there is no sign-in, and whoever reaches the page is its owner. On a Space everybody reaches
it: owners may do everything, others may look at jobs and results, and chat if the owner allows it. The checks are made
where things are done (`Services`, `Chats`), since hidden endpoints still answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufy.errors import UsageError
from ggufy.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Whoever sent a request; without a name, a stranger."""

    name: str = ""  # account, as the sign-in says
    organisations: frozenset[str] = frozenset()


STRANGER = Visitor()


def is_owner(visitor: Visitor, settings: Settings) -> bool:
    """True for the one whose page this is: anybody on a machine of their own, a signed-in owner on a Space."""
    if settings.space_id is None:
        return True
    return not settings.owners.isdisjoint({visitor.name, *visitor.organisations} - {""})


def may_work(visitor: Visitor, settings: Settings) -> bool:
    """True if the visitor may start, stop or change anything."""
    return settings.open_to_all or is_owner(visitor, settings)


def may_chat(visitor: Visitor, settings: Settings) -> bool:
    return settings.chat_for_all or may_work(visitor, settings)


def check_work(visitor: Visitor, settings: Settings) -> None:
    """Raises UsageError unless the visitor may start, stop or change things."""
    if not may_work(visitor, settings):
        raise UsageError(_refusal("start, stop or change jobs", settings))


def check_chat(visitor: Visitor, settings: Settings) -> None:
    """Raises UsageError unless the visitor may chat."""
    if not may_chat(visitor, settings):
        raise UsageError(_refusal("chat", settings))


def _refusal(what: str, settings: Settings) -> str:
    way = "sign in as the owner, or duplicate the Space" if settings.login else "duplicate the Space"
    return f"only its owner may {what} on this Space: {way}, or run ggufy on your own machine."

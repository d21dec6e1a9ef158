"""Who may see and do what. Pure.

On somebody's own machine there is no sign-in, and whoever reaches the page is its owner; so a page that other machines
reach needs a password, or the word that they are trusted. On a Space everybody reaches it: owners may do everything;
others may look at what they could have made themselves, and chat and work if the owner allows it, within what
strangers.py leaves of their wishes. The checks are made where things are done (`Services`), since hidden endpoints
still answer. A job that a visitor may not see is to him one that does not exist.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from ggufy.core.errors import UsageError
from ggufy.core.job import Request
from ggufy.core.messages import Message
from ggufy.system.settings import Settings


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


def is_public(request: Request) -> bool:
    """True for a job that any visitor could have made, with results for everybody."""
    return all(source.public for source in request.sources) and not request.private


def may_see(visitor: Visitor, request: Request, settings: Settings) -> bool:
    """True if the visitor may know that there is such a job, and have its files."""
    return is_public(request) or is_owner(visitor, settings)


def may_work(visitor: Visitor, settings: Settings) -> bool:
    """True if the visitor may start, stop or change anything."""
    return settings.open_to_all or is_owner(visitor, settings)


def may_chat(visitor: Visitor, settings: Settings) -> bool:
    return settings.chat_for_all or may_work(visitor, settings)


def check_work(visitor: Visitor, settings: Settings) -> None:
    """Raises UsageError unless the visitor may start, stop or change things."""
    if not may_work(visitor, settings):
        raise UsageError(
            "only its owner may start, stop or change jobs on this Space: {way}, or run ggufy on your own machine.",
            way=_way_in(settings),
        )


def check_owner(visitor: Visitor, settings: Settings) -> None:
    """Raises UsageError for what not even a visitor who may work may do."""
    if not is_owner(visitor, settings):
        raise UsageError(
            "only its owner may follow repos on this Space: {way}, or run ggufy on your own machine.",
            way=_way_in(settings),
        )


def check_delete(visitor: Visitor, settings: Settings) -> None:
    """Raises UsageError unless the visitor may delete files and jobs."""
    if not is_owner(visitor, settings):
        raise UsageError(
            "only its owner may delete files and jobs on this Space: {way}, or run ggufy on your own machine.",
            way=_way_in(settings),
        )


def check_chat(visitor: Visitor, settings: Settings) -> None:
    """Raises UsageError unless the visitor may chat."""
    if not may_chat(visitor, settings):
        raise UsageError(
            "only its owner may chat on this Space: {way}, or run ggufy on your own machine.", way=_way_in(settings)
        )


def check_reach(settings: Settings) -> None:
    """Raises UsageError if the page would listen where other machines reach it, and nobody has said that they may."""
    if settings.space_id or settings.password or settings.trusted_network or _is_this_machine(settings.server_name):
        return
    raise UsageError(
        "on {address} the page is open to every machine that reaches it: set GGUFY_PASSWORD, or "
        "GGUFY_TRUSTED_NETWORK=1.",
        address=settings.server_name,
    )


def is_own_host(header: str, settings: Settings, names: Collection[str] = ()) -> bool:
    """True if a request's Host header names this page: by a setting, by one of this machine's `names`, or by an
    address, which nobody can make a browser mistake for another page's name."""
    try:
        host = (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return False
    own = {"localhost", settings.server_name.lower(), *settings.hosts, *(name.lower() for name in names)}
    if host in own or "*" in own or any(name.startswith("*.") and host.endswith(name[1:]) for name in own):
        return bool(host)
    return _is_this_machine(host) or (_is_address(host) and not _is_this_machine(settings.server_name))


def _is_this_machine(host: str) -> bool:
    """True for a name or address that no other machine reaches."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _way_in(settings: Settings) -> str:
    return (
        Message("sign in as the owner, or duplicate the Space") if settings.login else Message("duplicate the Space")
    )

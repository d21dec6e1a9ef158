"""Whose token a caller of the API has shown.

The Hub is asked, and its answers are kept. Strangers can invent tokens as fast as they like, so those that the Hub has
not confirmed yet share a small allowance: the Space's address must keep what its uploads need. A confirmed one is
asked again outside of it, and counts on while the Hub is away; the program's own token is known without asking.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from ggufy.core.errors import HubAway
from ggufy.net.http_get import ask_hub
from ggufy.net.hub_errors import status_of
from ggufy.net.session import FAILURES
from ggufy.service.access import STRANGER, Visitor

logger = logging.getLogger(__name__)
KEPT_S = 300.0  # how long an answer is not asked for again
TRUSTED_S = 3600.0  # how long a confirmed token counts on while the Hub cannot be asked
INTERVAL_S, BURST = 2.0, 15  # between two questions about unconfirmed tokens; and how many may come at once
_KEPT = 512  # answers of either kind
_TOKEN = re.compile(r"[!-~]{4,4096}")  # what can stand in a header
# What a client raises beside its own errors: a proxy that it cannot use, a cut connection, a page for an answer.
_BROKEN = (*FAILURES, ImportError, ValueError, OSError, RuntimeError, LookupError, TypeError, AttributeError)


def account_of(token: str) -> Visitor:
    """The account and its organisations; STRANGER for a token that the Hub does not know, or while it is away."""
    try:
        return ask(token)
    except HubAway:
        return STRANGER


def ask(token: str) -> Visitor:
    """As the Hub says now; STRANGER for a token that it does not know. Raises HubAway if it does not say."""
    if not _TOKEN.fullmatch(token):
        return STRANGER
    try:
        found = ask_hub("/api/whoami-v2", token=token)
        names = frozenset(str(o.get("name", "")) for o in found.get("orgs", ()) if isinstance(o, dict))
        return Visitor(name=str(found.get("name", "")), organisations=names - {""})
    except _BROKEN as error:
        kind = type(error).__name__  # never its text, which may hold the token
        logger.info("a token was shown that the Hub does not confirm: %s", kind)
        if status_of(error) in (401, 403):
            return STRANGER
        raise HubAway("the Hub cannot say whose token this is ({kind}): try again later.", kind=kind) from error


class Accounts:
    """Whose tokens were shown; safe to share between threads. `own` is the program's own token, and `name` gives
    whose, or nothing while that is not known."""

    def __init__(
        self,
        own: str | None = None,
        name: Callable[[], str] = lambda: "",
        *,
        ask: Callable[[str], Visitor] = ask,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._own, self._name, self._ask, self._clock = own, name, ask, clock
        self._lock = threading.Lock()
        self._confirmed: OrderedDict[str, tuple[float, Visitor]] = OrderedDict()  # digest -> when it was asked, answer
        self._refused: OrderedDict[str, tuple[float, Visitor]] = OrderedDict()
        self._allowance = float(BURST)  # questions about unconfirmed tokens that may be asked now
        self._counted = clock()

    def __call__(self, token: str) -> Visitor:
        """The token's account; STRANGER if the Hub does not know it, or cannot be asked about it now."""
        if self._own and secrets.compare_digest(token.encode(), self._own.encode()) and (name := self._name()):
            return Visitor(name=name)
        key = hashlib.sha256(token.encode()).hexdigest()
        with self._lock:
            now = self._clock()
            asked, known = self._confirmed.get(key) or self._refused.get(key) or (0.0, None)
            if known is not None and now < asked + KEPT_S:
                return known
            confirmed = known is not None and key in self._confirmed
            if not confirmed and not self._take(now):
                return STRANGER
        try:
            found = self._ask(token)
        except HubAway:  # not kept: the next time may be better
            return known if confirmed and known is not None and now < asked + TRUSTED_S else STRANGER
        with self._lock:
            self._keep(key, now, found)
        return found

    def _take(self, now: float) -> bool:
        """Takes a question from the allowance; False if there is none left."""
        self._allowance = min(BURST, self._allowance + (now - self._counted) / INTERVAL_S)
        self._counted = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _keep(self, key: str, now: float, found: Visitor) -> None:
        self._confirmed.pop(key, None)
        self._refused.pop(key, None)
        kept = self._confirmed if found.name else self._refused
        kept[key] = now, found
        while len(kept) > _KEPT:
            kept.popitem(last=False)
